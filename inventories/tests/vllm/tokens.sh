#!/bin/sh
# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Does the model write as many tokens as it is asked for? playbooks/verify.yml runs this inside the container.
set -u
question="{\"model\": \"$PHOENIX_MODEL\", \"prompt\": \"Once upon a time\", \"max_tokens\": 8, \"ignore_eos\": true}"
# The key comes on standard input: a command line can be read by everyone.
answer=$(printf 'Authorization: Bearer %s\n' "${API_KEY-}" | curl -sS --fail-with-body --max-time 120 \
  -H @- -H 'Content-Type: application/json' -d "$question" "$PHOENIX_URL/v1/completions")
code=$?
echo "$answer"
[ $code = 0 ] || exit $code
echo "$answer" | grep -Eq '"completion_tokens": *8[,}]'
