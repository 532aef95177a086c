# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What people read is true: every command is run or checked, messages are the code's own, pages are up to date."""

from __future__ import annotations

import ast
import html
import importlib.machinery
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import docs_blocks
import pytest
import yaml
from docs_blocks import ROOT, Block

PAGES = docs_blocks.pages()
BLOCKS = [block for page in PAGES for block in docs_blocks.of_page(page)]
SHELL = [block for block in BLOCKS if block.language in docs_blocks.SHELLS]
LANGUAGES = {*docs_blocks.SHELLS, "python", "json", "yaml", "text", "diff", "{toctree}"}


def of(how: str) -> list[Block]:
    return [block for block in SHELL if block.how == how]


def environment() -> dict[str, str]:
    """Of a person who has sourced .venv/bin/activate in the checkout."""
    return {
        **os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_every_block_says_what_it_is(block):
    assert block.language in LANGUAGES, f"a fence without a language that is known, such as shell or text: {block.text}"
    assert block.how in docs_blocks.HOWS


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_every_command_could_be_run(block):
    """Whether or not it is run elsewhere, too."""
    done = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    commands = docs_blocks.commands(block.text)
    assert commands
    assert {" ".join(words): docs_blocks.problem(words) for words in commands if docs_blocks.problem(words)} == {}


@pytest.mark.parametrize("block", of("run"), ids=str)
def test_what_can_be_run_anywhere_is_run(block):
    done = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", block.text], cwd=ROOT, env=environment(), stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language not in docs_blocks.SHELLS], ids=str)
def test_other_blocks_can_be_read(block):
    if block.language == "json":
        text = block.text.strip()
        json.loads(text if text.startswith(("{", "[")) else f"{{{text.rstrip(',')}}}")
    elif block.language == "yaml":
        yaml.safe_load(block.text)
    elif block.language == "python":
        ast.parse(block.text)


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("ansible-playbook playbooks/none.yml", "there is no playbook"),
        ("ansible-playbook site.yml --nonsense", "nonsense"),
        ("ansible-playbook site.yml -e phoenix_nonsense=1", "has the variable phoenix_nonsense"),
        ("ansible-playbook -l ctid_921", "it names no playbook"),
        ("ansible-doc phoenix.hypervisor.none", "there is no module"),
        ("ansible-doc -t role phoenix.hypervisor.none", "there is no role"),
        ("ansible pve -m phoenix.hypervisor.none", "there is no module"),
        ("make nonsense", "has no target"),
        ("pct nonsense 921", "pct has no command"),
        ("curl http://x:8000/v2/none", "no path of the API"),
        ("cp -r inventories/none inventories/site", "there is no inventories/none"),
        ("tools/none", "there is no tools/none"),
        ("systemctl status vllm_nonsense", "there is no unit"),
        ("nonsense --help", "is no program"),
    ],
)
def test_a_wrong_command_is_found(command, why):
    (words,) = docs_blocks.commands(command)
    assert why in docs_blocks.problem(words)


def test_commands_of_a_block():
    text = "A=1 make x  # that\nsource y && cd z | cat\n\ncurl \\\n  -d '{\"a\": 1}' u"
    assert docs_blocks.commands(text) == [
        ["make", "x"], ["source", "y"], ["cd", "z"], ["cat"], ["curl", "-d", '{"a": 1}', "u"],
    ]  # fmt: skip


# --- messages ------------------------------------------------------------------------------------------------------

MESSAGES = re.findall(r"^### `(.+)`$", (ROOT / "docs/troubleshooting.md").read_text(), re.M)


def _texts() -> str:
    """All text in the code, each f-string with … for what it is given, and that of templates and playbooks."""
    found = []
    for folder in ("plugins", "roles"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr):
                    found.append("".join(str(part.value) if isinstance(part, ast.Constant) else "…"
                                         for part in node.values))  # fmt: skip
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    for path in sorted([*(ROOT / "roles").rglob("*.yml"), *(ROOT / "playbooks").rglob("*.yml")]):
        found.append(re.sub(r"\{\{.*?\}\}", "…", path.read_text(), flags=re.S))
    return " ".join(" ".join(found).split())


TEXTS = _texts()


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_is_the_code_s_own(message):
    parts = [part.strip() for part in message.split("…") if len(part.strip()) > 3]
    assert parts and max(map(len, parts)) > 9
    for part in parts:
        assert part in TEXTS, part


# Of the pages that have a table of what goes wrong; those of AWX and Ansible are not the code's own.
SAID = [
    (name, message)
    for name in ("certificates", "awx")
    for row in re.findall(r"^\| ([^|]*`[^|]*) \|", (ROOT / f"docs/{name}.md").read_text().partition("rong\n")[2], re.M)
    for message in re.findall(r"`([^`]+)`", row)
]
OTHERS_WORDS = ("Playbook not found for project", "unknown plugin '", "Specified hosts and/or --limit",
                "Could not match supplied host pattern", "group_vars/")  # fmt: skip


@pytest.mark.parametrize(("page", "message"), SAID)
def test_what_a_page_says_goes_wrong_is_the_code_s_own_message(page, message):
    if message.startswith(OTHERS_WORDS):
        return
    parts = [part.strip() for part in message.split("…") if len(part.strip()) > 3]
    assert parts
    for part in parts:
        assert part in TEXTS, part


def test_both_pages_have_such_messages():
    assert {page for page, _message in SAID} == {"certificates", "awx"} and len(SAID) > 9


def test_messages_are_many_and_the_most_usual_failures_are_among_them():
    from ansible_collections.phoenix.hypervisor.plugins.module_utils import server_failures

    assert len(MESSAGES) > 25
    told = [failure.name for failure in server_failures.FAILURES
            if any(failure.remedy.startswith(message.partition("…")[0]) for message in MESSAGES)]  # fmt: skip
    assert len(told) >= 9, told


# --- what a person does by the pages ---------------------------------------------------------------------------------


def test_secrets_where_the_page_puts_them_are_read_beside_the_example_s_own_variables(tmp_path):
    """A file NAME.yml beside a folder NAME is not read by Ansible."""
    (place,) = re.findall(r"ansible-vault create inventories/site/(\S+)", (ROOT / "docs/start-node.md").read_text())
    site = tmp_path / "site"
    shutil.copytree(ROOT / "inventories/example", site)
    (site / place).write_text("vllm_model_server_api_key: sk-of-the-vault\n")
    done = subprocess.run(
        ["ansible-inventory", "-i", str(site / "lxc_configs.yml"), "--host", "ctid_921"], cwd=ROOT, env=environment(),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert (found["certificate_source"], found["vllm_model_server_api_key"]) == ("self_signed", "sk-of-the-vault")


# --- screens ---------------------------------------------------------------------------------------------------------


def screens():
    """tools/screens, which makes them."""
    loader = importlib.machinery.SourceFileLoader("screens", str(ROOT / "tools/screens"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("screens", loader))
    sys.modules["screens"] = module  # dataclasses look there
    loader.exec_module(module)
    return module


def test_every_screen_is_shown_and_is_of_the_command_that_makes_it():
    pages = "".join(page.read_text() for page in PAGES)
    made = screens().SCREENS
    names = {f"{screen.name}.svg" for screen in made} | {"benchmark-plot.svg"}
    assert {path.name for path in (ROOT / "docs/screens").iterdir()} == names
    assert [name for name in names if f"screens/{name})" not in pages] == []
    for screen in made:
        text = html.unescape((ROOT / f"docs/screens/{screen.name}.svg").read_text()).replace("\xa0", " ")
        words = re.sub(r"\s+", " ", " ".join(re.findall(r">([^<>]+)</text>", text)).replace("\\", ""))
        assert f"$ {screen.command}" in words, screen.name
        assert not re.search(r"(?:url\(|href=|src=)[\"']?https?:", text), screen.name
        assert problem_of(screen.command) == "", screen.name


def problem_of(command: str) -> str:
    (words,) = docs_blocks.commands(command)
    return docs_blocks.problem(words)


def test_parts_of_a_screen():
    tool = screens()
    screen = tool.Screen("x", "y", (("B", "C"), ("E", "")))
    assert [re.sub(r"\x1b\[\d*m", "", line) for line in tool.shown(screen, list("aBbCdEf"))] == [
        "… 1 line …", "B", "b", "… 2 lines …", "E", "f",
    ]  # fmt: skip
    assert tool.shown(tool.Screen("x", "y"), ["a", "b"]) == ["a", "b"]
    with pytest.raises(SystemExit, match="no line with 'E'"):
        tool.shown(screen, list("aBC"))


def test_a_command_is_shown_as_a_shell_takes_it():
    tool = screens()
    lines = tool.over_lines(f"ansible-playbook {' '.join(['-e a=1'] * 40)}")
    assert max(map(len, lines)) <= tool.COLUMNS and all(line.endswith("\\") for line in lines[:-1])


# --- pages that are made, and links --------------------------------------------------------------------------------


def test_made_pages_are_up_to_date():
    done = subprocess.run([sys.executable, str(ROOT / "tools/pages"), "--check"], capture_output=True, text=True,
                          check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_support_names_every_stack_and_both_ends_of_proxmox():
    from ansible_collections.phoenix.hypervisor.plugins.module_utils import pct_keys

    text = (ROOT / "docs/support.md").read_text()
    for path in (ROOT / "roles/vllm_stack/files/stacks").glob("*/stack.yml"):
        stack = yaml.safe_load(path.read_text())
        (line,) = [line for line in text.splitlines() if line.startswith(f"| `{stack['name']}` ")]
        assert f"| {stack['vllm']['version']} | {stack['torch']['version']} |" in line
        assert stack.get("requires", {}).get("driver", "-") in line
    ends = (pct_keys.OLDEST, pct_keys.NEWEST)
    assert " to ".join(".".join(map(str, end)) for end in ends) in text


def test_the_command_after_a_renewal_is_the_one_that_is_run():
    from ansible_collections.phoenix.hypervisor.plugins.module_utils import server_guard

    assert f"`{' '.join(server_guard.RENEWED)}`" in (ROOT / "roles/vllm_model_server/README.md").read_text()


def test_the_reference_has_every_key():
    from ansible_collections.phoenix.hypervisor.plugins.module_utils import lxc_entry

    text = (ROOT / "docs/json.md").read_text()
    missing = [key for key in lxc_entry.KEYS if f"`{key}`" not in text]
    assert missing == []
    assert not re.search(r"\| *\|$", text, re.M), "each key is described"


@pytest.mark.parametrize("path", sorted(ROOT.glob("roles/*/meta/argument_specs.yml")), ids=lambda path: path.parts[-3])
def test_every_entry_point_of_a_role_can_be_a_page(path):
    for name, spec in yaml.safe_load(path.read_text())["argument_specs"].items():
        assert spec.get("short_description") and spec.get("description"), name
        assert all(option.get("description") for option in (spec.get("options") or {}).values()), name


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://|#|mailto:", target):
            continue
        name, _hash, anchor = target.partition("#")
        path = (page.parent / name).resolve()
        assert path.exists(), target
        if anchor:
            heads = re.findall(r"^#+ (.*)$", path.read_text(), re.M)
            assert anchor in [re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-").replace("_", "-")
                              for head in heads] or anchor in [
                re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads], target  # fmt: skip


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_left_to_be_filled_in(page):
    assert not re.search(r"@[A-Z]{4,}@|TODO|FIXME|XXX", re.sub(r"`[^`]*`", "", page.read_text())), page


def test_the_menu_names_pages_that_there_are():
    text = (ROOT / "docs/index.md").read_text()
    for block in docs_blocks.of_page(ROOT / "docs/index.md"):
        if block.language == "{toctree}":
            names = [line for line in block.text.splitlines() if line and not line.startswith((":", "@"))]
            for name in names:
                assert "collection/index" in name or list((ROOT / "docs").glob(f"{name}.md")), name
    assert "@GUIDES@" in text, "pages that it doesn't name get their place there"


# --- editors and shells --------------------------------------------------------------------------------------------


@pytest.mark.skipif(not (ROOT / "galaxy.yml").exists(), reason="the archive has no hidden files")
def test_vs_code_knows_the_schema():
    settings = json.loads((ROOT / ".vscode/settings.json").read_text())
    (entry,) = settings["json.schemas"]
    assert (ROOT / entry["url"]).is_file()
    assert any(Path("inventories/example/phoenix_lxc_configs.json").match(one) for one in entry["fileMatch"])


def complete(words: list[str]) -> list[str]:
    """What tools/completion.bash offers for the last word."""
    line = " ".join(words)
    script = textwrap.dedent(f"""
        source tools/completion.bash
        COMP_WORDS=({line}{" ''" if not words[-1] else ""})
        COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
        _phoenix_complete
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """)
    done = subprocess.run(
        ["bash", "-c", script], cwd=ROOT, env=environment(), capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    return done.stdout.split()


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_ctids_are_completed(cache):
    example = ["ansible-playbook", "-i", "inventories/example/lxc_configs.yml"]
    assert complete([*example, "site.yml", "-l", "ctid_92"]) == ["ctid_920", "ctid_921"]
    assert "lineage_921" in complete([*example, "site.yml", "-l", "lineage_"])
    assert complete([*example, "-l", "ctid_921,ctid_95"]) == ["ctid_921,ctid_950", "ctid_921,ctid_951"]
    assert "playbooks/status.yml" in complete([*example, "playbooks/st"])
    assert complete([*example, "-l", "nothing"]) == []
    assert list(cache.rglob("*"))


def test_a_changed_inventory_is_read_again(cache, tmp_path):
    folder = tmp_path / "inventory"
    folder.mkdir()
    for name in ("lxc_configs.yml", "phoenix_lxc_configs.json"):
        (folder / name).write_text((ROOT / "inventories/example" / name).read_text())
    words = ["ansible-playbook", "-i", str(folder / "lxc_configs.yml"), "site.yml", "-l", "ctid_9"]
    assert "ctid_951" in complete(words)
    declared = json.loads((folder / "phoenix_lxc_configs.json").read_text())
    del declared["lxc_configs"]["951"]
    (folder / "phoenix_lxc_configs.json").write_text(json.dumps(declared))
    assert "ctid_951" not in complete(words)


def test_an_inventory_with_a_mistake_offers_nothing(cache, tmp_path):
    (tmp_path / "lxc_configs.yml").write_text("plugin: phoenix.hypervisor.lxc_configs\nnodes: {}\n")
    assert complete(["ansible-playbook", "-i", str(tmp_path / "lxc_configs.yml"), "site.yml", "-l", "ctid_"]) == []
