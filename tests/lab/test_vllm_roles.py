# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The roles inside a container, for real: vLLM is installed, serves, changes and fails. Needs a lab that is up.

One container (CTID 690) serves all tests of this file; they run in their order and take about four minutes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from lab_modules import open_folder, start, wait_until

pytestmark = pytest.mark.lab

ROOT = Path(__file__).resolve().parents[2]
VMID, ADDRESS = "690", "10.92.0.90"
URL = f"http://{ADDRESS}:8000"
KEY = "s3cret-of-this-test"
ENGINE_CONFIG = {
    "ModelConfig": {
        "model": "/models/tiny llama",
        "load_format": "dummy",
        "dtype": "float32",
        "max_model_len": 256,
        "enforce_eager": True,
        "trust_remote_code": False,
    },
    "ServerConfig": {"port": 8000, "api_key": KEY, "served_model_name": ["tiny", "50% $HOME \"tiny\""]},
}


def pct(*words: str) -> str:
    """A call of pct that must end with 0. Returns stdout."""
    done = subprocess.run(["pct", *words], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done
    return done.stdout


def inside(script: str) -> str:
    """A shell script in the container that must end with 0. Returns stdout."""
    return pct("exec", VMID, "--", "sh", "-c", script).strip()


class Site:
    """An inventory with the one container, and playbooks that run roles on it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.variables: dict = {
            "ansible_connection": "phoenix.hypervisor.pct",
            "ansible_pct_vmid": int(VMID),
            "ansible_pct_node_connection": "local",
            "ansible_host": "localhost",
            "ansible_python_interpreter": "/usr/bin/python3",
            "phoenix_node": "pve",
            "container_address": ADDRESS,
            "vllm_stack_name": "cpu",
            # What is downloaded here need not be once more for the lab's own containers.
            "vllm_stack_store": "/var/lib/phoenix-lab/wheels",
            "vllm_model_server_engine_config": ENGINE_CONFIG,
        }

    def run(
        self, *roles: str, options: tuple = (), playbook: str = "", environment: dict | None = None, **variables
    ) -> subprocess.CompletedProcess:
        """Run roles of the collection on the container, or a playbook."""
        node = {"ansible_connection": "local", "ansible_python_interpreter": "/usr/bin/python3"}
        hosts = {"pve": node, f"ctid_{VMID}": {**self.variables, **variables}}
        (self.folder / "hosts.yml").write_text(yaml.safe_dump({"all": {"hosts": hosts}}, allow_unicode=True))
        tasks = [{"ansible.builtin.include_role": {"name": f"phoenix.hypervisor.{role}"}} for role in roles]
        play = [{"hosts": f"ctid_{VMID}", "gather_facts": False, "tasks": tasks}]
        (self.folder / "play.yml").write_text(yaml.safe_dump(play))
        program = str(Path(sys.executable).with_name("ansible-playbook"))
        what = playbook or str(self.folder / "play.yml")
        return subprocess.run(
            [program, "-i", str(self.folder / "hosts.yml"), what, *options],
            cwd=ROOT, capture_output=True, text=True, timeout=900, check=False,
            env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1",
                 **(environment or {})},
        )  # fmt: skip

    def good(self, *roles: str, **variables) -> int:
        """The same; it must succeed. Returns how many tasks changed something."""
        done = self.run(*roles, **variables)
        assert done.returncode == 0, done.stdout + done.stderr
        return int(done.stdout.rsplit("changed=", 1)[1].split()[0])

    def refused(self, *roles: str, **variables) -> str:
        """The same; it must fail, without a traceback of ours. Returns the message."""
        done = self.run(*roles, **variables)
        assert done.returncode == 2, done.stdout + done.stderr
        assert "Traceback (most recent call last):\n  File \"<" not in done.stdout
        # The message is folded by the YAML callback.
        return " ".join(done.stdout.replace("''", "'").split())


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """A container of the lab's base, with a model whose path has a blank in it."""
    with open_folder() as folder:
        models = folder / "models"
        command = [sys.executable, str(ROOT / "lab/tiny_llama.py"), str(models / "tiny llama")]
        subprocess.run(command, check=True, capture_output=True)
        if Path(f"/etc/pve/lxc/{VMID}.conf").exists():
            pct("destroy", VMID, "--force")
        pct(
            "create", VMID, "local:vztmpl/debian-12-lab_12_amd64.tar.zst", "--hostname", f"vllm{VMID}",
            "--memory", "6144", "--cores", "2", "--rootfs", "local-btrfs:8", "--unprivileged", "1",
            "--features", "nesting=1", "--mp0", f"{models},mp=/models",
            "--net0", f"name=eth0,bridge=vmbr0,ip={ADDRESS}/24,gw=10.92.0.1",
        )  # fmt: skip
        start(int(VMID))
        yield Site(folder)
        pct("destroy", VMID, "--force")


@pytest.fixture
def served(site) -> None:
    """The model is served as test_a_change_restarts_once_even_after_a_run_that_died leaves it, also alone."""
    config = {**ENGINE_CONFIG, "SchedulerConfig": {"max_num_seqs": 2}}
    site.good("base_setup", "vllm_stack", "vllm_model_server", vllm_model_server_engine_config=config)


def completion(model: str) -> str:
    """Ask over the network. Returns the answer's text."""
    body = json.dumps({"model": model, "prompt": "Hello", "max_tokens": 4, "temperature": 0}).encode()
    request = urllib.request.Request(f"{URL}/v1/completions", body, {"Content-Type": "application/json"})
    request.add_header("Authorization", f"Bearer {KEY}")
    with urllib.request.urlopen(request, timeout=60) as reply:
        return json.load(reply)["choices"][0]["text"]


def answers() -> bool:
    """Whether it gives one."""
    try:
        return bool(completion("tiny"))
    except OSError:
        return False


def main_pid() -> str:
    """The server's process."""
    return inside("systemctl show --value --property=MainPID vllm_model_server.service")


def test_no_release_no_server(site):
    assert "needs the feature vllm" in site.refused("vllm_model_server")


def test_cas_are_trusted_exactly(site):
    certificate = site.folder / "Site CA.crt"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
         "-keyout", site.folder / "key", "-out", certificate, "-subj", "/CN=phoenix-lab-test"],
        check=True, capture_output=True,
    )  # fmt: skip
    others = inside("cat /etc/pip.conf; grep -v system-certs /etc/uv/uv.toml")
    assert site.good("base_setup", "trusted_ca", trusted_ca_files=[str(certificate)]) == 2
    line = certificate.read_text().splitlines()[3]
    store = "/etc/ssl/certs/ca-certificates.crt"
    assert inside(f"grep -cF '{line}' {store}") == "1"
    assert inside("cat /etc/pip.conf; grep -v system-certs /etc/uv/uv.toml") == others
    assert site.good("trusted_ca", trusted_ca_files=[str(certificate)]) == 0
    assert "private key" in site.refused("trusted_ca", trusted_ca_files=[str(site.folder / "key")])
    assert site.good("trusted_ca", trusted_ca_files=[]) == 1
    assert inside(f"grep -cF '{line}' {store} || true") == "0"


def test_install_and_serve(site):
    site.good("base_setup")
    # The claim in the node's store (or the wheels, in a lab that has them), the distribution's packages, the release,
    # its wheels in the store (or gone from the container), the server.
    assert site.good("vllm_stack", "vllm_model_server", "verify") == 5
    assert completion("tiny") and completion(ENGINE_CONFIG["ServerConfig"]["served_model_name"][1])
    record = json.loads(inside("cat /opt/vllm/release.json"))
    assert inside("readlink /opt/vllm") == f"/opt/vllm-releases/{record['release']}"
    script = 'import importlib.metadata as m; print(m.version("torch"))'
    assert inside(f"/opt/vllm/bin/python -c '{script}'") == "2.13.0+cpu"


def test_a_second_run_changes_nothing(site):
    pid = main_pid()
    cache = site.folder / "facts"
    facts = {"ANSIBLE_CACHE_PLUGIN": "ansible.builtin.jsonfile", "ANSIBLE_CACHE_PLUGIN_CONNECTION": str(cache),
             "ANSIBLE_GATHERING": "smart"}  # fmt: skip
    roles = ("base_setup", "vllm_stack", "vllm_model_server", "verify")
    done = site.run(*roles, options=("-vvv", "--diff"), environment=facts)
    assert done.returncode == 0 and "changed=0" in done.stdout, done.stdout
    assert main_pid() == pid
    assert KEY not in done.stdout + done.stderr
    assert not [path for path in cache.rglob("*") if path.is_file() and KEY in path.read_text()]


def test_secrets_are_in_one_file_only(site):
    assert KEY in inside("cat /etc/vllm/secrets-*.env") and KEY not in inside("cat /etc/vllm/engine.yaml")
    assert inside(f"journalctl --no-pager | grep -c {KEY} || true") == "0"
    assert inside(f"cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -v grep | grep -c {KEY} || true") == "0"
    found = inside(f"grep -rl {KEY} /etc /var/log /var/cache /tmp || true")
    assert found == inside("ls /etc/vllm/secrets-*.env") and inside(f"stat -c '%U %a' {found}") == "root 600"
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{URL}/v1/models", timeout=10)


def test_the_service_is_what_it_should_be(site):
    assert inside("systemctl is-enabled vllm_model_server.service") == "enabled"
    assert inside("systemd-analyze verify /etc/systemd/system/vllm_model_server.service 2>&1") == ""
    assert inside("stat -L -c '%U:%G %a' /etc/vllm/engine.yaml") == "root:vllm 640"
    assert inside(f"stat -c %U /proc/{main_pid()}") == "vllm"
    variables = inside(f"tr '\\0' '\\n' </proc/{main_pid()}/environ")
    assert "CUDA_HOME=" not in variables and "LD_LIBRARY_PATH=" not in variables
    assert "VLLM_CPU_KVCACHE_SPACE=1" in variables.splitlines()


def test_mistakes_in_the_engine_config_change_nothing(site):
    pid = main_pid()
    before = inside("cat /etc/vllm/engine.yaml /etc/systemd/system/vllm_model_server.service")
    for change, sentence in (
        ({"SchedulerConfig": {"max_num_seq": 1}}, "the nearest that it has is max_num_seqs"),
        ({"ModelConfig": {"model": "/models/not-there"}}, "there is no such folder in the container"),
        ({"ModelConfig": {}}, "ModelConfig.model is missing"),
        ({"ServerConfig": {"port": "eight"}}, "port is 'eight': it must be an integer"),
    ):
        config = {**ENGINE_CONFIG, **change}
        assert sentence in site.refused("vllm_model_server", vllm_model_server_engine_config=config)
    assert inside("cat /etc/vllm/engine.yaml /etc/systemd/system/vllm_model_server.service") == before
    assert main_pid() == pid


def test_check_mode_tells_and_does_nothing(site):
    pid = main_pid()
    config = {**ENGINE_CONFIG, "SchedulerConfig": {"max_num_seqs": 2}}
    done = site.run("vllm_model_server", options=("--check", "--diff"), vllm_model_server_engine_config=config)
    assert done.returncode == 0 and "+max-num-seqs: 2" in done.stdout and "restart vllm_model_server" in done.stdout
    assert main_pid() == pid and "max-num-seqs" not in inside("cat /etc/vllm/engine.yaml")


def test_a_change_restarts_once_even_after_a_run_that_died(site):
    # What a run leaves that died after writing and before restarting.
    config = {**ENGINE_CONFIG, "SchedulerConfig": {"max_num_seqs": 2}}
    pid = main_pid()
    inside("sed -i s/PHOENIX_DIGEST=.*/PHOENIX_DIGEST=another/ /etc/systemd/system/vllm_model_server.service")
    assert site.good("vllm_model_server", vllm_model_server_engine_config=config) == 1
    assert main_pid() != pid
    assert "max-num-seqs: 2" in inside("cat /etc/vllm/engine.yaml").splitlines()
    assert completion("tiny")
    assert site.good("vllm_model_server", vllm_model_server_engine_config=config) == 0


@pytest.mark.full
@pytest.mark.usefixtures("served")
def test_one_that_was_killed_or_hangs_comes_back(site):
    """Killed, systemd starts it again; when it only stands still, the watchdog notices."""
    # In its time limit are the waits of a loaded machine.
    assert site.good("vllm_model_server", vllm_model_server_watchdog_limit=45) == 1
    memory = "cat /run/vllm_model_server_watchdog/memory.json"
    for signal, seconds in (("KILL", 300), ("STOP", 400)):
        # What has never answered the watchdog is taken for loading.
        wait_until(lambda: '"answered": true' in inside(memory), 60)
        pid = main_pid()
        inside(f"systemctl kill --signal={signal} vllm_model_server.service")
        wait_until(lambda pid=pid: main_pid() not in ("0", pid) and answers(), seconds)
    ends = [json.loads(line) for line in inside("cat /var/lib/vllm_model_server/ends.jsonl").splitlines()]
    assert "has not answered for" in ends[-1]["watchdog"] and "watchdog" not in ends[-2]
    assert site.good("vllm_model_server") == 1, "the watchdog's own limit again"


@pytest.mark.full
@pytest.mark.usefixtures("served")
def test_back_on_purpose_and_a_reboot(site):
    config = {**ENGINE_CONFIG, "SchedulerConfig": {"max_num_seqs": 3}}
    assert site.good("vllm_model_server", vllm_model_server_engine_config=config) == 1
    assert "max-num-seqs: 3" in inside("cat /etc/vllm/engine.yaml").splitlines()
    done = site.run(playbook=str(ROOT / "playbooks/rollback.yml"), options=("-e", f"phoenix_target=ctid_{VMID}"))
    assert done.returncode == 0, done.stdout
    assert "max-num-seqs: 3" not in inside("cat /etc/vllm/engine.yaml").splitlines() and answers()
    state = inside("readlink /etc/vllm/engine.yaml")
    pct("reboot", VMID)
    wait_until(answers, 400)
    assert inside("readlink /etc/vllm/engine.yaml") == state


@pytest.mark.full
@pytest.mark.usefixtures("served")
def test_a_server_that_can_not_start_is_told_with_its_last_words(site):
    model = {**ENGINE_CONFIG["ModelConfig"], "model": "/models"}
    said = site.refused("vllm_model_server", vllm_model_server_engine_config={"ModelConfig": model})
    assert "ended before it answered (systemd says exit-code)" in said
    assert "Error" in said.split("Its last lines", 1)[0]
    assert "The change was undone" in said and "max-num-seqs: 2" in inside("cat /etc/vllm/engine.yaml").splitlines()
    assert site.good("vllm_model_server") == 1
    assert completion("tiny")


@pytest.mark.full
@pytest.mark.usefixtures("served")
def test_an_installation_that_was_killed_is_done_again(site):
    live = inside("readlink /opt/vllm")
    # The same files and one more name: another release.
    other = {"vllm_stack_overrides": {"distribution_aliases": {"phoenix-test": "1.0"}}}
    inside("systemd-run --quiet --unit=killer sh -c 'until grep -qs \"installing packages\" "
           "/opt/vllm-releases/.work/*/progress.json; do sleep 0.1; done; "
           "systemctl kill --kill-who=all --signal=KILL vllm_release.service'")
    said = site.refused("vllm_stack", **other)
    assert "The installation was killed (signal 9) while it was installing packages" in said
    assert "The live release was not touched" in said
    assert inside("readlink /opt/vllm") == live
    assert site.good("vllm_stack", **other) >= 1
    new = inside("readlink /opt/vllm")
    assert new != live and inside(f"cat {new}/release.json {live}/release.json")
    # The server runs on the former release until its role is run: its digest tells.
    assert site.good("vllm_model_server", **other) == 1
    assert site.good("vllm_stack", "vllm_model_server") == 2, "back to the former release, which is still there"


def test_no_network_is_one_clear_sentence(site):
    inside("rm -rf /opt/vllm-releases/.uv-* /opt/vllm-releases/.cache /opt/vllm-releases/cpu-*/release.json; "
           "ip route del default")
    said = site.refused("vllm_stack", vllm_stack_store="")
    assert "can't reach the package index" in said and "/var/log/vllm-release.log" in said
