# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""``python3 lab/node pct|lab|hook|api …``: the one entry of the four programs."""

from __future__ import annotations

import os
import sys

sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def main() -> int:
    """Run the program that the first word names."""
    program, words = sys.argv[1], sys.argv[2:]
    if program == "pct":
        from node import cli

        return cli.main(words)
    if program == "hook":
        from node import hook

        return hook.main(words)
    if program == "api":
        from node import api

        return api.main()
    from node import lab

    return lab.main(words)


if __name__ == "__main__":
    sys.exit(main())
