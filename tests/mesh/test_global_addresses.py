"""S7: hosts whose only addresses are global, outside what the mesh may certify."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from octaskly.trust import create_secret_file
from tests.mesh.forming import FORM_S, is_formed
from tests.mesh.lab import Host, Lab
from tests.mesh.netns import ip, missing, wait_until

pytestmark = [
    pytest.mark.netns,
    pytest.mark.timeout(180),
    pytest.mark.skipif(not shutil.which("curl"), reason="apt install curl"),
]

SITE = "www.example"  #: an `--allow-host` name
LOCAL = f"{socket.gethostname().split('.')[0]}.local"


def address_of(host: Host) -> str:
    """Return the IPv4 address that a host has here: a global one."""
    return f"203.0.113.{host.number}"


@pytest.fixture(scope="module")
def hosts() -> Iterator[list[Host]]:
    """Two hosts that are a mesh."""
    if reason := missing():
        pytest.skip(reason)
    with Lab(2) as lab:
        secret = lab.folder / "mesh.key"
        create_secret_file(secret)
        for host in lab.hosts:
            ip(
                "addr flush dev eth0",
                f"addr add {address_of(host)}/24 dev eth0",
                f"addr add 2001:db8::{host.number}/64 dev eth0",
                netns=host.netns,
            )
        for host in lab.hosts:
            host.agent("", "--allow-host", SITE, secret=secret, is_awaited=False)
        wait_until("they met", lambda: is_formed(lab.hosts), within_s=FORM_S)
        yield lab.hosts


def ask(
    asking: Host, asked: Host, name: str, *options: str
) -> subprocess.CompletedProcess[str]:
    """Ask a host for `/health` by any name, with curl."""
    port = asked.first.description["lan_url"].rpartition(":")[2]
    place = f"[{name}]" if ":" in name else name
    address = address_of(asked) if ":" not in name else place
    return asking.run(
        "curl",
        *("-sS", "--connect-to", f"::{address}:{port}", *options),
        f"https://{place}:{port}/health",
    )


def test_nodes_forward_to_global_addresses(hosts: list[Host]) -> None:
    """Each node serves a submission, so one of them forwards it to the other."""
    for host in hosts:
        assert host.first.description["lan_url"].startswith("https://203.0.113.")
        done = host.cli("run", "--", "echo reached")
        assert (done.returncode, done.stdout) == (0, "reached\n"), done.stderr


@pytest.mark.parametrize("name", ["203.0.113.1", "2001:db8::1", "box", SITE])
def test_a_place_outside_is_reached_by_the_pin_only(
    hosts: list[Host], tmp_path: Path, name: str
) -> None:
    """A global address, a plain host name, and one of `--allow-host`."""
    asked, asking = hosts
    root = tmp_path / "ca.pem"
    root.write_text(asked.cli("ca").stdout)
    pin, other_pin = (host.cli("ca", "--node").stdout.strip() for host in hosts)

    by_root = ask(asking, asked, name, "--cacert", str(root))
    by_pin = ask(asking, asked, name, "-k", "--pinnedpubkey", pin)
    by_other_pin = ask(asking, asked, name, "-k", "--pinnedpubkey", other_pin)

    assert by_root.returncode == 60, by_root.stderr
    assert by_pin.returncode == 0, by_pin.stderr
    assert by_other_pin.returncode == 90, by_other_pin.stderr


def test_a_local_name_is_reached_by_the_root(hosts: list[Host], tmp_path: Path) -> None:
    """The host has it by mDNS, whatever its addresses are."""
    asked, asking = hosts
    root = tmp_path / "ca.pem"
    root.write_text(asking.cli("ca").stdout)

    done = ask(asking, asked, LOCAL, "--cacert", str(root))

    assert done.returncode == 0, done.stderr
