#!/usr/bin/python
# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: benchmark_report
short_description: Compare a benchmark with the accepted one, show it and keep it
version_added: 0.1.0
author:
  - The Phoenix Hypervisor team (@phoenix)
description:
  - Takes what M(phoenix.hypervisor.vllm_benchmark) measured, compares it with the accepted result in a folder of the
    control node, shows a table, and writes the result as JSON, as text and, where matplotlib is installed, as a plot
    (PNG and SVG).
  - The first result is the accepted one. Later ones are, when a person says so (O(accept)).
  - A figure is lost when its median is worse than the accepted one's by more than the limit, and no new run is as good
    as one of the accepted. Results of another hardware, model, load or sampling are not compared, and the report says
    why.
  - Runs on the control node, as an action plugin. It does not fail for what the result says.
extends_documentation_fragment:
  - phoenix.hypervisor.report
attributes:
  check_mode:
    description: Compares and shows, and writes no file.
  idempotence:
    description: Each result is a file of its own. It reports no change.
options:
  folder:
    description:
      - The folder of the results, one for each server. It is created. C(accepted.json) in it is the accepted result.
    type: path
    required: true
  host:
    description: The host that was measured.
    type: str
    required: true
  ctid:
    description: The container's CTID.
    type: int
    default: 0
  node:
    description: The node that it is on.
    type: str
    default: ""
  measured:
    description:
      - What was measured, as the module M(phoenix.hypervisor.vllm_benchmark) returns it. Left empty, only the folder,
        the accepted result and the limits are looked at, which is better done before the measuring.
    type: dict
    default: {}
  server:
    description: What was measured it at, as that module returns it.
    type: dict
    default: {}
  sampler:
    description:
      - What was measured with FlashInfer's sampler on and off, in turns. C(on) and C(off) are lists of what the same
        module returned. Or C(problem), why it was not.
    type: dict
    default: {}
  limits:
    description: How many percent a figure may be worse, by its name. Adds to the limits that are there by themselves.
    type: dict
    default: {}
  accept:
    description: Whether this result is the accepted one from now on, whatever it is.
    type: bool
    default: false
  plot:
    description: Whether to draw it. Without matplotlib there is a warning instead.
    type: bool
    default: true
"""

EXAMPLES = r"""
- name: Measure
  phoenix.hypervisor.vllm_benchmark:
    loads: [{streams: 1, input_tokens: 256, output_tokens: 256}]
  register: benchmark

- name: Compare and keep it
  phoenix.hypervisor.benchmark_report:
    folder: results/921
    host: "{{ inventory_hostname }}"
    ctid: 921
    measured: "{{ benchmark.measured }}"
    server: "{{ benchmark.server }}"
    limits: {output_tokens_per_second: 3}
"""

RETURN = r"""
result:
  description:
    - The result as it is in the JSON file. C(schema_version), C(date), C(host), C(ctid), C(node), C(hardware),
      C(driver), C(model), C(release), C(stack), C(versions), C(engine_config), C(loads), C(sampling), C(summary) (of
      each load the median and the range of each figure), C(runs), C(verdict), and C(sampler) where that was compared.
  returned: when something was measured
  type: dict
verdict:
  description: C(passed), C(accepted), C(comparable), C(reason), C(losses) (sentences) and C(comparison).
  returned: when something was measured
  type: dict
table:
  description: What was shown.
  returned: when something was measured
  type: str
accepted:
  description: Whether there is an accepted result.
  returned: always
  type: bool
accepted_digest:
  description: The state of the server that the accepted result was measured at, before this one.
  returned: when something was measured
  type: str
files:
  description: The files that were written.
  returned: always
  type: list
  elements: str
  sample: [results/921/20261128T010000Z.json, results/921/20261128T010000Z.png]
"""
