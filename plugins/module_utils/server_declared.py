# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The state of the model server that a task declares. It is read what that depends on; nothing is changed."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ansible_collections.phoenix.hypervisor.plugins.module_utils import engine_args, server_guard, server_plan
from ansible_collections.phoenix.hypervisor.plugins.module_utils.server_plan import Target, UnitError
from ansible_collections.phoenix.hypervisor.plugins.module_utils.text_file import read_json, read_text

CACHE = "/var/cache/vllm"


def watchdog(declared: Mapping[str, str] | None, name: str) -> Mapping[str, str] | None:
    """Return the texts of the watchdog's units by name, C(None) when nothing is said of it.

    Raises:
        UnitError: they aren't two.
    """
    if not declared:
        return declared
    try:
        texts = [declared[part].replace(server_plan.GUARD_WORD, server_guard.PROGRAM) for part in ("service", "timer")]
    except (KeyError, AttributeError):
        raise UnitError("watchdog must have the texts of two units, service and timer, or be empty.") from None
    return dict(zip(server_plan.watchdog_names(name), texts))


def declared(
    parameters: Mapping[str, Any], salt: Callable[[], bytes], hide: Callable[[Iterable[str]], None]
) -> Target:
    """Return the state that is declared.

    Args:
        parameters: the module's options.
        salt: returns the salt of digests.
        hide: is told the secrets, before anything can be said of what is wrong.

    Raises:
        EngineConfigError: the engine config can't be handed to vLLM.
        UnitError: the unit can't be used.
    """
    arguments = engine_args.flatten(parameters["engine_config"])
    hide([*engine_args.secrets(arguments), parameters["api_key"], parameters["huggingface_token"]])
    secrets, key = _secrets(arguments, parameters)
    table, user = parameters["flags"] or None, parameters["user"]
    certificate = parameters["tls"]
    tls, added = server_plan.tls(
        *(certificate.get(name) or "" for name in ("certificate_file", "key_file", "ca_file", "name")),
        arguments, parameters["flags"].get("flags", {}),
    )  # fmt: skip
    arguments.update(added)
    before: list[str] = []
    if added:
        tls.update(user=user, drain=parameters["stop_timeout"], ready=parameters["ready_timeout"])
        before = ["/usr/bin/python3", "-I", server_guard.PROGRAM, "certificate", tls["certificate"], tls["key"], user]
    model, others = engine_args.split_model(arguments)
    # A model that was fetched ahead is a link to its revision. The unit names the folder itself, so that another
    # revision is a change, and the former state still has its own.
    folder = os.path.realpath(model) if model.startswith("/") else model
    if folder != model:
        others.setdefault("served-model-name", [model])
    config = engine_args.render(engine_args.check(others, table), table)
    release = os.path.realpath(parameters["link"])
    record = read_json(os.path.join(release, "release.json"), {})
    cache = _cache(parameters["cache"], model)
    environment = server_plan.release_environment(
        release,
        record,
        # As the release's record says, else as the table of arguments says.
        str(record.get("vllm") or parameters["flags"].get("vllm") or ""),
        parameters["flashinfer_sampler"],
        parameters["flash_attn_version"],
    )
    secrets_text = server_plan.secrets_file(secrets)
    argv = [*_program(release), "serve", folder, "--config"]
    digest = server_plan.make_digest(
        salt(),
        *[parameters["unit"], argv, config, secrets_text, environment, cache],
        # What is copied may be renewed without a change of the state.
        before or _certificates(arguments),
    )
    config_name, secrets_name = (
        os.path.join(os.path.dirname(parameters["config_file"]), name) for name in server_plan.file_names(digest)
    )
    unit = server_plan.fill_unit(
        parameters["unit"],
        {
            server_plan.EXEC_START_WORD: " ".join(map(engine_args.unit_word, [*argv, config_name])),
            server_plan.DIGEST_WORD: digest,
            server_plan.ENVIRONMENT_WORD: server_plan.environment_lines(
                environment, secrets_name if secrets_text else ""
            ),
            server_plan.CERTIFICATE_WORD: (
                "ExecStartPre=+" + " ".join(map(engine_args.unit_word, before)) if before else ""
            ),
            server_plan.CACHE_WORD: server_plan.quoted(cache),
            server_plan.GUARD_WORD: server_guard.PROGRAM,
        },
    )
    host, port = engine_args.address(arguments)
    path, body = engine_args.probe(arguments)
    probe = {"host": host, "port": port, "tls": tls, "path": path, "body": body, "key": key}
    return Target(digest, unit, config, secrets_text, release, cache, probe, engine_args.served_name(arguments))


def _secrets(arguments: dict[str, Any], parameters: Mapping[str, Any]) -> tuple[dict[str, str], str]:
    """Take the secrets out of the arguments. Return them by variable, and the key that the server is asked with.

    vLLM 0.10 writes its arguments into the journal, a key among them; from the environment it tells nobody.
    """
    found = {"VLLM_API_KEY": parameters["api_key"], "HF_TOKEN": parameters["huggingface_token"]}
    key, token = arguments.get("api-key"), arguments.get("hf-token")
    keys = key if isinstance(key, list) else [key]
    if found["VLLM_API_KEY"] or len(keys) == 1:
        arguments.pop("api-key", None)
        found["VLLM_API_KEY"] = found["VLLM_API_KEY"] or str(keys[0] or "")
    if isinstance(token, str):
        arguments.pop("hf-token")
        found["HF_TOKEN"] = found["HF_TOKEN"] or token
    return found, found["VLLM_API_KEY"] or str(keys[0] or "")


def _program(release: str) -> list[str]:
    """Return the words that start vLLM of a release, by its real path.

    A virtual environment that was made under another path (the folder of the time before releases) starts whatever
    is at that path now; its own Python is named then.
    """
    program, python = os.path.join(release, "bin", "vllm"), os.path.join(release, "bin", "python")
    try:
        with open(program, "rb") as file:
            own = os.fsencode(release) + b"/" in file.read(1024)
    except OSError:
        own = True
    return [program] if own or not os.path.exists(python) else [python, program]


def _certificates(arguments: Mapping[str, Any]) -> list[str | None]:
    """Return what the server's certificate files have, for the digest; nothing when vLLM reloads them itself."""
    if arguments.get("enable-ssl-refresh") is True:
        return []
    names = ("ssl-certfile", "ssl-keyfile", "ssl-ca-certs")
    return [read_text(str(arguments[name])) for name in names if arguments.get(name)]


def _cache(declared: str, model: str) -> str:
    """Return the folder of the server's caches.

    The volume that has the model also keeps what is compiled and downloaded, so that a second start is fast, even
    of a container that was made anew. It is taken when it can be written, else the container's own disk.
    """
    if declared:
        return declared
    volume = os.path.realpath(model) if model.startswith("/") else "/"
    while not os.path.ismount(volume):
        volume = os.path.dirname(volume)
    folder = os.path.join(volume, ".vllm-cache", socket.gethostname())
    return CACHE if volume == "/" or not (os.path.isdir(folder) or os.access(volume, os.W_OK)) else folder
