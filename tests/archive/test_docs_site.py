# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`make docs` builds a site with all pages, without a warning and without a network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "build/docs/html"


@pytest.fixture(scope="module")
def site() -> Path:
    # Nothing answers there: whatever asked for something would fail.
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        [str(ROOT / "tools/docs")], env={**os.environ, **nowhere, "PATH": path}, capture_output=True, text=True,
        timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return SITE


def test_every_page_and_plugin_has_its_place_and_the_menu_leads_there(site):
    index = (site / "index.html").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert (site / f"{page.stem}.html").exists(), page
        assert page.stem == "index" or f'href="{page.stem}.html"' in index, page
    for kind in ("module", "filter", "lookup", "connection", "inventory"):
        folder = "modules" if kind == "module" else kind
        for path in (ROOT / "plugins" / folder).glob("*.yml" if kind == "filter" else "*.py"):
            assert (site / f"collection/{path.stem}_{kind}.html").exists(), path
    for role in (ROOT / "roles").iterdir():
        page = (site / f"collection/{role.name}_role.html").read_text()
        assert "argument_specs" not in page and "Parameter" in page, role


def test_nothing_is_loaded_from_elsewhere(site):
    text = (site / "index.html").read_text() + (site / "collection/pct_container_module.html").read_text()
    assert not re.search(r'<(?:script|link|img)[^>]+(?:src|href)="https?://', text)


def test_links_to_the_checkout_lead_to_the_repository(site):
    assert "/blob/main/lab/README.md" in (site / "start-lab.html").read_text()


def test_the_picture_is_there(site):
    assert 'src="_images/architecture.svg"' in (site / "architecture.html").read_text()
    assert (site / "_images/architecture.svg").exists()
