# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
name: lxc_configs
author: The Phoenix Hypervisor team (@phoenix)
short_description: Containers of a phoenix_lxc_configs.json file
version_added: 0.1.0
description:
  - Makes a host of each LXC container that a C(phoenix_lxc_configs.json) file declares, with the variables that the
    roles of this collection want, and a host of each Proxmox VE node that they run on.
  - The source is a YAML file whose name ends in C(lxc_configs.yml) or C(lxc_configs.yaml).
  - All mistakes in the JSON files are reported at once, each in one sentence, and end the run when
    C(any_unparsed_is_failed) is set in C(ansible.cfg) under C([inventory]).
  - A CTID in C(--limit) that is not declared is a mistake, too. Without this, Ansible would go on with the rest.
  - Hosts are in the order of their waves (what they are cloned from and depend on comes first), then of their CTIDs.
  - Groups are C(phoenix_containers), C(phoenix_nodes), C(templates), C(node_NAME), C(feature_NAME), C(pool_STORAGE),
    C(clones_of_CTID) (what is cloned from it directly), C(lineage_CTID) (a container and all that it is cloned from,
    in this order), C(wave_N) (what can be converged at the same time) and C(serves_MODEL) (model servers that answer
    under this name).
  - Text from the JSON files is never templated.
options:
  plugin:
    description: Marks a file as a source of this plugin.
    type: str
    required: true
    choices: [phoenix.hypervisor.lxc_configs]
  config_files:
    description:
      - The JSON files that declare containers. Paths are relative to the source's own folder.
      - A CTID can be in one of them only.
    type: list
    elements: str
    default: [phoenix_lxc_configs.json]
  override_files:
    description:
      - JSON merge patches (RFC 7396) that are applied in this order to what O(config_files) declare. V(null) removes a
        key, or a container. Paths are relative to the source's own folder.
    type: list
    elements: str
    default: []
  nodes:
    description:
      - The Proxmox VE nodes, each with its connection variables.
      - Variables that say how the node is reached by SSH (C(ansible_host), C(ansible_user), C(ansible_port),
        C(ansible_ssh_*) and so on), and all variables of your own (not C(ansible_*)) are given to its containers, too.
    type: dict
    required: true
  default_node:
    description:
      - The node of containers whose entry has no C(node).
      - May be left out when there is one node.
    type: str
  live:
    description:
      - Whether to ask each node how its containers are, in one request per node. Each container then has
        C(phoenix_state) (V(running), V(stopped), V(template), V(absent), or V(incomplete) while it is created),
        C(phoenix_addresses), C(phoenix_differs) (the keys of Proxmox's configuration that differ from the declaration)
        and, where it can't become what is declared, C(phoenix_problem) with the reason.
      - The node's files are read over the node's own connection. What only the firewall's file and what is remembered
        of earlier runs tell is not compared.
      - With O(live_api_host) the REST API is asked once for all nodes. It tells neither addresses nor more of the
        configuration than name, memory, cores, disk and template, so nothing else is compared and there is no
        C(phoenix_addresses).
      - A node that doesn't answer is a warning, and its containers don't have these variables; with O(strict) it is
        a mistake.
    type: bool
    default: false
  live_api_host:
    description: Address of a node whose REST API is asked instead of the nodes' files, for O(live). Needs proxmoxer.
    type: str
    env:
      - name: PROXMOX_HOST
  live_api_port:
    description: Port of the REST API.
    type: int
    default: 8006
  live_api_user:
    description: User with its realm, such as V(ansible@pve).
    type: str
    env:
      - name: PROXMOX_USER
  live_api_token_id:
    description: Name of a token of the user.
    type: str
    env:
      - name: PROXMOX_TOKEN_ID
  live_api_token_secret:
    description: The token's secret. The environment is the better place.
    type: str
    env:
      - name: PROXMOX_TOKEN_SECRET
  live_validate_certs:
    description: Whether the API's certificate has to be trustworthy.
    type: bool
    default: true
    env:
      - name: PROXMOX_VALIDATE_CERTS
  live_ca_path:
    description: File of the CA that signed it. Left out, the system's CAs.
    type: str
notes:
  - Cached is what O(live) finds; the files are read each time. A changed declaration is compared anew.
extends_documentation_fragment:
  - constructed
  - inventory_cache
seealso:
  - plugin: phoenix.hypervisor.pct
    plugin_type: connection
"""

EXAMPLES = r"""
# inventories/site/lxc_configs.yml
plugin: phoenix.hypervisor.lxc_configs
config_files: [phoenix_lxc_configs.json]
nodes:
  pve:
    ansible_host: 192.168.1.10
    ansible_user: root

# What differs from the shared file on a second node, which Ansible itself runs on:
# plugin: phoenix.hypervisor.lxc_configs
# config_files: [../shared/phoenix_lxc_configs.json]
# override_files: [overrides.json]
# nodes:
#   pve2:
#     ansible_connection: local
# keyed_groups:
#   - key: container_config.cores
#     prefix: cores
"""

import hashlib
import json
import os
import re
import shlex
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from ansible import constants as C
from ansible import context
from ansible.errors import AnsibleError, AnsibleParserError
from ansible.inventory.manager import split_host_pattern
from ansible.module_utils.common.text.converters import to_text
from ansible.playbook.play_context import PlayContext
from ansible.plugins.inventory import BaseInventoryPlugin, Cacheable, Constructable
from ansible.plugins.loader import connection_loader
from ansible.utils.unsafe_proxy import wrap_var
from ansible_collections.phoenix.hypervisor.plugins.module_utils import engine_args, live, lxc_config

try:
    from ansible.template import trust_as_template as _trust
except ImportError:  # ansible-core before 2.19

    def _trust(value: str) -> str:
        return value


_SUFFIXES = ("lxc_configs.yml", "lxc_configs.yaml")

# How ansible-core's ssh connection reaches the node: these are the container's, too. Everything else that begins with
# ansible_ is the node's alone; its interpreter or its become method would be wrong inside.
_REACHES_NODE = re.compile(
    r"ansible_(host|user|port|password|host_key_checking|private_key(_file|_passphrase)?|control_path(_dir)?"
    r"|sshpass_prompt|(ssh|scp|sftp)_.+)"
)


# Groups by what an entry says: key → the group's name before the value.
_GROUP_BY_KEY = {"storage_pool": "pool", "clone_from_ctid": "clones_of"}


class InventoryModule(BaseInventoryPlugin, Constructable, Cacheable):
    NAME = "phoenix.hypervisor.lxc_configs"

    def verify_file(self, path: str) -> bool:
        """Is this a source of this plugin, by its name?"""
        return super().verify_file(path) and path.endswith(_SUFFIXES)

    def parse(self, inventory: Any, loader: Any, path: str, cache: bool = True) -> None:
        """Read the source and the files that it names, and fill the inventory.

        :raises AnsibleParserError: with a sentence for each mistake
        """
        super().parse(inventory, loader, path, cache)
        try:
            self._check_options(self._read_config_data(path), _shown(path))
            nodes, default_node = check_nodes(self.get_option("nodes"), self.get_option("default_node"), _shown(path))
            model = self._load(os.path.dirname(os.path.abspath(path)), nodes, default_node)
            self._check_limit(model, path)
            hosts = self.populate(model, nodes, default_node)
            if self.get_option("live"):
                self._add_live(hosts, nodes, path, cache)
            self._construct(hosts)
        except lxc_config.ConfigError as error:
            self._refuse([str(problem) for problem in error.problems])
        except AnsibleError as error:
            self._refuse([f"{_shown(path)}: {error}"])

    def _check_options(self, source: Mapping[str, Any], file: str) -> None:
        """Refuse options that there aren't: Ansible takes no notice of them, and an override would be lost.

        :raises ConfigError: when there is one, or no file to read
        """
        known = sorted({"plugin", *self._options})
        problems = [
            lxc_config.problem(file, (key,), "there is no such option", f"options are {', '.join(known)}")
            for key in source
            if key not in known
        ]
        if not self.get_option("config_files"):
            problems.append(lxc_config.problem(file, ("config_files",), "it names no file", "name a JSON file in it"))
        if problems:
            raise lxc_config.ConfigError(problems)

    def _refuse(self, sentences: list[str]) -> NoReturn:
        """End the run, or at least this source.

        :raises AnsibleParserError: with these sentences
        """
        if context.CLIARGS and C.INVENTORY_ANY_UNPARSED_IS_FAILED:
            # The run is over. An exception would first make ansible-core try the source as an ordinary inventory, and
            # bury the sentences under what its yaml and ini plugins think of it.
            for sentence in sentences:
                self.display.display(f"[ERROR]: {sentence}", color=C.COLOR_ERROR, stderr=True)
            raise SystemExit(1)
        raise AnsibleParserError("\n".join(sentences))

    def _load(self, folder: str, nodes: Mapping[str, Any], default_node: str) -> lxc_config.Model:
        """The configuration that the options' files give together, without mistakes."""
        files: dict[str, list[lxc_config.File]] = {"config_files": [], "override_files": []}
        problems: list[lxc_config.Problem] = []
        for option, those in files.items():
            for name in self.get_option(option):
                file = os.path.normpath(os.path.join(folder, name))
                try:
                    those.append(lxc_config.parse(lxc_config.read(file, _shown(file)), _shown(file)))
                except lxc_config.ConfigError as error:
                    problems += error.problems
        if problems:
            raise lxc_config.ConfigError(problems)
        config = lxc_config.combine(files["config_files"], files["override_files"])
        sources = files["config_files"] + files["override_files"]
        model = lxc_config.Model(config, sources[0].name, nodes, default_node)
        if model.problems:
            raise lxc_config.ConfigError(lxc_config.locate(model.problems, sources))
        for note in lxc_config.locate(model.notes, sources):
            self.display.warning(str(note))
        return model

    def _check_limit(self, model: lxc_config.Model, path: str) -> None:
        """Refuse a limit that names a container which is not declared.

        :raises ConfigError: when it does
        """
        if not _is_last_source(path, context.CLIARGS.get("inventory") or ()):
            # A container that isn't in this source may be in the next one.
            return
        known = set(model.entries) | {
            name[len("ctid_") :] for name in self.inventory.hosts if name.startswith("ctid_")
        }
        files = [
            _shown(os.path.join(os.path.dirname(os.path.abspath(path)), name))
            for name in self.get_option("config_files")
        ]
        problems = check_limit(context.CLIARGS.get("subset"), known, set(self.inventory.hosts), ", ".join(files))
        if problems:
            raise lxc_config.ConfigError(problems)

    def populate(
        self, model: lxc_config.Model, nodes: Mapping[str, Any], default_node: str
    ) -> dict[str, dict[str, Any]]:
        """Fill the inventory with hosts and groups; gives the variables of each container's host.

        :param model: a configuration without mistakes
        :param nodes: the variables of each node
        :param default_node: the node of entries that name none
        """
        inventory, plain = self.inventory, _Plain()
        for group in ("phoenix_nodes", "phoenix_containers", "templates"):
            inventory.add_group(group)
        for node, variables in nodes.items():
            inventory.add_host(node, group="phoenix_nodes")
            for name, value in variables.items():
                inventory.set_variable(node, name, value)
        inventory.set_variable("phoenix_containers", "phoenix_settings", plain(model.settings()))

        of_nodes = {node: _of_the_node(node, variables) for node, variables in nodes.items()}
        waves = model.waves()
        hosts = {}
        for ctid in sorted(waves, key=lambda number: (waves[number], number)):
            host, entry = f"ctid_{ctid}", model.entries[str(ctid)]
            node = entry.get("node", default_node)
            variables = {**of_nodes[node], **plain(_of_the_container(ctid, node, waves[ctid], model))}
            hosts[host] = variables
            inventory.add_host(host, group="phoenix_containers")
            for group in _groups(entry, node, waves[ctid]):
                inventory.add_host(host, group=inventory.add_group(self._sanitize_group_name(group)))
            # At once: set_variable looks at each value, and these are in their form already.
            inventory.hosts[host].vars.update(variables)
        for variables in hosts.values():
            group = inventory.add_group(f"lineage_{variables['phoenix_ctid']}")
            for member in variables["phoenix_lineage"]:
                inventory.add_host(f"ctid_{member}", group=group)
        return hosts

    def _construct(self, hosts: Mapping[str, Mapping[str, Any]]) -> None:
        """Add the variables and groups that the source's own expressions give."""
        compose, groups, keys = (self.get_option(option) for option in ("compose", "groups", "keyed_groups"))
        if not (compose or groups or keys):
            return
        strict = self.get_option("strict")
        for host, variables in hosts.items():
            self._set_composite_vars(compose, variables, host, strict=strict)
            self._add_host_to_composed_groups(groups, variables, host, strict=strict)
            self._add_host_to_keyed_groups(keys, variables, host, strict=strict)

    # --- live ---------------------------------------------------------------------------------------------------------

    def _add_live(
        self, hosts: dict[str, dict[str, Any]], nodes: Mapping[str, Any], path: str, may_use_cache: bool
    ) -> None:
        """Add what the containers are like at the moment, from the cache where it has that.

        :raises AnsibleParserError: when a node doesn't answer, with C(strict)
        """
        declared = {
            host: {name: value for name, value in variables.items() if name in lxc_config.ROLE_VARIABLES}
            for host, variables in hosts.items()
        }
        # How the nodes are asked counts as well; the cache has the digest of that only.
        said = json.dumps([declared, self.get_option("live_api_host")], sort_keys=True)
        digest = hashlib.sha256(said.encode()).hexdigest()
        key, is_cached = self.get_cache_key(path), self.get_option("cache")
        known = self._cache.get(key) if is_cached and may_use_cache else None
        found = known["hosts"] if known and known["digest"] == digest else None
        if found is None:
            found, is_complete = self._look(hosts, declared, nodes)
            if is_cached and is_complete:
                self._cache[key] = {"digest": digest, "hosts": found}
        plain = _Plain()
        for host, variables in found.items():
            hosts[host].update(plain(variables))
            self.inventory.hosts[host].vars.update(hosts[host])

    def _look(
        self,
        hosts: Mapping[str, Mapping[str, Any]],
        declared: Mapping[str, Mapping[str, Any]],
        nodes: Mapping[str, Any],
    ) -> tuple[dict[str, Any], bool]:
        """What each host is like, without those whose node doesn't answer; and whether all did."""
        if self.get_option("live_api_host"):
            try:
                resources = self._ask_api()
            except live.LiveError as error:
                self._tell("the API at " + self.get_option("live_api_host"), error)
                return {}, False
            return {host: live.compared_by_api(variables, resources) for host, variables in declared.items()}, True
        found: dict[str, Any] = {}
        is_complete = True
        for node, variables in nodes.items():
            theirs = [host for host in hosts if hosts[host]["phoenix_node"] == node]
            if not theirs:
                continue
            try:
                seen = live.read(self._ask_node(node, variables))
            except (live.LiveError, AnsibleError) as error:
                self._tell(f"node {node}", error)
                is_complete = False
                continue
            found.update((host, live.compared(declared[host], seen)) for host in theirs)
        return found, is_complete

    def _tell(self, who: str, error: Exception) -> None:
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        sentence = f"{who} does not answer: {reason}; its containers have no phoenix_state (live: true)"
        if self.get_option("strict"):
            raise AnsibleParserError(sentence)
        self.display.warning(sentence)

    def _ask_node(self, node: str, variables: Mapping[str, Any]) -> str:
        """What L(live.SCRIPT) prints on a node, over ansible-core's own connection to it.

        :raises LiveError: when it fails there
        """
        self.templar.available_variables = {"inventory_hostname": node, **variables}
        options = self.templar.template({"inventory_hostname": node, "ansible_host": node, **variables})
        name = str(options.get("ansible_connection", "ssh")).rpartition(".")[2]
        context = PlayContext()
        context.remote_addr = str(options["ansible_host"])
        connection = connection_loader.get(f"ansible.builtin.{name}", context)
        if connection is None:
            raise live.LiveError(f"there is no connection {name} in ansible-core; its state is read over ssh or local")
        connection.set_options(var_options=options)
        try:
            command = "/bin/sh -c " + shlex.quote(live.SCRIPT)
            rc, output, error = connection.exec_command(command, sudoable=False)
        finally:
            connection.close()
        if rc:
            raise live.LiveError(to_text(error).strip() or f"reading its files ended with {rc}")
        return to_text(output, errors="surrogate_then_replace")

    def _ask_api(self) -> list[dict[str, Any]]:
        """The API's list of containers. :raises LiveError: when it can't be had"""
        # Only here: the node's modules need not be loaded for a file.
        from ansible_collections.phoenix.hypervisor.plugins.module_utils import api, node

        names = ("host", "port", "user", "token_id", "token_secret")
        params = {f"api_{name}": self.get_option(f"live_api_{name}") for name in names}
        params.update(validate_certs=self.get_option("live_validate_certs"), ca_path=self.get_option("live_ca_path"))

        class Cluster(api.ApiNode):
            """All nodes: no request to find out which one is meant."""

            def _node_name(self, wanted: str | None) -> str:
                return ""

        try:
            return [one for one in Cluster(params)._get("cluster/resources", type="vm") if one.get("type") == "lxc"]
        except node.NodeError as error:
            raise live.LiveError(str(error)) from error


def check_nodes(nodes: Any, default_node: str | None, file: str) -> tuple[dict[str, dict[str, Any]], str]:
    """The nodes' variables and the name of the default node.

    :param nodes: the option as written
    :param default_node: the option as written
    :param file: the source's name, for messages
    :raises ConfigError: when there is no node, when one has no variables' form, or the default is none of them
    """

    def refuse(key: str, fault: str, remedy: str) -> lxc_config.ConfigError:
        return lxc_config.ConfigError([lxc_config.problem(file, (key,), fault, remedy)])

    if not isinstance(nodes, Mapping) or not nodes:
        raise refuse("nodes", "it names no node", "write the node's name and, below it, how it is reached")
    checked: dict[str, dict[str, Any]] = {}
    for name, variables in nodes.items():
        if variables is not None and not isinstance(variables, Mapping):
            raise refuse(
                f"nodes.{name}", "it has no variables' names", "write lines such as ansible_host: 192.168.1.10"
            )
        if str(name).startswith("ctid_"):
            raise refuse(f"nodes.{name}", "a name that begins with ctid_ is a container's", "name the node otherwise")
        checked[str(name)] = dict(variables or {})
    if default_node is None and len(checked) > 1:
        raise refuse("default_node", f"there are {len(checked)} nodes and it is missing", "name one of them in it")
    default = str(default_node if default_node is not None else next(iter(checked)))
    if default not in checked:
        raise refuse("default_node", f"{default} is not among the nodes", f"write one of {', '.join(checked)}")
    return checked, default


def check_limit(limit: str | None, known: Iterable[str], hosts: Iterable[str], file: str) -> list[lxc_config.Problem]:
    """What a limit names that is not there.

    A pattern that takes hosts away (C(!ctid_921)) is looked at as well: with a wrong CTID it would protect nothing.

    :param limit: the value of C(--limit), or nothing
    :param known: the CTIDs that there are
    :param hosts: names of hosts that are there already
    :param file: the name of the file that declares, for messages
    """
    known = set(known)
    problems = []
    for pattern in split_host_pattern(limit) if limit else []:
        match = re.fullmatch(r"[!&]?(ctid_|lineage_)?([0-9]+)(?:\[.*\])?", pattern)
        if not match or pattern.lstrip("!&") in hosts:
            continue
        prefix, ctid = match.groups()
        if ctid not in known:
            some = ", ".join(sorted(known, key=int)[:20]) + (" …" if len(known) > 20 else "")
            fault = f"the limit names {pattern.lstrip('!&')}, which is not declared"
            problems.append(lxc_config.problem(file, (), fault, f"declared are {some or 'none'}", ctid=ctid))
        elif not prefix:
            fault, remedy = f"the limit names {ctid}, which is no host", f"write ctid_{ctid} or lineage_{ctid}"
            problems.append(lxc_config.problem(file, (), fault, remedy, ctid=ctid))
    return problems


def _is_last_source(path: str, sources: Iterable[str]) -> bool:
    """Is this the last source of this plugin in the run, as far as the command line tells?"""
    mine = []
    for source in sources:
        if os.path.isdir(source):
            for folder, folders, names in os.walk(source):
                folders.sort()
                mine += [os.path.join(folder, name) for name in sorted(names) if name.endswith(_SUFFIXES)]
        elif source.endswith(_SUFFIXES):
            mine.append(source)
    return not mine or os.path.realpath(mine[-1]) == os.path.realpath(path)


def _of_the_node(node: str, variables: Mapping[str, Any]) -> dict[str, Any]:
    """What a container has from its node: how it is reached, and variables of the user's own."""
    result = {
        name: value
        for name, value in variables.items()
        if not name.startswith("ansible_") or _REACHES_NODE.fullmatch(name)
    }
    connection = str(variables.get("ansible_connection", "ssh")).rpartition(".")[2]
    result["ansible_pct_node_connection"] = _trust("local" if connection == "local" else "ssh")
    if connection != "local":
        # The connection would take the container's name for the node's address.
        result.setdefault("ansible_host", _Plain()(node))
    return result


def _of_the_container(ctid: int, node: str, wave: int, model: lxc_config.Model) -> dict[str, Any]:
    """What a container has from its declaration."""
    declared = model.config["lxc_configs"][str(ctid)]
    entry = model.entries[str(ctid)]
    return {
        "ansible_connection": "phoenix.hypervisor.pct",
        "ansible_pct_vmid": ctid,
        "ansible_python_interpreter": "/usr/bin/python3",
        "phoenix_node": node,
        "phoenix_ctid": ctid,
        "phoenix_lineage": model.lineage(str(ctid)),
        "phoenix_wave": wave,
        "phoenix_features": entry.get("features", []),
        "phoenix_application": entry.get("application_script", ""),
        "phoenix_definition": declared,
        "phoenix_deprecations": model.deprecations(str(ctid)),
        **model.role_variables(str(ctid)),
    }


def _groups(entry: Mapping[str, Any], node: str, wave: int) -> list[str]:
    """The names of the groups that a container is in, those of its lineage aside."""
    groups = [f"node_{node}", f"wave_{wave}"]
    groups += [f"feature_{feature}" for feature in entry.get("features", [])]
    groups += [f"{group}_{entry[key]}" for key, group in _GROUP_BY_KEY.items() if key in entry]
    if entry.get("application_script") and not entry.get("is_template"):
        groups += [f"serves_{name}" for name in engine_args.served_names(entry["_engine_config"])]
    return [*groups, "templates"] if entry.get("is_template") else groups


class _Plain:
    """Values of a JSON file, so that Ansible never templates them and exports them as plain JSON.

    Text with a template's mark in it stays text: wrap_var says so up to ansible-core 2.18, where text is a template
    unless it is marked; from 2.19 on it is the other way round. Either way C(ansible-inventory --list) writes what
    isn't to be templated as an object, which is no plain JSON; so all other text, with nothing in it to template, is
    left or marked as if it were a template.
    """

    def __init__(self) -> None:
        # Containers say the same things; each text is marked once.
        self._texts: dict[str, str] = {}

    def __call__(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self(member) for key, member in value.items()}
        if isinstance(value, list):
            return [self(member) for member in value]
        if isinstance(value, str):
            marked = self._texts.get(value)
            if marked is None:
                is_template = any(mark in value for mark in ("{{", "{%", "{#"))
                marked = self._texts[value] = wrap_var(value) if is_template else _trust(value)
            return marked
        return value


def _shown(path: str) -> str:
    """A path as a message has it: relative to the working folder when it is below that."""
    relative = os.path.relpath(path)  # which also takes "lab/../example" together
    return os.path.normpath(path) if relative.startswith("..") else relative
