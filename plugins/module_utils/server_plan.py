# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a model server should be, what it is, and what is to be done about the difference. Pure functions.

All that a server runs on is a *state*: its unit, its engine config, its secrets and its release. A state is named by
its digest. What a unit names never changes under it: the release is named by its real path, the files by the digest. So
the unit is the only thing that a change replaces, in one rename, and a container that is restarted at any moment of a
change starts one state whole, never a mixture.

The unit carries the digest in the environment of its process. A running server whose environment has another digest
runs something else than what is declared, and is restarted; a run that died between writing and restarting is repaired
by the next one. A state is good once its server answered. What didn't become good is undone: the last good state is the
target then.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from ansible_collections.phoenix.hypervisor.plugins.module_utils import engine_args
from ansible_collections.phoenix.hypervisor.plugins.module_utils.server_guard import own_file
from ansible_collections.phoenix.hypervisor.plugins.module_utils.server_switch import Room, model_in

DIGEST_VARIABLE = "PHOENIX_DIGEST"
# Words in the unit's template that are known only here. Without the first two a change would not reach the server.
EXEC_START_WORD, DIGEST_WORD = "@EXEC_START@", "@DIGEST@"
# A line of its own: what the release and the secrets add to the environment.
ENVIRONMENT_WORD = "@ENVIRONMENT@"
# A line of its own: what copies the certificate to where the server reads it.
CERTIFICATE_WORD = "@CERTIFICATE@"
# Only between double quotes.
CACHE_WORD = "@CACHE@"
GUARD_WORD = "@GUARD@"
# The properties of the unit that `systemctl show` is asked for.
PROPERTIES = (
    "ActiveState",
    "ControlPID",
    "InvocationID",
    "Job",
    "MainPID",
    "NRestarts",
    "NeedDaemonReload",
    "Result",
    "SubState",
    "UnitFileState",
)
# From here on an explicit VLLM_USE_FLASHINFER_SAMPLER=1 ends a server where it can't work (unset, it falls back), and
# VLLM_FLASH_ATTN_VERSION isn't read any more.
_SAMPLER_IS_STRICT = (0, 26)
# Where a service looks for programs; ninja, which compiles kernels when a server starts, is in the release.
_PATH = "/usr/local/cuda/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class UnitError(ValueError):
    """A unit that can't be used. The text is one sentence for the user."""


class StateError(ValueError):
    """There is no such state to go back to. The text is one sentence for the user."""


@dataclass(frozen=True)
class Target:
    """A state of the server.

    Attributes:
        digest: its name, which the running server carries.
        unit: the text of the unit.
        config: the text of the engine config's file.
        secrets: the text of the environment file with secrets, C("") when there are none.
        release: the path of the release's folder.
        cache: the folder of the server's caches.
        probe: how the server is asked: host, port, tls, path, body, key. C(tls) is C(True) for a certificate that is
            not looked at, else it has C(ca) and C(name), and for a certificate of the role's what a renewal wants to
            know (`tls`).
        model: the name that a request gives for the model.
    """

    digest: str
    unit: str
    config: str
    secrets: str
    release: str
    cache: str
    probe: Mapping[str, Any]
    model: str

    @property
    def release_name(self) -> str:
        """The release's name."""
        return self.release.rpartition("/")[2]

    @property
    def hidden(self) -> list[str]:
        """What no output may show."""
        values = re.findall(r'^\w+="(.*)"$', self.secrets, re.M)
        return [str(self.probe.get("key", "")), *(re.sub(r"\\(.)", r"\1", value) for value in values)]

    def to_json(self) -> str:
        """Return the state as text."""
        return json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Target:
        """Return the state of such a text.

        Raises:
            StateError: it is none.
        """
        try:
            content = json.loads(text)
            return cls(**{field.name: content[field.name] for field in fields(cls)})
        except (ValueError, LookupError, TypeError):
            raise StateError("The file of that state is damaged, it can't be gone back to.") from None


@dataclass(frozen=True)
class Seen:
    """What there is.

    Attributes:
        user: whether the service's user exists.
        config: the text of the engine config's file that the unit names, C(None) when it isn't there.
        files: the names of all files of engine configs and secrets that are there.
        files_right: whether those of the target are there with the right content, owner and mode.
        unit: the text of the unit, C(None) when it isn't there.
        guard: whether the program that the unit runs before and after the server is there as it should be.
        cache: whether the folder of the caches is there as it should be.
        link: where the link to the live release points, C("") when it is no link.
        properties: what `systemctl show` says of the unit.
        digest: the digest that the running server carries, C("") when none runs.
        good: the digest of the last state whose server answered, C("") when there is none.
        watchdog: the texts of the watchdog's units that are there, by name.
        watching: whether the watchdog's timer runs, is started at boot, and is what its files say.
        beside: the digest of the state that is run beside the server for the time of a change, C("") when none is.
        certified: whether the running server serves the certificate that is in its files, or has none.
    """

    user: bool
    config: str | None
    files: frozenset[str]
    files_right: bool
    unit: str | None
    guard: bool
    cache: bool
    link: str
    properties: Mapping[str, str]
    digest: str
    good: str
    watchdog: Mapping[str, str]
    watching: bool
    beside: str = ""
    certified: bool = True


@dataclass(frozen=True)
class Step:
    """One thing to do, and its sentence for the user.

    Attributes:
        action: C(user), C(cache), C(guard), C(config), C(fetch), C(beside), C(unit), C(link), C(reload), C(enable),
            C(watch), C(unwatch), C(start), C(restart), C(certificate), and after the server answered C(keep), C(tidy)
            and C(over).
    """

    action: str
    text: str


# What goes on in the background; the steps after it are planned anew when it has ended.
WAITED_FOR = ("fetch", "beside")
# What is done once the server has answered.
AFTER = ("keep", "tidy", "over")


def file_names(digest: str) -> tuple[str, str]:
    """Return the names of the files that a state's unit names: engine config and secrets."""
    return f"engine-{digest}.yaml", f"secrets-{digest}.env"


def make_digest(salt: bytes, *material: Any) -> str:
    """Return the digest of a state.

    Secrets are part of it and the digest can be read by all, so it is salted: nobody can try keys against it.

    Args:
        salt: of this container.
        material: what the state is made of.
    """
    return hmac.new(salt, json.dumps(material).encode(), hashlib.sha256).hexdigest()[:16]


def fill_unit(template: str, words: Mapping[str, str]) -> str:
    """Return the unit: the template with its words filled in.

    Args:
        template: the unit with C(@EXEC_START@) and C(@DIGEST@) in it, and perhaps the other words.
        words: word → text.

    Raises:
        UnitError: a word that is needed isn't in the template.
    """
    lines = (ENVIRONMENT_WORD, CERTIFICATE_WORD)
    needed = [EXEC_START_WORD, DIGEST_WORD, *(word for word in lines if words.get(word))]
    for word in needed:
        if word not in template:
            raise UnitError(f"The unit's template has no {word} in it: without it a change would not reach the server.")
    for word in lines:
        if not words.get(word):
            template = template.replace(f"{word}\n", "")
    # At once: the command line may have one of the words in it, as text.
    return re.sub("|".join(map(re.escape, words)), lambda match: words[match[0]], template)


def quoted(text: str) -> str:
    """Return a text as systemd reads it between double quotes in a unit, but for ExecStart=."""
    return json.dumps(text, ensure_ascii=False)[1:-1].replace("%", "%%")


def environment_lines(environment: Mapping[str, str], file: str) -> str:
    """Return lines of a unit that set variables, and those of a file (C("") for none)."""
    lines = [f'Environment="{quoted(f"{name}={value}")}"' for name, value in sorted(environment.items())]
    return "\n".join([*lines, *([f"EnvironmentFile={file}"] if file else [])])


def secrets_file(secrets: Mapping[str, str]) -> str:
    """Return the text of an environment file, C("") when there is nothing to put into it.

    Raises:
        UnitError: a secret has a character that neither a header nor such a file can hold.
    """
    for name, value in secrets.items():
        if not re.fullmatch(r"[!-~]*", value):
            raise UnitError(
                f"{name}: a key has only printable ASCII characters without blanks, and this one has others. Check how "
                "it was written down."
            )
    escaped = {name: re.sub(r'(["\\$`])', r"\\\1", value) for name, value in secrets.items() if value}
    lines = "".join(f'{name}="{value}"\n' for name, value in sorted(escaped.items()))
    return f"# Written by Ansible (phoenix.hypervisor.vllm_model_server). Don't edit.\n{lines}" if lines else ""


def tls(
    certificate: str, key: str, ca: str, name: str, arguments: Mapping[str, Any], flags: Mapping[str, Any]
) -> tuple[bool | dict[str, Any], dict[str, Any]]:
    """Return how a server with a certificate is asked (C(tls) of a probe), and the arguments that it adds.

    Args:
        certificate: the file of the certificate and its chain, C("") for none of the role's.
        key: the file of its key.
        ca: the file of the CAs that are trusted, C("") for the system's.
        name: the name that the certificate must have, C("") for any.
        arguments: of the engine config.
        flags: the release's table of arguments, empty when there is none. Where it doesn't know C(enable-ssl-refresh),
            the server is restarted for a renewed certificate.

    Raises:
        UnitError: the engine config has a certificate, too.
    """
    if not certificate:
        own = bool(arguments.get("ssl-certfile"))
        return ({"ca": ca, "name": name} if own and ca else own), {}
    both = [argument for argument in ("ssl-certfile", "ssl-keyfile") if arguments.get(argument)]
    if both:
        raise UnitError(
            f"{both[0].replace('-', '_')} is in vllm_engine_config, and the role has a certificate for the server, too "
            f"({certificate}). Take {' and '.join(both).replace('-', '_')} out of vllm_engine_config, or set "
            "certificate_model_server: false (vllm_model_server_certificate_file: \"\") to use your own."
        )
    if not key:
        raise UnitError("vllm_model_server_certificate_file is set, and vllm_model_server_key_file is not: set both.")
    file = own_file(certificate, key)
    known = "enable-ssl-refresh" in flags
    refresh = known and arguments.get("enable-ssl-refresh") is not False
    added = {"ssl-certfile": file, "ssl-keyfile": file, **({"enable-ssl-refresh": True} if refresh else {})}
    return {"ca": ca, "name": name, "certificate": certificate, "key": key, "file": file, "refresh": refresh}, added


def version_of(text: str) -> tuple[int, ...]:
    """Return the numbers of a version, C(()) when it has none: 0.32.0+cpu → (0, 32, 0)."""
    match = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(map(int, match[0].split("."))) if match else ()


def release_environment(
    release: str, record: Mapping[str, Any], version: str, sampler: bool | None, flash_attn: int
) -> dict[str, str]:
    """Return the variables that depend on the release.

    Args:
        release: the release's folder.
        record: its C(release.json), C({}) when it has none.
        version: vLLM's version, C("") when nobody knows.
        sampler: whether to sample with FlashInfer, C(None) where there is no GPU.
        flash_attn: the version of FlashAttention, 0 for vLLM's own choice.
    """
    strict = version_of(version) >= _SAMPLER_IS_STRICT
    found = {"PATH": f"{release}/bin:{_PATH}"}
    if sampler is not None:
        if not sampler or record.get("flashinfer") == "":
            found["VLLM_USE_FLASHINFER_SAMPLER"] = "0"
        elif not strict:
            found["VLLM_USE_FLASHINFER_SAMPLER"] = "1"
    if flash_attn and not strict:
        found["VLLM_FLASH_ATTN_VERSION"] = str(flash_attn)
    return found


def properties(output: str) -> dict[str, str]:
    """Return name → value of what `systemctl show` printed."""
    return dict(line.split("=", 1) for line in output.splitlines() if "=" in line)


def environment(raw: bytes) -> dict[str, str]:
    """Return the variables in the content of C(/proc/<pid>/environ)."""
    entries = raw.decode("utf-8", "surrogateescape").split("\0")
    return dict(entry.split("=", 1) for entry in entries if "=" in entry)


def digest_in(unit: str | None) -> str:
    """Return the digest that a unit carries, C("") when it carries none."""
    match = re.search(rf"^Environment={DIGEST_VARIABLE}=([0-9a-f]+)$", unit or "", re.M)
    return match[1] if match else ""


def is_replaced(target: Target, seen: Seen) -> bool:
    """Return whether a server runs that another one has to take the place of."""
    return seen.properties.get("ActiveState") in ("active", "activating", "reloading") and seen.digest != target.digest


def watchdog_names(unit_name: str) -> tuple[str, str]:
    """Return the names of the watchdog's service and timer, for a unit."""
    stem = unit_name.rpartition(".")[0]
    return f"{stem}_watchdog.service", f"{stem}_watchdog.timer"


def watch_steps(wanted: Mapping[str, str] | None, seen: Seen) -> list[Step]:
    """Return what is to be done about the watchdog.

    Args:
        wanted: the texts of its units by name, empty for no watchdog, C(None) to leave it as it is.
        seen: what there is.
    """
    if wanted is None:
        return []
    if not wanted:
        return [Step("unwatch", f"stop and remove {' and '.join(sorted(seen.watchdog))}")] if seen.watchdog else []
    service, timer = sorted(wanted)
    if seen.watchdog != wanted:
        return [Step("watch", f"{'change' if seen.watchdog else 'write'} {service} and {timer}")]
    return [] if seen.watching else [Step("watch", f"start {timer}")]


def plan(
    target: Target,
    seen: Seen,
    user: str,
    unit_name: str,
    config_path: str,
    link_path: str = "",
    room: Room | None = None,
    took: float = 0,
    watchdog: Mapping[str, str] | None = None,
) -> list[Step]:
    """Return what is to be done, in order; nothing when the server runs what is declared.

    Args:
        target: what the server should be.
        seen: what there is.
        user: the service's user.
        unit_name: the unit's name.
        config_path: what the engine config's file is called for people.
        link_path: the link to the live release, where that has to point at the target's, too.
        room: whether a server that answers does so until the new one does, C(None) when none answers.
        took: how many seconds the last start took, 0 when nobody knows.
        watchdog: the texts of the watchdog's units, as `watch_steps` takes them.
    """
    steps = []
    room = room if room and is_replaced(target, seen) else None
    if not seen.user:
        steps.append(Step("user", f"add the system user {user}"))
    if not seen.cache:
        steps.append(Step("cache", f"make {target.cache} a folder of the user {user}"))
    if not seen.guard:
        steps.append(Step("guard", f"write what {unit_name} runs before and after the server"))
    if seen.config != target.config:
        steps.append(Step("config", f"{'write' if seen.config is None else 'change'} {config_path}"))
    elif not seen.files_right:
        steps.append(Step("config", f"write {config_path} with the right name, owner and mode"))
    if room and room.fetch:
        steps.append(Step("fetch", f"fetch the model {model_in(target.unit)}, while the old server answers"))
    if room and room.overlap:
        steps.append(
            Step("beside", f"start the new server beside the old one, which answers until it does ({room.reason})")
        )
    new_unit = seen.unit != target.unit
    if new_unit:
        steps.append(Step("unit", f"{'write' if seen.unit is None else 'change'} {unit_name}"))
    if link_path and seen.link and seen.link != target.release:
        steps.append(Step("link", f"point {link_path} at {target.release} (it pointed at {seen.link})"))
    if new_unit or seen.properties.get("NeedDaemonReload") == "yes":
        steps.append(Step("reload", "have systemd read its units again"))
    if seen.properties.get("UnitFileState") != "enabled":
        steps.append(Step("enable", f"enable {unit_name}"))
    # Before the server starts: the watchdog knows then how long this one may load.
    steps.extend(watch_steps(watchdog, seen))
    if seen.properties.get("ActiveState") not in ("active", "activating", "reloading"):
        steps.append(Step("start", f"start {unit_name}"))
    elif is_replaced(target, seen):
        steps.append(Step("restart", f"restart {unit_name}{_meanwhile(room, took)}"))
    elif not seen.certified:
        how = "" if target.probe["tls"]["refresh"] else ", for which it is restarted when it has answered its requests"
        steps.append(Step("certificate", f"have {unit_name} serve the certificate that was renewed{how}"))
    if seen.good != target.digest:
        steps.append(Step("keep", "keep this state as the one to go back to"))
    if seen.files - set(file_names(target.digest)):
        steps.append(Step("tidy", "remove the files of former states"))
    if seen.beside or (room and room.overlap):
        steps.append(Step("over", "end the server beside it"))
    return steps


def diff(
    target: Target, seen: Seen, steps: Iterable[Step], config_path: str, unit_path: str,
    watchdog: Mapping[str, str] | None,
) -> list[dict[str, str]]:  # fmt: skip
    """Return what a run's diff shows: engine config without its secrets, unit, the watchdog's units, and the steps.

    Args:
        target: what the server should be.
        seen: what there is.
        steps: what is to be done.
        config_path: what the engine config's file is called for people.
        unit_path: the unit's file.
        watchdog: as for `plan`.
    """
    # Those that go become empty.
    after = {} if watchdog is None else {**dict.fromkeys(seen.watchdog, ""), **watchdog}
    texts = [
        (config_path, engine_args.hide(seen.config or ""), engine_args.hide(target.config)),
        (unit_path, seen.unit or "", target.unit),
        *((name, seen.watchdog.get(name, ""), text) for name, text in after.items()),
    ]
    shown = [{"before_header": name, "after_header": name, "before": old, "after": new} for name, old, new in texts]
    return [*shown, {"prepared": "".join(f"{step.text}\n" for step in steps)}]


def _meanwhile(room: Room | None, took: float) -> str:
    """Return who answers while the server is restarted, for the end of a sentence."""
    if room is None:
        return ""
    if room.overlap:
        return ", while the one beside it answers"
    last = f"; the last start took {took:.0f} s" if took else ""
    return f", and nothing answers until it has loaded: {room.reason}{last}"


def is_dead(now: Mapping[str, str], invocation: str = "") -> bool:
    """Return whether the server that was started, or found running, has ended.

    Args:
        now: the unit's properties.
        invocation: systemd's name for the run of the server that is waited for, C("") when it isn't known yet.
    """
    if now.get("Job", "") not in ("", "0"):
        # systemd is still stopping the former server.
        return False
    if now.get("ActiveState") in ("failed", "inactive") or now.get("SubState") == "auto-restart":
        return True
    # A person who restarts it by hand sets the count to zero.
    again = bool(invocation) and now.get("InvocationID") != invocation
    return again and int(now.get("NRestarts") or 0) > 0


def doing(now: Mapping[str, str], phase: str = "ready") -> str:
    """Return in a few words what a server that is waited for does.

    Args:
        now: the properties of its unit.
        phase: of a change.
    """
    told = {
        "fetch": "the model is being fetched, the old server answers",
        "drain": "the new server answers, the old one finishes what it has begun",
        "over": "the new server answers, the one beside it finishes what it has begun",
    }
    if phase in told:
        return told[phase]
    if phase == "beside" and now.get("SubState") != "start-pre":
        return "the new server is loading beside the old one"
    if now.get("ActiveState") == "deactivating" or now.get("SubState", "").startswith("stop"):
        return "the former server is being stopped"
    if now.get("SubState") == "start-pre":
        return "it waits for the GPU's memory in use to be still"
    return "the model server is loading"


def former(history: Sequence[Mapping[str, Any]], live: str, there: Iterable[str]) -> str:
    """Return the digest of the last good state that isn't the live one and is still kept, C("") when there is none."""
    known = set(there)
    names = [str(entry.get("digest")) for entry in history]
    return next((name for name in reversed(names) if name != live and name in known), "")


def kept(history: Sequence[Mapping[str, Any]], count: int) -> list[dict[str, Any]]:
    """Return the entries of a history that stay: of each state the latest, so many states, the latest last."""
    latest: dict[str, dict[str, Any]] = {}
    for entry in reversed(history):
        latest.setdefault(str(entry.get("digest")), dict(entry))
    return list(latest.values())[:count][::-1]


def find(name: str, history: Sequence[Mapping[str, Any]], live: str, there: Iterable[str]) -> str:
    """Return the digest of the kept state that a person means.

    Args:
        name: C(previous), a digest or the beginning of one, or the name of a release.
        history: of good states.
        live: the digest of the state that is live.
        there: the digests of the states that are kept.

    Raises:
        StateError: there is no such state, or the name fits several.
    """
    known = [entry for entry in kept(history, len(history) or 1) if entry.get("digest") in set(there)]
    if name == "previous":
        digest = former(history, live, there)
        if not digest:
            raise StateError("There is no former state to go back to: the server has had no other one that answered.")
        return digest
    found = [str(entry["digest"]) for entry in known if str(entry["digest"]).startswith(name)]
    # Of the states on one release the latest.
    found = found or [str(entry["digest"]) for entry in known if entry.get("release") == name][-1:]
    if len(found) == 1:
        return found[0]
    states = "; ".join(describe(entry, live) for entry in known) or "none"
    problem = f"{len(found)} states begin with {name}" if found else f"There is no state {name}"
    raise StateError(f"{problem}. Kept are: {states}.")


def describe(entry: Mapping[str, Any], live: str = "") -> str:
    """Return a state of the history in a few words."""
    digest, release, model, at = (entry.get(key) for key in ("digest", "release", "model", "at"))
    return f"{digest} (release {release}, model {model}, {at}{', live' if digest == live else ''})"
