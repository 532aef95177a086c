# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How many cases the property tests generate: Hypothesis' own number, or many with HYPOTHESIS_PROFILE=full."""

from __future__ import annotations

import os

from hypothesis import settings

# A loaded machine is slow now and then; a case that takes long is no fault.
settings.register_profile("full", max_examples=10_000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
