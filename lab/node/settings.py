# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Every path, name and number of the lab, in one place.

``PHOENIX_LAB_SUBNET`` (three octets, such as ``10.92.0``) chooses another /24 at the first ``lab up``.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

CHECKOUT_LAB = Path(__file__).resolve().parent.parent

STATE = Path("/var/lib/phoenix-lab")
STATE_FILE = STATE / "state.json"
POOL_IMAGE = STATE / "btrfs.img"
POOL_MOUNT = STATE / "btrfs"
POOL_BYTES = 60 * 1024**3
DIR_STORAGE = STATE / "dir"
MODELS = STATE / "models"
DELAY_FILE = STATE / "pct-delay"

PVE = Path("/etc/pve")
MARKER = PVE / ".phoenix-lab"
STORAGE_CFG = PVE / "storage.cfg"
VZ = Path("/var/lib/vz")
BASE_NAME = "debian-12-lab_12_amd64.tar.zst"
BASE_ARCHIVE = VZ / "template/cache" / BASE_NAME

LXC_STATE = Path("/var/lib/lxc")
LXC_LOG = Path("/var/log/lxc")
RUN = Path("/run/pve")
LOCK_DIR = Path("/run/lock/lxc")
TASK_LOG = Path("/var/log/pve/tasks")
CALL_LOG = Path("/var/log/phoenix-lab/pct-calls.log")

API_PORT = 8006
API_SECRETS = STATE / "api.json"
API_PID = Path("/run/phoenix-lab-api.pid")
API_LOG = Path("/var/log/phoenix-lab/api.log")
API_CALL_LOG = Path("/var/log/phoenix-lab/api-calls.log")
API_KEY = PVE / "priv/authkey.key"  # what tickets are signed with
CA_CERTIFICATE, CA_KEY = PVE / "pve-root-ca.pem", PVE / "priv/pve-root-ca.key"
FIREWALL = PVE / "firewall"

PVECFG = Path("/usr/share/perl5/PVE/pvecfg.pm")  # where a node says its release
REPOID = "1ab00000000000000"

PCT_LINK = Path("/usr/sbin/pct")
PCT_PROGRAM = CHECKOUT_LAB / "pct"

BRIDGE = "vmbr0"
SUBNET = os.environ.get("PHOENIX_LAB_SUBNET", "10.92.0")
NFT_TABLE = "phoenix_lab"

ID_START, ID_COUNT = 100000, 65536
SAFE_PATH = "/sbin:/bin:/usr/sbin:/usr/bin"


def node_name() -> str:
    """The node's name: the short host name, as on Proxmox VE."""
    return socket.gethostname().split(".")[0] or "pve"


def node_certificate() -> tuple[Path, Path]:
    """The node's certificate and its key, where the web server of a genuine node has them."""
    folder = PVE / "nodes" / node_name()
    return folder / "pve-ssl.pem", folder / "pve-ssl.key"


def conf_dir() -> Path:
    """The folder of the container conf files (what /etc/pve/lxc points at)."""
    return PVE / "nodes" / node_name() / "lxc"
