# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What verify checks: the tests that a declaration means, what came of each check, and the report of a run.

Values in, values out; nothing is run and no file is read in here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
# Kinds of tests, with what their path is.
TYPES = {
    "script": "a script in a folder of tests on the control node, or an absolute path inside",
    "command": "a command for the container's shell",
    "http": "a path below the model server's URL, or a whole URL",
}
LINES = 20
_COLOUR = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")


# --- what is to be done -------------------------------------------------------------------------------------------


def names_of(value: Any) -> list[str]:
    """Names that are given as a list, or as text with commas between (a survey, C(-e))."""
    members = value.split(",") if isinstance(value, str) else list(value or ())
    return [str(member).strip() for member in members if str(member).strip()]


def unknown_groups(chosen: Any, declared: Iterable[Mapping[str, Any]]) -> str:
    """What is wrong with a choice of groups, or "".

    :param declared: the tests of each container, by group
    """
    known = sorted({group for tests in declared for group in tests or {}})
    unknown = [name for name in names_of(chosen) if name not in known]
    if not unknown:
        return ""
    have = f"The containers of this run have {', '.join(known)}" if known else "No container of this run has tests"
    return f"verify_groups: there is no group {', '.join(unknown)}. {have}; correct the name, or the limit."


def planned_tests(
    tests: Mapping[str, Sequence[Mapping[str, Any]]], chosen: Any, url: str, find: Callable[[str], tuple[str, str]]
) -> list[dict[str, Any]]:
    """The tests of the chosen groups, all by default, in their order, each with what is to be run.

    :param tests: as declared, by group
    :param url: the model server's
    :param find: gives for a relative path the file on this machine, or "" and what is wrong
    """
    groups = names_of(chosen)
    return [
        _planned(group, test, url, find)
        for group, members in (tests or {}).items()
        if not groups or group in groups
        for test in members
    ]


def _planned(
    group: str, test: Mapping[str, Any], url: str, find: Callable[[str], tuple[str, str]]
) -> dict[str, Any]:
    kind, path = str(test.get("type") or "script"), str(test.get("path") or "")
    name = str(test.get("name") or path or "a test without a name")
    result: dict[str, Any] = {"group": group, "name": name, "type": kind, "path": path}
    if kind not in TYPES:
        result["problem"] = f"there is no type of tests {kind!r}; write script, command or http"
    elif not path:
        result["problem"] = f"it has no path; write {TYPES[kind]}"
    elif kind == "http":
        own = not re.match(r"[a-z][a-z0-9+.-]*:", path)
        # The server's key goes to the server only.
        result.update(url=f"{url}/{path.lstrip('/')}" if own else path, own=own)
    elif kind == "command" or path.startswith("/"):
        # An absolute path may have blanks; the shell is to see one word.
        result["command"] = path if kind == "command" else _quoted(path)
    else:
        file, problem = find(path)
        result.update({"problem": problem} if problem else {"file": file, "file_name": path.rpartition("/")[2]})
    return result


def _quoted(path: str) -> str:
    return "'" + path.replace("'", "'\\''") + "'"


# --- what came of it ----------------------------------------------------------------------------------------------


def result_of(seen: Mapping[str, Any]) -> dict[str, Any]:
    """What one container's checks came to: C(passed), its C(checks), and a sentence for each that failed.

    :param seen: C(host), C(ctid) and the like as they are to be in the report; C(look), C(completion) and
        C(health_check), the results of these tasks (nothing for what isn't checked); C(tls), for a server with a
        certificate, what L(_of_the_certificate) wants to know; C(pooling); C(command), the health check's; C(tests),
        the results of the loop over L(planned_tests)
    """
    checks: list[dict[str, Any]] = []
    if seen.get("look"):
        checks += _of_the_unit(seen["look"])
    if seen.get("tls"):
        checks += _of_the_certificate(seen["tls"], seen.get("look") or {}, seen.get("completion") or {})
    if seen.get("completion"):
        done = {"url": seen.get("url", ""), **seen["completion"]}
        checks.append(_of_the_completion(done, bool(seen.get("pooling"))))
    if seen.get("health_check"):
        checks.append(_check("health_check", **_of_a_run(f"`{seen.get('command', '')}`", seen["health_check"])))
    for done in seen.get("tests") or ():
        test = done.get("item") or {}
        what = f"GET {test['url']}" if "url" in test else f"`{test.get('path', '')}`"
        found = {"result": FAILED, "message": test["problem"]} if "problem" in test else _of_a_run(what, done)
        checks.append(_check("test", group=test.get("group", ""), name=test.get("name", ""), **found))
    kept = {key: seen[key] for key in ("host", "ctid", "node", "model", "url") if key in seen}
    for check in checks:
        kept.update({key: check.pop(key) for key in ("release", "answer") if key in check})
    return container({**kept, "checks": checks})


def container(found: Mapping[str, Any]) -> dict[str, Any]:
    """A container of the report: what is known of it, whether it passed, what failed, with a sentence for each."""
    failed = [check for check in found["checks"] if check["result"] == FAILED]
    return {
        **found, "passed": not failed, "failed": [title(check) for check in failed],
        "failures": [sentence(check) for check in failed],
    }  # fmt: skip


def unverified(host: str, reason: str, result: str = FAILED) -> dict[str, Any]:
    """A container of the report that couldn't be looked at, or need not be."""
    return container({"host": host, "checks": [_check("reach it", result=result, message=clean(reason).rstrip("."))]})


def sentence(check: Mapping[str, Any]) -> str:
    """A check that failed, in words, with the last that it said."""
    said = "".join(f"\n    {line}" for line in check.get("lines", ()))
    return f"{title(check)}: {check['message']}{'. The last that it said:' + said if said else '.'}"


def title(check: Mapping[str, Any]) -> str:
    """A check's name."""
    if check["check"] != "test":
        return str(check["check"])
    return f"test {check['group']}/{check['name']}"


def clean(text: Any) -> str:
    """Text in one line, with nothing in it that a terminal would obey."""
    plain = _COLOUR.sub("", str(text)).strip().replace("\t", " ")
    return "".join(c if c.isprintable() else " " if c in "\r\n" else "\N{REPLACEMENT CHARACTER}" for c in plain)


def last_lines(text: str, count: int = LINES) -> list[str]:
    """The last lines of an output."""
    lines = [clean(line)[:500] for line in text.splitlines()]
    return [line for line in lines if line][-count:]


def _check(check: str, result: str = PASSED, message: str = "", **others: Any) -> dict[str, Any]:
    return {"check": check, "result": result, "message": message, **others}


def _not_run(done: Mapping[str, Any]) -> dict[str, Any] | None:
    """What there is to say when Ansible did not get to the check itself."""
    if done.get("skipped"):
        return {"result": SKIPPED, "message": "not run in check mode"}
    if done.get("unreachable"):
        return {"result": FAILED, "message": f"it can't be reached: {clean(done.get('msg', ''))}".rstrip(".")}
    return None


def _of_a_run(what: str, done: Mapping[str, Any]) -> dict[str, Any]:
    """The outcome of what C(container_check) ran."""
    early = _not_run(done)
    if early:
        return early
    if "passed" not in done:
        return {"result": FAILED, "message": f"{what}: {clean(done.get('msg', 'it gave no result'))}".rstrip(".")}
    found = {"seconds": done.get("seconds", 0), "attempts": done.get("attempts", 1)}
    tries = found["attempts"]
    if done["passed"]:
        return {**found, "message": "" if tries == 1 else f"passed at try {tries}"}
    often = "" if tries == 1 else f" in each of {tries} tries, the last time"
    message = f"{what} failed{often}: {done.get('outcome', '')}".strip()
    return {**found, "result": FAILED, "message": message, "lines": list(done.get("lines") or ())}


def _of_the_unit(done: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The unit, and the versions of the release that it runs on."""
    early = _not_run(done)
    if early:
        return [_check("unit", **early), _check("release", result=SKIPPED, message="see the unit")]
    try:
        look = json.loads(done.get("stdout") or "")
    except ValueError:
        why = last_lines(done.get("stderr") or str(done.get("msg", "")), 1) or ["it said nothing"]
        message = f"what runs inside could not be looked at (python3 is needed there): {why[0]}"
        return [_check("unit", FAILED, message), _check("release", SKIPPED, "see the unit")]
    problems, differences = look.get("problems", []), look.get("differences", [])
    release, compared = look.get("release", ""), look.get("compared", 0)
    unit = _check("unit", FAILED if problems else PASSED, ". ".join(problems))
    if problems and not release:
        return [unit, _check("release", SKIPPED, "see the unit")]
    said = f"{release}: {compared} packages are as locked" if compared else "there is no lock to compare it with"
    return [
        unit,
        _check("release", FAILED if differences else PASSED, ". ".join(differences) or said, release=release),
    ]


def _of_the_certificate(
    tls: Mapping[str, Any], look: Mapping[str, Any], done: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The certificate that the model server showed, and whether it will be renewed.

    :param tls: C(percent) of its life and C(days), of which the less must be left; C(fingerprints), the SHA-256
        of the declared CAs, if any; C(timer), of its renewal, "" for none
    :param look: what C(look.py) said
    :param done: the request for a completion
    """
    shown = done.get("certificate")
    checks = []
    if early := _not_run(done):
        checks.append(_check("certificate", **early))
    elif not shown:
        checks.append(_check("certificate", SKIPPED, "none was shown, see the completion"))
    else:
        problem = f"it {clean(shown['problem'])}" if shown["problem"] else _of_its_life(tls, shown)
        problem = _of_its_ca(tls, look) or problem
        told = f"{', '.join(shown.get('names', ()))}, until {shown.get('not_after', '')}"
        checks.append(_check("certificate", FAILED if problem else PASSED, problem or told))
    inside = _looked(look).get("tls")
    if tls.get("timer") and inside is not None:
        problem = inside.get("renewal", "")
        checks.append(_check("renewal", FAILED if problem else PASSED, problem or f"next at {inside.get('next', '')}"))
    return checks


def _of_its_ca(tls: Mapping[str, Any], look: Mapping[str, Any]) -> str:
    """What is wrong with the CA that the container trusts."""
    declared = names_of(tls.get("fingerprints"))
    wanted = [re.sub(r"[^0-9a-f]", "", fingerprint.lower()) for fingerprint in declared]
    there = (_looked(look).get("tls") or {}).get("fingerprints", [])
    if not wanted or not there or set(wanted) & set(there):
        return ""
    return (
        f"the CA that the container trusts has the fingerprint {', '.join(there)}, and the declared one is "
        f"{', '.join(wanted)}: run site.yml, and see why it was changed"
    )


def _of_its_life(tls: Mapping[str, Any], shown: Mapping[str, Any]) -> str:
    """What is wrong with the time that a certificate has left."""
    life, left = float(shown["life"]), float(shown["left"])
    if left >= min(life * float(tls["percent"]) / 100, float(tls["days"]) * 86400):
        return ""
    return (
        f"it ends at {shown['not_after']}, {_duration(left)} from now, and should have been renewed before; see the "
        "renewal (the role certificate), or give a newer one (certificate_source: files)"
    )


def _duration(seconds: float) -> str:
    """A time in words, roughly."""
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} seconds"


def _looked(done: Mapping[str, Any]) -> dict[str, Any]:
    """What C(look.py) said, nothing when it didn't."""
    try:
        look = json.loads(done.get("stdout") or "")
    except ValueError:
        return {}
    return look if isinstance(look, dict) else {}


def _of_the_completion(done: Mapping[str, Any], pooling: bool) -> dict[str, Any]:
    """Whether the model answered. Something else than vLLM may listen there, and say anything."""
    early = _not_run(done)
    if early:
        return _check("completion", **early)
    if "passed" not in done:
        return _check("completion", FAILED, clean(done.get("msg", "it gave no result")).rstrip("."))
    if re.match(r"https?://:", done.get("url", "")):
        return _check("completion", FAILED, "its address is not known, as with dhcp; say it in verify_address")
    if (done.get("certificate") or {}).get("problem"):
        return _check("completion", SKIPPED, "not asked, see the certificate")
    seconds, url, content = done.get("seconds", 0), done.get("url", ""), done.get("content", "")
    if not done["passed"]:
        message = f"the model did not answer at {url}: {done.get('outcome', '')}"
        if content:
            message += f", {clean(content)[:300]}"
        advice = "; check that the address is reachable from the node and that the server listens on it"
        return _check("completion", FAILED, message + ("" if done.get("status") else advice), seconds=seconds)
    try:
        answer = _answer(json.loads(content), pooling)
    except ValueError:
        message = f"what answered at {url} is no JSON, so no vLLM; see what listens there: {clean(content)[:300]}"
        return _check("completion", FAILED, message, seconds=seconds)
    if not answer:
        message = f"what answered at {url} gave no {'embedding' if pooling else 'text'}: {clean(content)[:300]}"
        return _check("completion", FAILED, message, seconds=seconds)
    return _check("completion", message=clean(answer)[:60], seconds=seconds, answer=answer)


def _answer(reply: Any, pooling: bool) -> str:
    """The answer in a reply, "" when there is none."""
    members = reply.get("data" if pooling else "choices") if isinstance(reply, Mapping) else None
    first = members[0] if isinstance(members, list) and members else None
    found = first.get("embedding" if pooling else "text") if isinstance(first, Mapping) else None
    if not found:
        return ""
    if pooling:
        return f"an embedding of {len(found)} numbers" if isinstance(found, (list, str)) else ""
    return str(found)


# --- the report ---------------------------------------------------------------------------------------------------


def report_of(containers: Sequence[Mapping[str, Any]], time: str, check_mode: bool = False) -> dict[str, Any]:
    """The report of a run, as it is written in JSON."""
    results = [check["result"] for found in containers for check in found["checks"]]
    counts = {result: results.count(result) for result in (PASSED, FAILED, SKIPPED)}
    return {
        "passed": all(found["passed"] for found in containers),
        "time": time,
        "check_mode": check_mode,
        "counts": {"containers": len(containers), "checks": len(results), **counts},
        "containers": [{key: value for key, value in found.items() if key != "failures"} for found in containers],
    }


def text_of(report: Mapping[str, Any]) -> str:
    """The same for people: a line for each check, then what failed, in full."""
    rows = [("CONTAINER", "CHECK", "RESULT", "SECONDS", "")]
    failures = []
    for found in report["containers"]:
        if not found["checks"]:
            rows.append((found["host"], "-", SKIPPED, "", "it declares nothing to check"))
        for check in found["checks"]:
            seconds = f"{check['seconds']:.1f}" if "seconds" in check else ""
            brief = "see below" if check["result"] == FAILED else check["message"]
            rows.append((found["host"], title(check), check["result"], seconds, brief))
            if check["result"] == FAILED:
                failures.append(f"{found['host']}, {sentence(check)}")
    widths = [max(len(row[place]) for row in rows) for place in range(4)]
    lines = []
    for host, what, result, seconds, brief in rows:
        columns = (host.ljust(widths[0]), what.ljust(widths[1]), result.ljust(widths[2]), seconds.rjust(widths[3]))
        lines.append("  ".join([*columns, brief]).rstrip())
    counts = report["counts"]
    summary = f"{_number(counts['containers'], 'container')}, {_number(counts['checks'], 'check')}"
    told = ", ".join(f"{counts[result]} {result}" for result in (PASSED, FAILED, SKIPPED) if counts[result])
    return "\n".join([*lines, "", *failures, *([""] if failures else []), f"{summary}{': ' + told if told else ''}."])


def _number(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
