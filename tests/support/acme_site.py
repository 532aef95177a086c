# Copyright (c) 2026 The Phoenix Hypervisor team
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A CA in a container of the lab, and containers that have their certificates from it.

The CA is Caddy's ACME server, which is smallstep's own library. Debian's Caddy gives certificates for twelve hours and
can't be told otherwise, so it is its intermediate that lives for minutes: a certificate is worth as much as the
shortest part of its chain. Root and intermediate are made here; the root's key never leaves this machine.
"""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
from pathlib import Path

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from lab_modules import OSTEMPLATE, ROOT, destroy, pct, start
from lab_modules import inside as inside_of

PLAYBOOK = str(Path(sys.executable).with_name("ansible-playbook"))
CA_VMID, CA_ADDRESS = 103, "10.92.0.103"
URL = f"https://{CA_ADDRESS}:9000"
DOMAIN = "lab.test"
CADDY = f"""{{
  admin off
  skip_install_trust
  auto_https disable_redirects
  pki {{
    ca acme {{
      root {{
        cert /etc/caddy/root.pem
        key /etc/caddy/root.key
      }}
      intermediate {{
        cert /etc/caddy/intermediate.pem
        key /etc/caddy/intermediate.key
      }}
    }}
  }}
}}
{URL} {{
  tls /etc/caddy/server.pem /etc/caddy/server.key
  acme_server {{
    ca acme
  }}
  @roots path /roots.pem /root/*
  root * /srv/ca
  file_server @roots
}}
"""
PEBBLE = {
    "pebble": {
        "listenAddress": f"{CA_ADDRESS}:14000", "managementListenAddress": f"{CA_ADDRESS}:15000",
        "certificate": "/etc/caddy/server.pem", "privateKey": "/etc/caddy/server.key", "httpPort": 80, "tlsPort": 443,
        "ocspResponderURL": "", "externalAccountBindingRequired": False,
    }
}  # fmt: skip
CONFIG = "/var/lib/phoenix_certificate/config.json"
PEBBLE_URL = f"https://{CA_ADDRESS}:14000"


def container(vmid: int, address: str, hostname: str) -> None:
    """Make a container, anew."""
    destroy(vmid)
    pct(
        "create", str(vmid), OSTEMPLATE, "--rootfs", "local-btrfs:2", "--unprivileged", "1", "--memory", "512",
        "--features", "nesting=1", "--hostname", hostname, "--cores", "2",
        "--net0", f"name=eth0,bridge=vmbr0,ip={address}/24,gw=10.92.0.1",
    )  # fmt: skip
    # A container before this one may have had the address, with another MAC.
    subprocess.run(["ip", "neigh", "flush", "to", address], check=True)
    start(vmid)


def install(vmid: int, *packages: str) -> None:
    """Install packages of the distribution."""
    inside_of(vmid, "apt-get update -q >/dev/null && DEBIAN_FRONTEND=noninteractive apt-get install -qy "
              f"--no-install-recommends {' '.join(packages)} >/dev/null 2>&1")  # fmt: skip


def listens(port: int) -> str:
    """A shell script that waits until somebody listens on a port."""
    return f"for i in $(seq 100); do ss -Hltn 'sport = :{port}' | grep -q . && exit 0; sleep 0.1; done; exit 1"


class Authority:
    """A root certificate and what it signs.

    :ivar pem: the root
    :ivar fingerprint: its SHA-256
    """

    def __init__(self, name: str = "Lab root", days: int = 3650) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = self._sign(name, self.key, datetime.timedelta(days=days), 1, None)
        self.pem = pem_of(self.certificate)
        self.fingerprint = self.certificate.fingerprint(hashes.SHA256()).hex()

    def _sign(self, name: str, key, lifetime: datetime.timedelta, path_length: int | None, issuer, names=(),
              begin: datetime.datetime | None = None) -> x509.Certificate:  # fmt: skip
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        begin = begin or datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(seconds=30)
        builder = (
            x509.CertificateBuilder().subject_name(subject).public_key(key.public_key())
            .issuer_name(issuer.subject if issuer else subject).serial_number(x509.random_serial_number())
            .not_valid_before(begin).not_valid_after(begin + datetime.timedelta(seconds=30) + lifetime)
            .add_extension(x509.BasicConstraints(path_length is not None, path_length), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
        )  # fmt: skip
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self.key, hashes.SHA256())

    def intermediate(self, lifetime: datetime.timedelta) -> tuple[str, str]:
        """Certificate and key of a new intermediate."""
        key = ec.generate_private_key(ec.SECP256R1())
        return pem_of(self._sign("Lab intermediate", key, lifetime, 0, self.certificate)), key_of(key)

    def leaf(self, *names: str, lifetime: datetime.timedelta = datetime.timedelta(days=365),
             begin: datetime.datetime | None = None) -> tuple[str, str]:  # fmt: skip
        """Certificate and key for these names and addresses."""
        import ipaddress

        key = ec.generate_private_key(ec.SECP256R1())
        wanted = [x509.IPAddress(ipaddress.ip_address(name)) if name[0].isdigit() else x509.DNSName(name)
                  for name in names]  # fmt: skip
        return pem_of(self._sign(names[0], key, lifetime, None, self.certificate, wanted, begin)), key_of(key)


def pem_of(certificate: x509.Certificate) -> str:
    """A certificate as text."""
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def key_of(key) -> str:
    """A key as text."""
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL,
                             serialization.NoEncryption()).decode()  # fmt: skip


class CA:
    """The CA in a container of its own. It is stopped by itself until it is started."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = Authority()

    def create(self, *packages: str) -> None:
        """Make the container, anew."""
        container(CA_VMID, CA_ADDRESS, "ca")
        install(CA_VMID, "caddy", *packages)
        self.inside("systemctl disable --now caddy 2>/dev/null; mkdir -p /srv/ca/root; rm -f /etc/caddy/Caddyfile")
        self.put("/etc/caddy/Caddyfile", CADDY)
        self.put("/etc/caddy/pebble.json", json.dumps(PEBBLE))

    def close(self) -> None:
        """Remove it."""
        destroy(CA_VMID)

    def inside(self, script: str) -> str:
        """What a shell script in the container prints."""
        return inside_of(CA_VMID, script)

    def put(self, path: str, text: str) -> None:
        """Write a file in the container."""
        file = self.folder / "put"
        file.write_text(text)
        pct("push", str(CA_VMID), str(file), path, "--perms", "0644")

    def knows(self, **addresses: str) -> None:
        """Have names of the domain lead to addresses."""
        for name, address in addresses.items():
            full = f"{name}.{DOMAIN}"
            self.inside(f"sed -i '/ {full}$/d' /etc/hosts && echo '{address} {full}' >>/etc/hosts")

    def prepare(self, lifetime: datetime.timedelta = datetime.timedelta(days=7)) -> None:
        """Lay out root, a new intermediate and the server's own certificate."""
        certificate, key = self.authority.intermediate(lifetime)
        server, server_key = self.authority.leaf(CA_ADDRESS)
        # Caddy wants the root's key, but signs with the intermediate; another one does.
        _other, root_key = self.authority.leaf("unused.test")
        files = {"root.pem": self.authority.pem, "root.key": root_key, "intermediate.pem": certificate,
                 "intermediate.key": key, "server.pem": server, "server.key": server_key}  # fmt: skip
        for name, text in files.items():
            self.put(f"/etc/caddy/{name}", text)
        self.put("/srv/ca/roots.pem", self.authority.pem)
        self.inside("rm -f /srv/ca/root/*")
        self.put(f"/srv/ca/root/{self.authority.fingerprint}", json.dumps({"ca": self.authority.pem}))

    def start(self, lifetime: datetime.timedelta = datetime.timedelta(days=7)) -> None:
        """Start it; what it gives is worth so much."""
        self.prepare(lifetime)
        self.inside(f"systemctl restart caddy && {listens(9000)}")

    def stop(self) -> None:
        """Nothing listens there any more."""
        self.inside("systemctl stop caddy")

    def start_pebble(self, **variables: str) -> str:
        """Start Pebble in its place. Returns its root, which is another one at each start."""
        self.prepare()
        settings = " ".join(f"-E {name}={value}" for name, value in variables.items())
        command = f"systemd-run -q --unit pebble {settings} pebble -config /etc/caddy/pebble.json"
        self.inside("systemctl stop caddy pebble 2>/dev/null; systemctl reset-failed pebble 2>/dev/null; "
                    f"{command} && {listens(14000)}")  # fmt: skip
        return self.inside(f"curl -sk https://{CA_ADDRESS}:15000/roots/0")

    def stop_pebble(self) -> None:
        """Stop it."""
        self.inside("systemctl stop pebble")


class Client:
    """A container with certificates, and what is run on it.

    :ivar variables: of the role, beside the CA's
    """

    def __init__(self, vmid: int, address: str, ca: CA, folder: Path) -> None:
        self.vmid, self.address, self.ca, self.folder = vmid, address, ca, folder
        self.name = f"c{vmid}"
        self.full = f"{self.name}.{DOMAIN}"
        self.variables: dict = {}

    def create(self) -> None:
        """Make the container, anew."""
        container(self.vmid, self.address, self.name)
        install(self.vmid, "python3-apt")
        self.ca.knows(**{self.name: self.address})

    def close(self) -> None:
        """Remove it."""
        destroy(self.vmid)

    def inside(self, script: str) -> str:
        """What a shell script in the container prints."""
        return inside_of(self.vmid, script)

    def put(self, path: str, text: str) -> None:
        """Write a file in the container."""
        file = self.folder / f"put{self.vmid}"
        file.write_text(text)
        pct("push", str(self.vmid), str(file), path, "--perms", "0600")

    def run_in(self, seconds: int, script: str) -> str:
        """What a shell script prints for which it is so many seconds later than for the CA (libfaketime)."""
        library = "$(echo /usr/lib/*/faketime/libfaketime.so.1)"
        return self.inside(f"LD_PRELOAD={library} FAKETIME={seconds:+d}s {script}")

    def command(self, options: tuple, playbook: str, variables: dict) -> list[str]:
        """The command line of a run."""
        node = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
        host = {
            "ansible_connection": "phoenix.hypervisor.pct", "ansible_pct_vmid": self.vmid, "ansible_host": "localhost",
            "ansible_pct_node_connection": "local", "ansible_python_interpreter": "/usr/bin/python3",
            "phoenix_node": "pve", "phoenix_ctid": str(self.vmid), "container_address": self.address,
            "certificate_name": self.full, "certificate_ca_url": URL,
            "certificate_ca_fingerprint": [self.ca.authority.fingerprint], "certificate_check_jitter": "0",
            "certificate_validation_timeout": 30, "certificate_retry": 2, **self.variables, **variables,
        }  # fmt: skip
        inventory = {"all": {"hosts": {"pve": node}, "children": {"phoenix_containers": {
            "hosts": {f"ctid_{self.vmid}": host}}}}}  # fmt: skip
        hosts, play = self.folder / f"hosts{self.vmid}.yml", self.folder / f"play{self.vmid}.yml"
        hosts.write_text(yaml.safe_dump(inventory))
        tasks = [{"ansible.builtin.include_role": {"name": "phoenix.hypervisor.certificate"}}]
        play.write_text(yaml.safe_dump([{"hosts": f"ctid_{self.vmid}", "gather_facts": False, "tasks": tasks}]))
        return [PLAYBOOK, "-i", str(hosts), playbook or str(play), *options]

    def run(self, *options: str, playbook: str = "", code: int = 0, **variables) -> str:
        """A run of the role, or of a playbook, that must end so. Returns what was said, without the YAML's folding."""
        environment = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1",
                       "COLUMNS": "9999"}  # fmt: skip
        done = subprocess.run(
            self.command(options, playbook, variables), cwd=ROOT, env=environment, text=True, timeout=300,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stdout
        assert 'File "<' not in done.stdout and "PRIVATE KEY" not in done.stdout, done.stdout
        return " ".join(done.stdout.replace("''", "'").split())

    def configure(self, change) -> None:
        """Change the program's configuration, as a run of the role would, in less time."""
        config = json.loads(self.inside(f"cat {CONFIG}"))
        change(config)
        self.put(CONFIG, json.dumps(config))

    def status(self) -> dict:
        """What the program says of its last run."""
        return json.loads(self.inside("cat /var/lib/phoenix_certificate/status.json"))

    def renew(self, *words: str, environment: str = "") -> str:
        """Run the program by hand. Returns what it said, and its exit code at the end."""
        program = "/usr/local/libexec/phoenix_certificate/renew.py"
        return self.inside(f"{environment} {program} run {' '.join(words)} 2>&1; echo exit $?")

    def serial(self, path: str) -> str:
        """The serial number of a certificate, nothing when there is none."""
        return self.inside(f"openssl x509 -in {path} -noout -serial 2>/dev/null || true")
