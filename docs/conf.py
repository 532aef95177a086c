# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sphinx's settings. `make docs` copies the pages and this file into build/docs/source, and builds there."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

_galaxy = yaml.safe_load((Path(__file__).resolve().parent / "galaxy.yml").read_text(encoding="utf-8"))

project = "phoenix.hypervisor"
author = "The Phoenix Hypervisor team"
project_copyright = f"2026, {author}"
version = release = _galaxy["version"]
html_title = f"{project} {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]

extensions = ["myst_parser", "sphinx_antsibull_ext"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
myst_heading_anchors = 3
myst_enable_extensions = ["attrs_block"]
html_theme = "furo"
html_copy_source = False
html_show_sourcelink = False
pygments_style = "ansible"
# A fence that names no language is a screen, not Python.
highlight_language = "text"
# The site is built without a network: nothing of others' inventories, no fonts and no scripts from elsewhere.
intersphinx_mapping: dict[str, tuple[str, None]] = {}
nitpicky = False
# The pages of plugins name Ansible's own, which are in another site.
suppress_warnings = ["ref.ref", "myst.header"]

_REPOSITORY = f"{_galaxy['repository']}/blob/main"


_INDEX = "Roles, modules and plugins"


def _links_to_the_repository(app, name, source):
    """A page names files of the checkout as it would on GitHub; in the site they are links to there."""
    source[0] = re.sub(r"\]\(\.\./([^)#\s]+)", rf"]({_REPOSITORY}/\1", source[0])


def _pages_of_plugins(app, name, source):
    """Pages of plugins and roles are below their index in the menu. The theme has a list of contents of its own and
    puts an error in the place of a second one; the collection's name is in the note below a page's title."""
    if not name.startswith("collection/"):
        return
    text = re.sub(r"^\.\. contents::\n(?:[ ]+:.*\n)+", "", source[0], flags=re.M)
    if name == "collection/index":
        kinds = "\n".join(f"   *_{kind}" for kind in ("role", "module", "inventory", "connection", "lookup", "filter"))
        text = re.sub(r"^Phoenix\.Hypervisor\n=+$", f"{_INDEX}\n{'=' * len(_INDEX)}", text, flags=re.M)
        text = f"{text}\n.. toctree::\n   :hidden:\n   :glob:\n\n{kinds}\n   environment_variables\n"
    else:
        text = re.sub(rf"^{re.escape(project)}\.(\w+ .* -- )", r"\1", text, flags=re.M)
    source[0] = text.replace(":orphan:\n", "", 1)


def _all_pages(app, name, source):
    """Every page is in the menu: those that the index doesn't name are under its @GUIDES@."""
    if name == "index":
        pages = sorted(path.stem for path in Path(app.srcdir).glob("*.md"))
        others = [page for page in pages if page != name and not re.search(rf"^{page}$", source[0], re.M)]
        source[0] = source[0].replace("@GUIDES@", "\n".join(others))


def setup(app):
    """Called by Sphinx."""
    app.connect("source-read", _links_to_the_repository)
    app.connect("source-read", _pages_of_plugins)
    app.connect("source-read", _all_pages)
