# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options of modules that can also work through Proxmox VE's REST API (argument spec: module_utils/nodes.py)."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  api_host:
    description:
      - Address of a node or cluster whose REST API is used, from wherever the module runs. Left out, the module works
        on the node that it runs on, with its files and C(pct).
      - Needs the Python packages C(proxmoxer) and C(requests) where the module runs.
    type: str
  api_port:
    description: Port of the REST API.
    type: int
    default: 8006
  api_user:
    description:
      - User with its realm, such as V(root@pam). Without it, E(PROXMOX_USER).
      - Devices, bind mounts, hook scripts and features other than C(nesting) are for V(root@pam) alone, by password;
        a token never counts as V(root@pam).
    type: str
  api_password:
    description: The user's password. Without it, E(PROXMOX_PASSWORD).
    type: str
  api_token_id:
    description: Name of a token of the user, used instead of the password. Without it, E(PROXMOX_TOKEN_ID).
    type: str
  api_token_secret:
    description: The token's secret. Without it, E(PROXMOX_TOKEN_SECRET).
    type: str
  validate_certs:
    description: Whether the API's certificate has to be trustworthy.
    type: bool
    default: true
  ca_path:
    description: File of the CA that signed it, C(/etc/pve/pve-root-ca.pem) of the node. Left out, the system's CAs.
    type: path
  node:
    description: Name of the node, for O(api_host). May be left out when the cluster has only one.
    type: str
requirements:
  - proxmoxer and requests, with O(api_host)
"""
