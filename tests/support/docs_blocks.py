# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The blocks of code in what people read, and what each command in them may be.

A fenced block has its language, and in an HTML comment on the line before it how it is proved: C(run) is run in the
checkout, C(lab) in the lab, C(slow) there in the full run only, C(full) on the lab's own containers in the full run.
C(check), also the default, is only checked: playbooks, options, variables, targets, plugins and paths that it names are
there. Blocks that are indented are checked when they begin with a program that is known here.
"""

from __future__ import annotations

import functools
import json
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
HOWS = ("check", "run", "lab", "slow", "full")
SHELLS = ("shell", "bash", "sh", "console")
# Paths of vLLM's API, and of others that pages speak of.
API = {"/v1/models", "/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/health", "/metrics"}
# Programs of which only the words are looked at: they are not ours, and need a node, a container or a network.
OTHERS = {
    "ansible-builder", "ansible-galaxy", "ansible-navigator", "ansible-vault", "apt-get", "cd", "chmod", "df", "dmesg",
    "echo", "git", "ls", "mkdir", "nvidia-modprobe", "nvidia-smi", "pip", "podman", "python", "python3", "rm", "scp",
    "ss", "ssh", "ssh-copy-id", "tail",
}  # fmt: skip


@dataclass(frozen=True)
class Block:
    """A block of code.

    :ivar page: the file, relative to the checkout
    :ivar line: of its first line
    :ivar how: how it is proved
    """

    page: str
    line: int
    language: str
    how: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[Path]:
    """What people read."""
    found = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "roles").glob("*/README.md"))]
    return [*found, *sorted((ROOT / "inventories").glob("*/README.md")), ROOT / "lab/README.md"]


def of_page(path: Path) -> list[Block]:
    """The blocks of a page."""
    name = str(path.relative_to(ROOT))
    return list(_blocks(name, path.read_text(encoding="utf-8").splitlines()))


def _blocks(page: str, lines: list[str]):
    how, place = "check", 0
    while place < len(lines):
        line = lines[place]
        fence = re.fullmatch(r"(`{3,})\s*(\{?\w*\}?)\s*", line)
        marked = re.fullmatch(r"<!--\s*(\w+)\s*-->", line)
        if fence:
            ends = (at for at in range(place + 1, len(lines)) if lines[at].startswith(fence[1]))
            end = next(ends, len(lines))
            yield Block(page, place + 1, fence[2], how, "\n".join(lines[place + 1 : end]))
            place, how = end, "check"
        elif line.startswith("    ") and (place == 0 or not lines[place - 1].strip()):
            end = next((at for at in range(place, len(lines)) if lines[at] and not lines[at].startswith("    ")),
                       len(lines))  # fmt: skip
            text = "\n".join(one[4:] for one in lines[place:end]).rstrip()
            words = text.split()
            if words and (words[0] in {*programs(), *OTHERS} or words[0].startswith("./")):
                yield Block(page, place + 1, "shell", "check", text)
            place = end - 1
        elif line.strip():
            how = marked[1] if marked else "check"
        place += 1


def commands(text: str) -> list[list[str]]:
    """The words of each command of a shell block, without comments, assignments before it, and what a pipe joins."""
    text = re.sub(r"(^|\s)#.*$", r"\1", text.replace("\\\n", " "), flags=re.M)
    lexer = shlex.shlex(text, posix=True, punctuation_chars="&|;\n")
    lexer.whitespace = " \t"
    lexer.commenters = ""
    lexer.whitespace_split = True
    found: list[list[str]] = [[]]
    for word in lexer:
        if word and set(word) <= set("&|;\n"):
            found.append([])
        else:
            found[-1].append(word)
    return [words for one in found if (words := _without_assignments(one))]


def _without_assignments(words: list[str]) -> list[str]:
    while words and re.fullmatch(r"\w+=.*", words[0], re.S):
        words = words[1:]
    return words


# --- what is wrong with a command ---------------------------------------------------------------------------------


def problem(words: list[str]) -> str:
    """What is wrong with a command, "" when nothing is."""
    program, arguments = words[0], words[1:]
    checks = programs()
    if program in checks:
        return checks[program](arguments)
    if program.startswith(("tools/", "lab/", "./", ".ci/")):
        return "" if (ROOT / program).is_file() else f"there is no {program}"
    return "" if program in OTHERS else f"{program} is no program that tests/support/docs_blocks.py knows"


def programs() -> dict:
    """Checks of the programs that more is known of."""
    return {
        "ansible": _ansible, "ansible-playbook": _playbook, "ansible-inventory": _inventory, "ansible-doc": _doc,
        "make": _make, "pct": _pct, "curl": _curl, "cp": _source, "source": _source, "$EDITOR": _source,
        "systemctl": _unit, "journalctl": _unit, "export": lambda words: "", "molecule": lambda words: "",
    }  # fmt: skip


def _options(cli: str, arguments: list[str]) -> str:
    """What ansible-core's own parser thinks of a command line."""
    module, name = {
        "ansible": ("adhoc", "AdHocCLI"), "ansible-playbook": ("playbook", "PlaybookCLI"),
        "ansible-inventory": ("inventory", "InventoryCLI"), "ansible-doc": ("doc", "DocCLI"),
    }[cli]  # fmt: skip
    program = f"import sys, ansible.cli.{module} as m\nc = m.{name}([{cli!r}, *sys.argv[1:]])\n" \
        "c.init_parser()\nc.parser.parse_args(sys.argv[1:])"  # fmt: skip
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stderr.strip().splitlines()[-1]


@functools.lru_cache
def variables() -> frozenset:
    """Variables that a run may be given: of the roles, and those that playbooks read."""
    names = set()
    for path in ROOT.glob("roles/*/meta/argument_specs.yml"):
        for spec in yaml.safe_load(path.read_text())["argument_specs"].values():
            names |= set(spec.get("options") or {})
    for path in ROOT.glob("playbooks/**/*.yml"):
        names |= set(re.findall(r"[a-z]\w+", path.read_text()))
    return frozenset(names)


def _given(arguments: list[str]) -> str:
    """What is wrong with the variables of a command line."""
    for place, word in enumerate(arguments):
        if word not in ("-e", "--extra-vars"):
            continue
        text = arguments[place + 1]
        if text.startswith("@"):
            if not (ROOT / text[1:]).is_file():
                return f"there is no {text[1:]}"
            continue
        names = json.loads(text) if text.startswith("{") else [part.partition("=")[0] for part in shlex.split(text)]
        unknown = [name for name in names if name not in variables()]
        if unknown:
            return f"no role and no playbook has the variable {', '.join(unknown)}"
    return ""


def _playbook(arguments: list[str]) -> str:
    valued = {"-i", "-l", "-e", "--limit", "--extra-vars", "--inventory", "-t", "--tags"}
    books = [word for place, word in enumerate(arguments)
             if not word.startswith("-") and (place == 0 or arguments[place - 1] not in valued)]  # fmt: skip
    for book in books:
        own = book.removeprefix("phoenix.hypervisor.")
        path = ROOT / "playbooks" / f"{own}.yml" if own != book else ROOT / book
        if not path.is_file():
            return f"there is no playbook {book}"
    if not books:
        return "it names no playbook"
    return _given(arguments) or _options("ansible-playbook", arguments)


def _ansible(arguments: list[str]) -> str:
    place = arguments.index("-m") if "-m" in arguments else -1
    if place >= 0:
        module = arguments[place + 1]
        own = module.removeprefix("phoenix.hypervisor.")
        if own != module and not (ROOT / f"plugins/modules/{own}.py").is_file():
            return f"there is no module {module}"
    return _options("ansible", arguments)


def _inventory(arguments: list[str]) -> str:
    return _options("ansible-inventory", arguments)


def _doc(arguments: list[str]) -> str:
    kind = arguments[arguments.index("-t") + 1] if "-t" in arguments else "module"
    folders = {"module": "plugins/modules", "role": "roles"}
    for word in arguments:
        own = word.removeprefix("phoenix.hypervisor.")
        folder = ROOT / folders.get(kind, f"plugins/{kind}")
        if own != word and not any((folder / f"{own}{end}").exists() for end in ("", ".py", ".yml")):
            return f"there is no {kind} {word}"
    return _options("ansible-doc", arguments)


def _make(arguments: list[str]) -> str:
    heads = re.findall(r"^([a-z -]+):", (ROOT / "Makefile").read_text(), re.M)
    there = {name for head in heads for name in head.split()}
    unknown = [word for word in arguments if "=" not in word and word not in there]
    return f"the Makefile has no target {', '.join(unknown)}" if unknown else ""


def _pct(arguments: list[str]) -> str:
    known = (ROOT / "lab/node/cli.py").read_text()
    is_known = re.search(rf'"{re.escape(arguments[0])}"', known)
    return "" if is_known else f"pct has no command {arguments[0]}"


def _curl(arguments: list[str]) -> str:
    urls = [word for word in arguments if re.match(r"https?://", word)]
    bad = [url for url in urls if re.sub(r"^https?://[^/]+", "", url) not in API]
    if bad or not urls:
        return f"no path of the API: {', '.join(bad) or 'it has no URL'}"
    bodies = [arguments[place + 1] for place, word in enumerate(arguments) if word == "-d"]
    for body in bodies:
        json.loads(body)
    return ""


def _source(arguments: list[str]) -> str:
    """The file that is read is there; what a step before has made is the site's own."""
    path = next(word for word in arguments if not word.startswith("-"))
    own = ("inventories/site", ".venv/", "/")
    if path.startswith(own):
        name = path.replace("inventories/site", "inventories/example")
        return "" if path.startswith((".venv/", "/")) or (ROOT / name).exists() else f"there is no {name}"
    return "" if (ROOT / path).exists() else f"there is no {path}"


def _unit(arguments: list[str]) -> str:
    units = [word for word in arguments if re.fullmatch(r"(vllm|phoenix)\w*(\.\w+)?", word)]
    known = "\n".join(path.name for path in ROOT.glob("roles/*/templates/*")) + " vllm_release.service"
    unknown = [unit for unit in units if unit.partition(".")[0] not in known]
    return f"there is no unit {', '.join(unknown)}" if unknown else ""
