# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stacks as data: what C(stack.yml) may say, and the candidates that a stack and its locks make. Pure functions.

A stack is a folder: C(stack.yml) (the table L(KEYS) has every key of it), C(requirements.lock) with all that is
downloaded and installed, C(build.lock) with what builds the rest. A candidate is one complete way to install it: a
method and a FlashInfer, in the order in which they are tried. Its name, ``<stack>-<12 hex>``, has the digest of what
decides the content of a release; two candidates of one name are the same release.

The standard library only: the module that installs a candidate takes this file along into the container.
"""

from __future__ import annotations

import copy
import difflib
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from .release_plan import StackError

METHODS = ("wheel", "source", "auto")
OFF = "off"
REPOSITORY = "https://github.com/vllm-project/vllm.git"
TORCH_INDEX = "https://download.pytorch.org/whl/"
# Settings of a build that change how long it takes and not what comes of it.
SPEED = re.compile(r"MAX_JOBS|NVCC_THREADS|CMAKE_BUILD_PARALLEL_LEVEL|VERBOSE|S?CCACHE_\w+")
# What of a candidate decides the content of its release. Of C(source), see `digest`.
CONTENT = ("stack", "method", "python", "vllm", "torch", "cuda", "flashinfer", "aliases")


# --- what a value may be ------------------------------------------------------------------------------------------


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and value.isprintable()


def _like(pattern: str) -> Callable[[Any], bool]:
    compiled = re.compile(pattern)
    return lambda value: isinstance(value, str) and bool(compiled.fullmatch(value))


def _list_of(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(fits(item) for item in value)


def _map_of(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, Mapping) and all(_is_text(key) and fits(value[key]) for key in value)


def _is_hole(value: Any) -> bool:
    return isinstance(value, Mapping) and set(value) == {"id", "text", "fixed_in"} and _map_of(_is_text)(value)


class Kind(NamedTuple):
    """What a value may be.

    Attributes:
        fits: whether a value is one.
        what: continues "… must be".
    """

    fits: Callable[[Any], bool]
    what: str


NAME_PATTERN = r"[a-z0-9][a-z0-9._-]*"
_VERSION = r"[0-9]+(?:\.[0-9]+)*(?:(?:a|b|rc|\.post|\.dev)[0-9]+)*(?:\+[a-z0-9.]+)?"
_SHA256 = r"[0-9a-f]{64}"
_VARIABLE = r"[A-Za-z_][A-Za-z0-9_]*"


def _is_environment(value: Any) -> bool:
    """Numbers are taken for the text they are; a boolean is not, because nobody knows which text was meant."""
    return isinstance(value, Mapping) and all(
        _like(_VARIABLE)(key) and isinstance(item, (str, int, float)) and not isinstance(item, bool)
        for key, item in value.items()
    )


TEXT = Kind(_is_text, "text in one line")
TEXTS = Kind(_list_of(_is_text), "a list of texts")
NAME = Kind(_like(NAME_PATTERN), "small letters, digits, dots and dashes")
VERSION = Kind(_like(_VERSION), 'a version in quotes, such as "2.8.0"')
NUMBERS = Kind(_like(r"[0-9]+(\.[0-9]+)*"), 'numbers with dots, in quotes, such as "570.86"')
PYTHON = Kind(_like(r"3\.[0-9]+"), 'a version in quotes, such as "3.11"')
CUDA = Kind(_like(r"cu[0-9]{3}|cpu"), 'PyTorch\'s name for it, such as "cu128", or "cpu"')
COMMIT = Kind(_like(r"[0-9a-f]{40}|[A-Za-z][A-Za-z0-9._/-]*"), "40 hexadecimal digits, a tag or a branch")
PREFIX = Kind(_like(r"[0-9a-f]{7,40}"), "the first digits of a commit, at least 7, in quotes")
HASHES = Kind(lambda value: bool(value) and _list_of(_like(_SHA256))(value), "a list of SHA-256 digests")
RUNG = Kind(_like(rf"{_VERSION}|off"), 'a version in quotes, or "off" (in quotes too)')
ARCHITECTURES = Kind(_list_of(_like(r"[0-9]+\.[0-9]+")), 'a list such as ["12.0"], in quotes')
ENVIRONMENT = Kind(_is_environment, "names of variables with texts (true and false in quotes)")
PACKAGES = Kind(_list_of(_like(r"[a-z0-9][a-z0-9+.-]*")), "a list of the distribution's packages")
DAY = Kind(_like(r"20[0-9]{2}-[01][0-9]-[0-3][0-9]"), 'a day in quotes, such as "2025-09-20"')
FLAG = Kind(lambda value: isinstance(value, bool), "true or false")
GIGABYTES = Kind(lambda value: type(value) in (int, float) and 0 < value < 1000, "a number of gigabytes")


def one_of(*words: str) -> Kind:
    """A value that is one of these words."""
    return Kind(lambda value: value in words, f"{', '.join(words[:-1])} or {words[-1]}")


class Key(NamedTuple):
    """A key of C(stack.yml).

    Attributes:
        kind: what its value may be.
        text: what it says.
        needed: whether a stack must have it.
    """

    kind: Kind
    text: str
    needed: bool = False


KEYS: dict[str, Key] = {
    "name": Key(NAME, "The folder's name; the name of a release begins with it.", True),
    "title": Key(TEXT, "What it is, for people."),
    "method": Key(one_of(*METHODS), "How vLLM comes; auto is wheel, then source when a gate refuses the wheel.", True),
    "python": Key(PYTHON, "The Python that it is locked for.", True),
    "torch.version": Key(VERSION, "PyTorch's version, as the lock has it.", True),
    "torch.channel": Key(one_of("stable", "nightly", "test"), "Which of PyTorch's indexes has it; stable by default."),
    "torch.cuda": Key(CUDA, "The CUDA that it is built for; cpu for none.", True),
    "vllm.version": Key(VERSION, "What `vllm --version` must say; a source build gets it.", True),
    "vllm.torch": Key(VERSION, "The PyTorch that vLLM's wheel pins; no other goes with the wheel."),
    "vllm.repository": Key(TEXT, "Where its source is."),
    "vllm.commit": Key(COMMIT, "Which source: a commit, or a tag with commit_prefix; main for development only."),
    "vllm.commit_prefix": Key(PREFIX, "What the commit of a tag begins with; another commit is refused."),
    "flashinfer.version": Key(RUNG, "FlashInfer's version that is tried first."),
    "flashinfer.ladder": Key(Kind(_list_of(RUNG.fits), "a list of versions"), "What is tried after it, in order."),
    "flashinfer.hashes": Key(
        Kind(_map_of(HASHES.fits), "versions with lists of SHA-256 digests"),
        "Its files' digests, for each version. Without hashes it is in the lock like everything else.",
    ),
    "build.environment": Key(ENVIRONMENT, "Variables of the build."),
    "build.memory_per_job_gb": Key(GIGABYTES, "The memory that one compiler job is given, for MAX_JOBS."),
    "build.packages": Key(PACKAGES, "What a build needs of the distribution."),
    "build.precompiled": Key(TEXT, "A wheel (requirement with its hash) whose compiled files a source build takes."),
    "build.overlay": Key(TEXTS, "Files (patterns) of that wheel that are put into the source as well."),
    "build.sdists": Key(TEXTS, "Packages of the lock that are published as source only, and are built."),
    "as_of": Key(DAY, "tools/lock_stack.py takes nothing that was published later, but what requirements.in pins."),
    "requires.driver": Key(NUMBERS, "The least NVIDIA driver."),
    "requires.toolkit": Key(NUMBERS, "The least CUDA toolkit (nvcc)."),
    "requires.arch": Key(ARCHITECTURES, "The compute capabilities that the compiled files must have code for."),
    "known_holes": Key(
        Kind(_list_of(_is_hole), "a list of {id, text, fixed_in}"), "Security holes of this vLLM that are known."
    ),
    "notes": Key(TEXTS, "What one should know before choosing it, a sentence each."),
    "uv.version": Key(VERSION, "The uv that installs it.", True),
    "uv.hashes": Key(HASHES, "Its wheels' digests.", True),
    "pip.version": Key(VERSION, "The pip that downloads it, where uv isn't what does."),
    "pip.hashes": Key(HASHES, "Its wheel's digest."),
    "excluded": Key(TEXTS, "Packages that tools/lock_stack.py leaves out of the lock."),
    "distribution_aliases": Key(
        Kind(_map_of(VERSION.fits), "names with versions"), "Distributions that are recorded and have no files."
    ),
    "system_packages": Key(PACKAGES, "What a release needs of the distribution."),
    "environment": Key(ENVIRONMENT, "Variables of every model server on it."),
    "gpu": Key(FLAG, "Whether it needs a GPU; true by default."),
}
SECTIONS = tuple(dict.fromkeys(key.partition(".")[0] for key in KEYS if "." in key))
# Keys below which any name may stand. Overrides are merged into them name by name.
_OPEN = ("flashinfer.hashes", "build.environment", "environment", "distribution_aliases")


def nearest(word: str, words: Iterable[str]) -> str:
    """Return what somebody may have meant, as the end of a sentence; all words when nothing is near."""
    words = list(words)
    near = difflib.get_close_matches(str(word), words, 1)
    return f"Did you mean {near[0]}?" if near else f"There are {', '.join(words)}."


# --- locks --------------------------------------------------------------------------------------------------------


class Pin(NamedTuple):
    """A package of a lock: its version, its files' hashes, its lines."""

    version: str
    hashes: tuple[str, ...]
    text: str


def normal(name: str) -> str:
    """Return a distribution's name in its normal form."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(lock: str) -> dict[str, Pin]:
    """Return name → pin of a lock, comments left out.

    Raises:
        StackError: a line is neither a comment nor a package with a version. The sentence has no beginning.
    """
    found: dict[str, Pin] = {}
    text = "\n".join(line.rstrip() for line in lock.splitlines() if not line.lstrip().startswith("#"))
    for entry in re.split(r"(?<!\\)\n", text):
        if not entry.strip():
            continue
        match = re.match(r"([A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[^\]]*\])?==([^\s;\\]+)", entry)
        if not match:
            raise StackError(f"has {entry.split()[0]!r}, which is no package with a version and hashes")
        name = normal(match[1])
        if name in found:
            raise StackError(f"has {name} twice")
        hashes = tuple(sorted(re.findall(rf"--hash=sha256:({_SHA256})(?!\S)", entry)))
        found[name] = Pin(match[2], hashes, entry.strip() + "\n")
    return found


def locked_python(lock: str) -> str:
    """Return the Python that a lock says it is for, C("") when it doesn't say."""
    match = re.match(r"# .* for Python (3\.[0-9]+) on Linux", lock)
    return match[1] if match else ""


def torch_index(stack: Mapping[str, Any]) -> str:
    """Return the index that publishes the stack's PyTorch, C("") when PyPI does."""
    torch = stack["torch"]
    channel = torch.get("channel", "stable")
    if "+" not in torch["version"] and channel == "stable":
        return ""
    return TORCH_INDEX + ("" if channel == "stable" else f"{channel}/") + torch["cuda"]


# --- overrides ----------------------------------------------------------------------------------------------------


def check_keys(values: Any, where: str) -> None:
    """Make sure that all keys are known and all values can be what they are. C(None) stands for "not there".

    Raises:
        StackError: one isn't.
    """
    if not isinstance(values, Mapping):
        raise StackError(f"{where} must be keys with values, not {type(values).__name__}.")
    for name, value in values.items():
        if name in SECTIONS:
            if value is None:
                continue
            if not isinstance(value, Mapping):
                raise StackError(f"{where}: {name} must be keys with values, not {value!r}.")
            inner = [key.partition(".")[2] for key in KEYS if key.startswith(f"{name}.")]
            for key in value:
                if key not in inner:
                    raise StackError(f"{where}: {name}.{key} isn't known. {nearest(key, inner)}")
                _check_value(f"{name}.{key}", value[key], where)
        elif name in KEYS:
            _check_value(name, value, where)
        else:
            top = [key for key in KEYS if "." not in key]
            raise StackError(f"{where}: {name} isn't known. {nearest(name, [*top, *SECTIONS])}")


def _check_value(key: str, value: Any, where: str) -> None:
    if key in _OPEN and isinstance(value, Mapping):
        value = {name: item for name, item in value.items() if item is not None}
    if value is not None and not KEYS[key].kind.fits(value):
        raise StackError(f"{where}: {key} is {value!r} and must be {KEYS[key].kind.what}.")


def merged(
    stack: Mapping[str, Any], overrides: Mapping[str, Any], where: str = "vllm_stack_overrides"
) -> dict[str, Any]:
    """Return a stack with single values of it replaced; C(None) takes one away. `check` finds what then contradicts.

    Args:
        stack: the content of a C(stack.yml).
        overrides: the same keys, as many as one wants to change.
        where: what the overrides are called, for messages.

    Raises:
        StackError: a key isn't known, or its value can't be one.
    """
    check_keys(overrides, where)
    if overrides.get("name") not in (None, stack.get("name")):
        raise StackError(f"{where}: name can't be changed; it is the name of the stack's folder.")
    result = _patched(stack, overrides)
    vllm = overrides.get("vllm") or {}
    if vllm.get("commit") and not vllm.get("commit_prefix"):
        result["vllm"].pop("commit_prefix", None)  # that of the commit which was replaced
    return result


def _patched(old: Any, new: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(copy.deepcopy(old)) if isinstance(old, Mapping) else {}
    for key, value in new.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = _patched(result.get(key), value) if isinstance(value, Mapping) else copy.deepcopy(value)
    return result


# --- check --------------------------------------------------------------------------------------------------------


def check(stack: Mapping[str, Any], requirements: str, build_requirements: str = "", where: str = "") -> None:
    """Make sure that a stack and its locks can be installed, and that they speak of the same.

    Args:
        stack: the content of its C(stack.yml), overrides merged.
        requirements: its C(requirements.lock), C("") when there is none.
        build_requirements: its C(build.lock), C("") when there is none.
        where: what the stack is called in messages.

    Raises:
        StackError: something is missing, can't be, or contradicts.
    """
    where = where or f"stack {stack.get('name', '(without a name)') if isinstance(stack, Mapping) else ''}".strip()
    check_keys(stack, where)
    for key, known in KEYS.items():
        section, _dot, inner = key.rpartition(".")
        values = (stack.get(section) or {}) if section else stack
        if known.needed and values.get(inner) is None:
            raise StackError(f"{where}: {key} is missing. {known.text}")
    again = f"`make lock NAME={stack['name']}` writes it again"
    # Said first, because a lock can't mend it.
    _check_mixing(stack, where)
    locked = _checked_pins(stack, requirements, "requirements.lock", where)
    _check_against_lock(stack, requirements, locked, where)
    hashes = (stack.get("flashinfer") or {}).get("hashes")
    for rung in filter(None, rungs(stack)):
        if hashes is not None and not hashes.get(rung):
            raise StackError(f"{where}: flashinfer.hashes has none for {rung}. Add the SHA-256 digest of its file.")
        if hashes is None and ("flashinfer-python" not in locked or locked["flashinfer-python"].version != rung):
            raise StackError(
                f"{where}: FlashInfer {rung} is neither in requirements.lock nor in flashinfer.hashes. Add the SHA-256 "
                "digest of its file to flashinfer.hashes."
            )
    if stack["method"] != "wheel" and not (stack.get("vllm") or {}).get("commit"):
        raise StackError(f"{where}: method is {stack['method']}, and vllm.commit is missing: name the commit to build.")
    if build_requirements:
        building = _checked_pins(stack, build_requirements, "build.lock", where)
        if "torch" in building and building["torch"].version != locked["torch"].version:
            raise StackError(
                f"{where}: it would be built with torch {building['torch'].version} (build.lock) and run with "
                f"{locked['torch'].version} (requirements.lock); {again}."
            )
    elif stack["method"] != "wheel" or (stack.get("build") or {}).get("sdists") or _is_built(stack):
        raise StackError(f"{where}: something of it is built, and it has no build.lock; {again}.")
    precompiled = (stack.get("build") or {}).get("precompiled")
    if precompiled and not any(pin.hashes for pin in _parsed(precompiled, f"{where}: build.precompiled").values()):
        raise StackError(f"{where}: build.precompiled has no hash: write NAME==VERSION --hash=sha256:….")


def _check_mixing(stack: Mapping[str, Any], where: str) -> None:
    """Refuse a wheel of vLLM with a PyTorch that it wasn't built against."""
    pinned, version = stack["vllm"].get("torch"), stack["torch"]["version"]
    if stack["method"] != "source" and pinned and version.partition("+")[0] != pinned:
        raise StackError(
            f"{where}: vLLM's wheel {stack['vllm']['version']} is built against torch {pinned} and doesn't run with "
            f"{version}. Take away torch.version, or take a stack with method: source, which builds vLLM against it."
        )


def _parsed(lock: str, where: str) -> dict[str, Pin]:
    try:
        return pins(lock)
    except StackError as error:
        raise StackError(f"{where} {error}.") from None


def _checked_pins(stack: Mapping[str, Any], lock: str, file: str, where: str) -> dict[str, Pin]:
    """Return the pins of a lock in which every package has a hash."""
    place = torch_index(stack)
    remedy = f"`make lock NAME={stack['name']}` writes it" + (f", where {place} can be reached" if place else "")
    locked = _parsed(lock, f"{where}: {file}")
    if not locked:
        raise StackError(f"{where}: it has no {file}, and nothing is installed without hashes; {remedy}.")
    bare = [f"{name} {pin.version}" for name, pin in locked.items() if not pin.hashes]
    if bare:
        raise StackError(f"{where}: {file} has no hash of {', '.join(bare)}; {remedy}.")
    return locked


def _check_against_lock(stack: Mapping[str, Any], lock: str, locked: Mapping[str, Pin], where: str) -> None:
    """Refuse what a lock contradicts: it has the files of one version, for one Python."""
    own = (
        "A lock has the files of one set of versions: for another, copy the stack's folder to one of yours under "
        "another name, change requirements.in and stack.yml there, and run `make lock NAME=<folder>`."
    )
    python = locked_python(lock)
    if python and python != stack["python"]:
        raise StackError(f"{where}: python is {stack['python']}, and requirements.lock is for {python}. {own}")
    if "torch" not in locked:
        raise StackError(f"{where}: requirements.lock has no torch. {own}")
    if locked["torch"].version != stack["torch"]["version"]:
        raise StackError(
            f"{where}: torch.version is {stack['torch']['version']}, and requirements.lock has "
            f"{locked['torch'].version}. {own}"
        )
    aliases = stack.get("distribution_aliases") or {}
    version = aliases.get("vllm") or (locked["vllm"].version if "vllm" in locked else "")
    if stack["method"] != "source" and not version:
        raise StackError(f"{where}: method is {stack['method']}, and requirements.lock has no wheel of vllm. {own}")
    if stack["method"] != "source" and version != stack["vllm"]["version"]:
        raise StackError(
            f"{where}: vllm.version is {stack['vllm']['version']}, and requirements.lock has {version}. {own}"
        )


# --- candidates ---------------------------------------------------------------------------------------------------


def rungs(stack: Mapping[str, Any]) -> list[str]:
    """Return the versions of FlashInfer in the order in which they are tried; C("") is none."""
    flashinfer = stack.get("flashinfer") or {}
    ladder = [flashinfer.get("version", OFF), *(flashinfer.get("ladder") or [])]
    return list(dict.fromkeys("" if rung == OFF else rung for rung in ladder))


def _is_built(stack: Mapping[str, Any]) -> bool:
    """Whether its FlashInfer is a source distribution, as all are that have hashes of their own."""
    return (stack.get("flashinfer") or {}).get("hashes") is not None and any(rungs(stack))


def methods(stack: Mapping[str, Any]) -> list[str]:
    """Return the methods in the order in which they are tried."""
    return ["wheel", "source"] if stack["method"] == "auto" else [stack["method"]]


def cuda_version(tag: str) -> str:
    """Return "12.8" of "cu128", C("") of "cpu"."""
    return "" if tag == "cpu" else f"{tag[2:-1]}.{tag[-1]}"


def candidates(
    stack: Mapping[str, Any],
    requirements: str,
    build_requirements: str = "",
    settings: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Return the ways to install a stack that passed `check`, in the order in which they are tried.

    Args:
        stack: the content of its C(stack.yml), overrides merged.
        requirements: its C(requirements.lock).
        build_requirements: its C(build.lock).
        settings: C(repository), a mirror of vLLM's git repository.
    """
    mirror = (settings or {}).get("repository") or ""
    return [
        _candidate(stack, requirements, build_requirements, method, rung, mirror)
        for method in methods(stack)
        for rung in rungs(stack)
    ]


def _candidate(
    stack: Mapping[str, Any], requirements: str, build_requirements: str, method: str, flashinfer: str, mirror: str
) -> dict[str, Any]:
    build = stack.get("build") or {}
    requires = stack.get("requires") or {}
    locked = pins(requirements)
    aliases = dict(stack.get("distribution_aliases") or {})
    source: dict[str, Any] = {}
    if method == "source":
        # What the lock has for the wheel's sake is what is built now.
        locked.pop("vllm", None)
        aliases.pop("vllm", None)
        source = {
            "repository": mirror or stack["vllm"].get("repository") or REPOSITORY,
            "commit": stack["vllm"]["commit"],
            "commit_prefix": stack["vllm"].get("commit_prefix", ""),
            "version": stack["vllm"]["version"],
            "environment": _texts(build.get("environment")),
            "memory_per_job_gb": build.get("memory_per_job_gb", 6),
            "precompiled": build.get("precompiled", ""),
            "overlay": list(build.get("overlay") or []),
        }
    hashes = (stack.get("flashinfer") or {}).get("hashes")
    if not flashinfer:
        locked.pop("flashinfer-python", None)
    elif hashes is not None:
        own = tuple(sorted(hashes[flashinfer]))
        lines = [f"flashinfer-python=={flashinfer}", *(f"--hash=sha256:{value}" for value in own)]
        locked["flashinfer-python"] = Pin(flashinfer, own, _joined(lines))
    built = bool(source or build.get("sdists") or (flashinfer and hashes is not None))
    result = {
        "stack": stack["name"],
        "title": stack.get("title", ""),
        "python": stack["python"],
        "vllm": stack["vllm"]["version"],
        "torch": stack["torch"]["version"],
        "cuda": cuda_version(stack["torch"]["cuda"]),
        "channel": stack["torch"].get("channel", "stable"),
        "torch_index": torch_index(stack),
        "method": method,
        "flashinfer": flashinfer,
        "requirements": "".join(locked[name].text for name in sorted(locked)),
        "build_requirements": "".join(pin.text for pin in pins(build_requirements).values()) if built else "",
        "aliases": aliases,
        "uv": _tool(stack, "uv"),
        "pip": _tool(stack, "pip"),
        "source": source,
        "requires": {
            "driver": requires.get("driver", ""),
            # Its compiler makes vLLM, and FlashInfer's kernels at run time; a wheel without FlashInfer needs none.
            "toolkit": requires.get("toolkit", "") if source or flashinfer else "",
            "arch": list(requires.get("arch") or []),
        },
        "environment": _texts(stack.get("environment")),
        "packages": {
            "install": list(stack.get("system_packages") or []),
            "build": list(build.get("packages") or []) if built else [],
        },
    }
    return {"release": release_name(result), **result}


def _joined(lines: list[str]) -> str:
    return " \\\n    ".join(lines) + "\n"


def _texts(environment: Mapping[str, Any] | None) -> dict[str, str]:
    return {key: str(value) for key, value in sorted((environment or {}).items())}


def _tool(stack: Mapping[str, Any], name: str) -> dict[str, Any]:
    tool = stack.get(name) or {}
    return {"version": tool["version"], "hashes": list(tool["hashes"])} if tool else {}


def digest(candidate: Mapping[str, Any]) -> str:
    """Return 12 hexadecimal digits of what decides the content of a candidate's release.

    The order of keys and packages, comments, places (mirrors, indexes) and what only makes a build faster don't count;
    nor does what a release is tried against.
    """
    source = {
        key: value
        for key, value in candidate["source"].items()
        if key not in ("repository", "memory_per_job_gb", "environment", "precompiled", "commit_prefix")
    }
    if source:
        source["commit"] = candidate["source"]["commit_prefix"] or source["commit"]
        environment = candidate["source"]["environment"]
        source["environment"] = {key: value for key, value in environment.items() if not SPEED.fullmatch(key)}
        source["precompiled"] = _locked(candidate["source"]["precompiled"])
    content = {key: candidate[key] for key in CONTENT}
    locks = [_locked(candidate[key]) for key in ("requirements", "build_requirements")]
    text = json.dumps([content, source, locks], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _locked(lock: str) -> dict[str, list[Any]]:
    return {name: [pin.version, pin.hashes] for name, pin in pins(lock).items()}


def release_name(candidate: Mapping[str, Any]) -> str:
    """Return the name of a candidate's release."""
    return f"{candidate['stack']}-{digest(candidate)}"


def is_resolved(candidate: Mapping[str, Any]) -> bool:
    """Return whether a candidate's source is fixed: a commit or a tag whose commit is known, no branch that moves."""
    source = candidate["source"]
    return not source or bool(source["commit_prefix"] or re.fullmatch(r"[0-9a-f]{40}", source["commit"]))


def resolved(candidate: Mapping[str, Any], commit: str) -> dict[str, Any]:
    """Return a candidate whose tag or branch is this commit, with the name that it then has.

    Raises:
        StackError: the tag has moved.
    """
    prefix = candidate["source"]["commit_prefix"]
    if not commit.startswith(prefix):
        raise StackError(
            f"stack {candidate['stack']}: {candidate['source']['commit']} of {candidate['source']['repository']} is "
            f"{commit} and must begin with {prefix} (vllm.commit_prefix): it isn't what was released. Name another "
            "repository."
        )
    result = {**candidate, "source": {**candidate["source"], "commit": commit}}
    return {**result, "release": release_name(result)}
