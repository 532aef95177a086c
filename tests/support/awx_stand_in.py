# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The part of AWX 24.6's API that the modules of awx.awx talk to when they configure it, in memory.

It keeps what AWX keeps and refuses what AWX refuses: unknown fields of an object are told to the test (AWX would drop
them in silence), secrets come back as C($encrypted$), the organization of a job template is that of its project, a
playbook has to be in the project, inputs of a credential type that is in use can't change, an inventory goes away some
time after it was deleted, and an organization takes all that is in it along.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

TOKEN = "token-of-the-stand-in"
SECRET = "$encrypted$"
NOTIFIED = ("notification_templates_started", "notification_templates_success", "notification_templates_error")
PROMPTS = tuple(
    f"ask_{what}_on_launch"
    for what in (
        "diff_mode", "variables", "limit", "tags", "skip_tags", "job_type", "verbosity", "inventory", "credential",
        "execution_environment", "forks", "instance_groups", "job_slice_count", "labels", "timeout", "scm_branch",
    )
)  # fmt: skip
# What each kind of object has: its defaults, and of which kind what it refers to is.
FIELDS: dict[str, dict[str, Any]] = {
    "organizations": {"max_hosts": 0, "default_environment": None},
    "credential_types": {"kind": "cloud", "managed": False, "inputs": {}, "injectors": {}},
    "credentials": {"organization": None, "credential_type": None, "inputs": {}, "managed": False},
    "execution_environments": {"organization": None, "image": None, "pull": "", "credential": None},
    "notification_templates": {
        "organization": None, "notification_type": None, "notification_configuration": {}, "messages": None,
    },
    "projects": {
        "organization": None, "scm_type": "", "scm_url": "", "scm_branch": "", "scm_refspec": "", "scm_clean": False,
        "scm_delete_on_update": False, "scm_update_on_launch": False, "scm_update_cache_timeout": 0, "credential": None,
        "default_environment": None, "timeout": 0, "allow_override": False, "scm_revision": "",
    },
    "inventories": {"organization": None, "kind": "", "host_filter": None, "variables": ""},
    "inventory_sources": {
        "inventory": None, "source": "", "source_path": "", "source_vars": "", "source_project": None,
        "credential": None, "execution_environment": None, "overwrite": False, "overwrite_vars": False,
        "update_on_launch": False,
        "update_cache_timeout": 0, "verbosity": 1, "timeout": 0, "limit": "", "scm_branch": "",
    },
    "job_templates": {
        "organization": None, "job_type": "run", "inventory": None, "project": None, "playbook": "", "limit": "",
        "forks": 0, "verbosity": 0, "timeout": 0, "diff_mode": False, "allow_simultaneous": False, "extra_vars": "",
        "execution_environment": None, "survey_enabled": False, **dict.fromkeys(PROMPTS, False),
    },
    "workflow_job_templates": {
        "organization": None, "inventory": None, "limit": None, "allow_simultaneous": False, "extra_vars": "",
        "survey_enabled": False, **dict.fromkeys(PROMPTS, False),
    },
    "workflow_job_template_nodes": {
        "identifier": "", "workflow_job_template": None, "unified_job_template": None, "extra_data": {}, "limit": None,
        "all_parents_must_converge": False, "inventory": None,
    },
    "schedules": {
        "unified_job_template": None, "rrule": "", "limit": None, "extra_data": {}, "enabled": True, "inventory": None,
    },
    "teams": {"organization": None},
    "jobs": {"job_template": None, "status": "pending", "failed": False, "finished": None},
    "project_updates": {"status": "successful", "failed": False, "finished": "now", "scm_revision": "1" * 40},
    "inventory_updates": {"status": "successful", "failed": False, "finished": "now"},
}  # fmt: skip
REFERENCES = {
    "organization": "organizations", "credential_type": "credential_types", "credential": "credentials",
    "default_environment": "execution_environments", "execution_environment": "execution_environments",
    "project": "projects", "source_project": "projects", "inventory": "inventories",
    "workflow_job_template": "workflow_job_templates", "unified_job_template": "unified_job_templates",
}  # fmt: skip
TEMPLATES = ("projects", "inventory_sources", "job_templates", "workflow_job_templates")
TYPES = {
    "inventories": "inventory", "inventory_sources": "inventory_source", "job_templates": "job_template",
    "projects": "project", "workflow_job_templates": "workflow_job_template",
}  # fmt: skip
REQUIRED = {
    "credentials": ["credential_type"],
    "execution_environments": ["image"],
    "notification_templates": ["organization", "notification_type"],
    "inventories": ["organization"],
    "inventory_sources": ["inventory", "source"],
    "job_templates": ["inventory", "project", "playbook"],
    "workflow_job_template_nodes": ["workflow_job_template", "identifier"],
    "schedules": ["unified_job_template", "rrule"],
}
WORK = ("jobs", "project_updates", "inventory_updates")
WITHIN = {"schedules": "unified_job_template", "inventory_sources": "inventory"}
QUESTIONS = ("text", "textarea", "password", "multiplechoice", "multiselect", "integer", "float")
BUILT_IN = {
    "Machine": ["password", "ssh_key_data", "ssh_key_unlock", "become_password"],
    "Source Control": ["password", "ssh_key_data"],
}


class Refused(Exception):
    """AWX's answer to a request that it can't do."""

    def __init__(self, status: int, answer: Any) -> None:
        super().__init__(answer)
        self.status, self.answer = status, answer


class Awx:
    """What is in an AWX."""

    def __init__(self, playbooks: list[str]) -> None:
        self.lock = threading.RLock()
        self.playbooks = playbooks
        self.objects: dict[str, dict[int, dict[str, Any]]] = {kind: {} for kind in FIELDS}
        self.links: dict[tuple[int, str], list[int]] = {}
        self.surveys: dict[int, dict[str, Any]] = {}
        self.dying: dict[int, int] = {}
        self.writes: list[tuple[str, str, Any]] = []
        self.unknown: list[str] = []
        self.launched: list[tuple[str, dict[str, Any]]] = []
        self.job_ends = "successful"
        self.number = 0
        self.hidden: dict[int, dict[str, str]] = {}
        for name, secrets in BUILT_IN.items():
            fields = [{"id": "username"}, *({"id": field, "secret": True} for field in secrets)]
            kind = "ssh" if name == "Machine" else "scm"
            self.create("credential_types", {"name": name, "kind": kind, "inputs": {"fields": fields}}, managed=True)
        self.create("organizations", {"name": "Default", "description": "Somebody's"})

    # --- what a test asks ------------------------------------------------------------------------------------------

    def names(self, kind: str) -> list[str]:
        """Return the names of all objects of a kind."""
        return sorted(one.get("name") or one["identifier"] for one in self.objects[kind].values())

    def get(self, kind: str, name: str) -> dict[str, Any]:
        """Return the object of a name."""
        return next(one for one in self.objects[kind].values() if (one.get("name") or one.get("identifier")) == name)

    def linked(self, kind: str, name: str, what: str) -> list[str]:
        """Return the names of what is associated with an object."""
        found = [self.anything(number) for number in self.links.get((self.get(kind, name)["id"], what), [])]
        return sorted(one.get("name") or one["identifier"] for one in found)

    def everything(self) -> dict[str, list[str]]:
        """Return the names of all objects that were configured."""
        return {kind: self.names(kind) for kind in FIELDS if kind not in WORK}

    # --- objects ---------------------------------------------------------------------------------------------------

    def anything(self, number: int) -> dict[str, Any]:
        """Return the object of a number, of whatever kind."""
        return next(kind[number] for kind in self.objects.values() if number in kind)

    def kind_of(self, number: int) -> str:
        """Return the kind of an object."""
        return next(name for name, kind in self.objects.items() if number in kind)

    def checked(self, kind: str, given: dict[str, Any], managed: bool) -> dict[str, Any]:
        known = {"name", "description", *FIELDS[kind]}
        # Sent by the modules, and read-only.
        ignored = {"type"} | ({"managed"} if kind == "credential_types" else set())
        self.unknown += [f"{kind}: {field}" for field in set(given) - known - ignored]
        fields = {key: value for key, value in given.items() if key in known}
        if not managed:
            fields.pop("managed", None)
        for field, value in fields.items():
            default = FIELDS[kind].get(field)
            if isinstance(default, (bool, int)) and not isinstance(value, type(default)):
                raise Refused(400, {field: [f"Must be a valid {type(default).__name__}."]})
            target = REFERENCES.get(field)
            if target and value is not None:
                kinds = TEMPLATES if target == "unified_job_templates" else (target,)
                if not any(value in self.objects[one] for one in kinds):
                    raise Refused(400, {field: [f'Invalid pk "{value}" - object does not exist.']})
        return fields

    def create(self, kind: str, given: dict[str, Any], managed: bool = False) -> dict[str, Any]:
        """Make an object, as a POST does."""
        fields = self.checked(kind, given, managed)
        for field in REQUIRED.get(kind, []):
            if fields.get(field) in (None, ""):
                raise Refused(400, {field: ["This field is required."]})
        self.number += 1
        new = {"id": self.number, "name": "", "description": "", **json.loads(json.dumps(FIELDS[kind])), **fields}
        if kind == "workflow_job_template_nodes":
            del new["name"]
        new["managed"] = managed
        self.validate(kind, new)
        self.objects[kind][new["id"]] = new
        if kind == "credentials":
            self.hide(new, {})
        if kind == "projects":
            new["scm_revision"] = "1" * 40
            new["current_update"] = self.create("project_updates", {})["id"]
        return new

    def change(self, kind: str, number: int, given: dict[str, Any]) -> dict[str, Any]:
        """Change an object, as a PATCH does."""
        old = self.objects[kind][number]
        new = {**old, **self.checked(kind, given, False)}
        if kind == "credential_types" and new["inputs"] != old["inputs"] and self.users_of(number):
            raise Refused(403, {"detail": "Modifications to inputs are not allowed for types that are in use"})
        self.validate(kind, new)
        self.objects[kind][number] = new
        if kind == "credentials":
            self.hide(new, self.hidden.get(number, {}))
        return new

    def users_of(self, credential_type: int) -> list[int]:
        return [one["id"] for one in self.objects["credentials"].values() if one["credential_type"] == credential_type]

    def hide(self, credential: dict[str, Any], before: dict[str, str]) -> None:
        """Keep the secrets of a credential apart; sent back as AWX shows it, one stays what it was."""
        fields = self.objects["credential_types"][credential["credential_type"]]["inputs"].get("fields", [])
        kept: dict[str, str] = {}
        shown = dict(credential["inputs"])
        for key in shown:
            if key not in {field["id"] for field in fields}:
                raise Refused(400, {"inputs": [f"{key} is not an input of this type"]})
        for field in fields:
            if field.get("secret") and shown.get(field["id"]):
                value = shown[field["id"]]
                if value == SECRET and field["id"] not in before:
                    raise Refused(400, {"inputs": {field["id"]: ["$encrypted$ is a reserved keyword."]}})
                kept[field["id"]] = before[field["id"]] if value == SECRET else value
                shown[field["id"]] = SECRET
        credential["inputs"] = shown
        self.hidden[credential["id"]] = kept

    def validate(self, kind: str, new: dict[str, Any]) -> None:
        """Refuse what AWX refuses."""
        if kind == "job_templates":
            project = self.objects["projects"][new["project"]]
            new["organization"] = project["organization"]
            if new["playbook"] not in self.playbooks:
                raise Refused(400, {"playbook": [f"Playbook not found for project: {new['playbook']}"]})
        if kind == "credential_types":
            for name in (new["injectors"].get("env") or {}):
                if name.startswith("ANSIBLE_"):
                    raise Refused(400, {"injectors": [f"Environment variable {name} is not allowed"]})
            for field in new["inputs"].get("fields", []):
                if set(field) - {"id", "label", "type", "secret", "help_text", "multiline", "default", "choices"}:
                    raise Refused(400, {"inputs": [f"additional properties are not allowed: {field}"]})
        if kind == "schedules" and not re.fullmatch(
            r"DTSTART(:\d{8}T\d{6}Z|;TZID=[\w/+-]+:\d{8}T\d{6}) RRULE:FREQ=[A-Z]+;.*INTERVAL=\d+.*", new["rrule"]
        ):
            raise Refused(400, {"rrule": ["Valid DTSTART and INTERVAL required in rrule."]})
        field = "identifier" if kind == "workflow_job_template_nodes" else "name"
        scope = {"workflow_job_template_nodes": "workflow_job_template"}.get(kind) or WITHIN.get(kind, "organization")
        if kind in WORK:
            return
        if not new.get(field):
            raise Refused(400, {field: ["This field may not be blank."]})
        for other in self.objects[kind].values():
            same = other[field] == new[field] and other.get(scope) == new.get(scope)
            if same and other["id"] != new["id"] and other.get("credential_type") == new.get("credential_type"):
                raise Refused(400, {"__all__": [f"{kind} with this {field} and {scope} already exists."]})

    def remove(self, kind: str, number: int) -> int:
        """Remove an object, as a DELETE does; returns the status."""
        if kind == "credential_types" and self.users_of(number):
            raise Refused(403, {"detail": "Credential types that are in use cannot be deleted"})
        if kind == "inventories":
            # Behind its back: it is listed a while longer.
            self.dying.setdefault(number, 3)
            return 202
        self.forget(kind, number)
        return 204

    def forget(self, kind: str, number: int) -> None:
        del self.objects[kind][number]
        kept = {key: value for key, value in self.links.items() if key[0] != number}
        self.links = {key: [one for one in value if one != number] for key, value in kept.items()}
        parents = {
            "organizations": "organization", "inventories": "inventory",
            "workflow_job_templates": "workflow_job_template",
        }  # fmt: skip
        for other, fields in FIELDS.items():
            for one in list(self.objects[other].values()):
                if kind in parents and parents[kind] in fields and one.get(parents[kind]) == number:
                    takes = kind == "organizations" or other in ("inventory_sources", "workflow_job_template_nodes")
                    if takes and one["id"] in self.objects[other]:
                        self.forget(other, one["id"])
                    else:
                        one[parents[kind]] = None
                elif kind in TEMPLATES and other == "schedules" and one["unified_job_template"] == number:
                    self.forget(other, one["id"])

    def shown(self, kind: str, one: dict[str, Any]) -> dict[str, Any]:
        """Return an object as the API shows it."""
        url = f"/api/v2/{kind}/{one['id']}/"
        if kind == "inventory_sources":
            one = {**one, "organization": self.objects["inventories"][one["inventory"]]["organization"]}
        summary: dict[str, Any] = {}
        for field, target in REFERENCES.items():
            if one.get(field) is not None:
                kinds = TEMPLATES if target == "unified_job_templates" else (target,)
                places = [self.objects[name] for name in kinds if one[field] in self.objects[name]]
                found = places[0][one[field]] if places else None
                if found:
                    summary[field] = {"id": found["id"], "name": found["name"]}
        if kind == "projects" and one.get("current_update"):
            summary["current_update"] = {"id": one["current_update"]}
        related = {"survey_spec": f"{url}survey_spec/", "launch": f"{url}launch/", "update": f"{url}update/"}
        singular = TYPES.get(kind, kind.rstrip("s"))
        return {"type": singular, "url": url, "related": related, "summary_fields": summary, **one}

    # --- requests --------------------------------------------------------------------------------------------------

    def listed(self, kind: str, query: dict[str, str], path: str) -> dict[str, Any]:
        for number in list(self.dying):
            self.dying[number] -= 1
            if self.dying[number] < 0:
                del self.dying[number]
                self.forget("inventories", number)
        kinds = TEMPLATES if kind == "unified_job_templates" else (kind,)
        found = [self.shown(name, one) for name in kinds for one in self.objects[name].values()]
        return self.page([one for one in found if self.matches(one, query)], query, path)

    @staticmethod
    def page(found: list[dict[str, Any]], query: dict[str, str], path: str) -> dict[str, Any]:
        size, number = int(query.get("page_size", 25)), int(query.get("page", 1))
        part = found[(number - 1) * size : number * size]
        others = "&".join(f"{key}={value}" for key, value in query.items() if key != "page")
        after = f"{path}?{others}{'&' if others else ''}page={number + 1}" if number * size < len(found) else None
        return {"count": len(found), "next": after, "previous": None, "results": part}

    def matches(self, one: dict[str, Any], query: dict[str, str]) -> bool:
        either = []
        for key, wanted in query.items():
            if key in ("page", "page_size"):
                continue
            if key.startswith("or__"):
                either.append(str(one.get(key[4:])) == wanted)
                continue
            *path, last = key.split("__")
            if last == "in" and path:
                if str(one.get(path[0])) not in wanted.split(","):
                    return False
                continue
            if path:
                # workflow_job_template__organization__name
                target: Any = one
                for field in path:
                    number = target.get(field) if target else None
                    target = self.anything(number) if number else None
                if str((target or {}).get(last)) != wanted:
                    return False
                continue
            if key not in one:
                raise Refused(400, {"detail": f"{one['type']} has no field named '{key}'"})
            if str(one[key]) != wanted:
                return False
        return any(either) if either else True

    def answer(self, method: str, path: str, query: dict[str, str], data: Any) -> tuple[int, Any]:
        """Answer one request."""
        parts = [unquote(part) for part in path.strip("/").split("/")][2:]
        if method != "GET":
            self.writes.append((method, path, data))
        kind = parts[0] if parts else ""
        if kind == "workflow_jobs":
            kind = "jobs"
        if kind not in self.objects and kind != "unified_job_templates":
            raise Refused(404, {"detail": "Not found."})
        if len(parts) == 1:
            if method == "GET":
                return 200, self.listed(kind, query, path)
            return 201, self.shown(kind, self.create(kind, data))
        number = int(parts[1])
        if number not in self.objects[kind]:
            raise Refused(404, {"detail": "Not found."})
        if len(parts) == 2:
            if method == "GET":
                return 200, self.shown(kind, self.objects[kind][number])
            if method == "PATCH":
                return 200, self.shown(kind, self.change(kind, number, data))
            return self.remove(kind, number), None
        return self.below(method, kind, number, parts[2], query, path, data)

    def below(self, method, kind, number, what, query, path, data) -> tuple[int, Any]:
        """Answer a request for what belongs to an object."""
        if what == "survey_spec":
            if method == "GET":
                return 200, self.surveys.get(number, {})
            if method == "DELETE":
                self.surveys.pop(number, None)
                return 200, {}
            self.check_survey(data)
            self.surveys[number] = data
            return 200, {}
        if what == "launch":
            one = self.objects[kind][number]
            self.launched.append((one["name"], data))
            failed = self.job_ends != "successful"
            job = self.create("jobs", {})
            job.update(status=self.job_ends, failed=failed, finished="now", job_template=number)
            return 201, self.shown("jobs", job)
        if what == "update":
            self.launched.append((self.objects[kind][number]["name"], {}))
            update = "project_updates" if kind == "projects" else "inventory_updates"
            return 202, self.shown(update, self.create(update, {}))
        allowed = {
            "organizations": ("galaxy_credentials",), "job_templates": ("credentials", *NOTIFIED),
            "workflow_job_templates": NOTIFIED,
            "workflow_job_template_nodes": ("success_nodes", "failure_nodes", "always_nodes"),
        }  # fmt: skip
        if what not in allowed.get(kind, ()):
            raise Refused(404, {"detail": "Not found."})
        linked = self.links.setdefault((number, what), [])
        if method == "GET":
            found = [self.anything(one) for one in linked]
            return 200, self.page([self.shown(self.kind_of(one["id"]), one) for one in found], query, path)
        other = data["id"]
        if data.get("disassociate"):
            linked.remove(other)
            return 204, None
        if what == "credentials":
            kinds = [self.anything(one)["credential_type"] for one in linked]
            if self.anything(other)["credential_type"] in kinds:
                raise Refused(400, {"error": "Cannot assign multiple credentials of a type."})
        if what.endswith("_nodes") and self.leads_to(other, number):
            raise Refused(400, {"Error": "Cycle detected."})
        linked.append(other)
        return 204, None

    def leads_to(self, start: int, end: int) -> bool:
        if start == end:
            return True
        ways = ("success_nodes", "failure_nodes", "always_nodes")
        return any(self.leads_to(after, end) for way in ways for after in self.links.get((start, way), []))

    @staticmethod
    def check_survey(spec: Any) -> None:
        """Refuse what AWX refuses of a survey."""
        for field, kind in (("name", str), ("description", str), ("spec", list)):
            if not isinstance(spec.get(field), kind):
                raise Refused(400, {"error": f"Field '{field}' is missing from survey spec."})
        seen = set()
        for item in spec["spec"]:
            for field in ("type", "question_name", "variable", "required"):
                if not isinstance(item.get(field), bool if field == "required" else str):
                    raise Refused(400, {"error": f"'{field}' in survey question is missing or of another type"})
            if item["variable"] in seen:
                raise Refused(400, {"error": f"variable {item['variable']} is there twice"})
            seen.add(item["variable"])
            if item["type"] not in QUESTIONS:
                raise Refused(400, {"error": f"{item['type']} is no type of a question"})
            for key in ("min", "max"):
                if item.get(key) is not None and not isinstance(item[key], int):
                    raise Refused(400, {"error": f"The {key} limit is expected to be integer."})
            if item["type"].startswith("multi"):
                if "choices" not in item:
                    raise Refused(400, {"error": "must specify choices"})
                if isinstance(item["choices"], str):
                    item["choices"] = "\n".join(one for one in item["choices"].splitlines() if one.strip())
                if any(one not in item["choices"] for one in str(item.get("default", "")).splitlines()):
                    raise Refused(400, {"error": "Default choice must be answered from the choices listed."})


def _handler(awx: Awx) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_arguments: Any) -> None:
            pass

        def do(self) -> None:
            url = urlsplit(self.path)
            length = int(self.headers.get("Content-Length") or 0)
            data = json.loads(self.rfile.read(length) or b"{}") if length else {}
            try:
                if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                    raise Refused(401, {"detail": "Authentication credentials were not provided."})
                with awx.lock:
                    status, answer = awx.answer(self.command, url.path, dict(parse_qsl(url.query, True)), data)
            except Refused as refused:
                status, answer = refused.status, refused.answer
            body = b"" if answer is None else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("X-API-Product-Name", "AWX")
            self.send_header("X-API-Product-Version", "24.6.1")
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PATCH = do_DELETE = do

    return Handler


@contextmanager
def running(playbooks: list[str]) -> Iterator[tuple[Awx, str]]:
    """Run one; gives what is in it, and its URL."""
    awx = Awx(playbooks)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(awx))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield awx, f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
