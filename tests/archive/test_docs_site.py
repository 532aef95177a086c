# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`make docs` builds a site with all pages, without a warning and without a network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

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


class Page(HTMLParser):
    """What a page refers to, and the places in it that others can refer to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.targets: set[str] = set()
        self.places: set[str] = set()
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name in ("href", "src") and value:
                self.targets.add(value)
            elif name in ("id", "name") and value:
                self.places.add(value)


def test_every_link_within_the_site_leads_somewhere(site):
    pages = {path: Page(path) for path in site.rglob("*.html") if "_static" not in path.parts}
    dead = []
    for path, page in pages.items():
        for target in page.targets:
            if re.match(r"[a-z]+:", target):
                continue
            name, _hash, place = unquote(target).partition("#")
            there = (path.parent / name.partition("?")[0]).resolve() if name else path
            if not there.is_file() or (place and there in pages and place not in pages[there].places):
                dead.append(f"{path.relative_to(site)}: {target}")
    assert dead == []
    assert sum(len(page.targets) for page in pages.values()) > 1000


def test_no_page_has_an_error_of_the_theme_or_an_address_that_is_none(site):
    pages = {path.name: path.read_text() for path in site.rglob("*.html")}
    assert [name for name, text in pages.items() if "escape hatch" in text] == []
    assert [name for name, text in pages.items() if "mailto:" in text] == []


def test_every_page_of_a_plugin_is_below_its_index_in_the_menu(site):
    text = (site / "collection/index.html").read_text()
    for path in (site / "collection").glob("*_*.html"):
        assert re.search(rf'<li class="toctree-l2[^>]*><a class="reference internal" href="{path.name}">', text), path
