"""`octaskly doctor` on a LAN with one broken part after another.

Hosts 1 and 2 are a mesh. Host 3 is a machine beside it that runs no agent unless a test
starts one. All tests share the lab, so each repairs its own damage. `well` is the
result when nothing is broken.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from octaskly.store.tables.database import open_writer
from octaskly.trust import MeshSecret, generate_secret
from tests.mesh.forming import FORM_S, is_formed, nodes
from tests.mesh.lab import Host, Lab
from tests.mesh.netns import ip, missing, wait_until

pytestmark = [pytest.mark.netns, pytest.mark.timeout(180)]

SPARE = "spare"
#: Good results of a machine without an agent; a stalled machine may miss an answer.
WELL = ("mdns", "interface", "secret", "clock", "version", "disk", "descriptors")
OCTASKLY = (sys.executable, "-m", "octaskly")
Found = dict[str, tuple[str, str, str]]


@pytest.fixture(scope="module")
def secret() -> MeshSecret:
    """The secret of the mesh, which was rotated: an older one exists."""
    newer = generate_secret().with_new_generation(os.urandom(20), 0, revoked=None)
    return newer.with_newest_in_force(0)


@pytest.fixture(scope="module")
def lab(secret: MeshSecret) -> Iterator[Lab]:
    """Two hosts that are a mesh, and a third machine."""
    if reason := missing():
        pytest.skip(reason)
    with Lab(3) as lab:
        for host in lab.hosts[:2]:
            key = write(host, secret.with_newest_only(0).to_text())
            host.agent(secret=key, is_awaited=False)
        until_met(lab)
        yield lab


@pytest.fixture(scope="module")
def well(lab: Lab, secret: MeshSecret) -> Found:
    """The findings on the third machine when nothing is broken."""
    key = str(write(lab.hosts[2], secret.with_newest_only(0).to_text()))

    def look() -> Found | None:
        found = ask_spare(lab, "--interface", "eth0", "--secret-file", key)
        is_well = all(found[check][0] == "ok" for check in WELL)
        return found if is_well else None

    found = wait_until("all is well", look, within_s=FORM_S)
    assert found is not None
    return found


def write(host: Host, text: str, name: str = "mesh.key") -> Path:
    """Write a secret file of a host."""
    path = host.folder / name
    path.write_text(text)
    path.chmod(0o600)
    return path


def until_met(lab: Lab) -> None:
    """Wait until the two are a mesh."""
    wait_until("two are met", lambda: is_formed(lab.hosts[:2]), within_s=FORM_S)


def read(done: subprocess.CompletedProcess[str]) -> Found:
    """Return status, words and hint by check; of several, the worst."""
    assert done.returncode in (0, 1), done.stderr
    body = json.loads(done.stdout)
    assert body["healthy"] == (done.returncode == 0)
    order = ("ok", "unchecked", "warning", "fault")
    lines = sorted(body["findings"], key=lambda each: order.index(each["status"]))
    return {
        each["check"]: (each["status"], each["says"], each["hint"] or "")
        for each in lines
    }


def ask(host: Host, *args: str) -> Found:
    """Run the doctor against the agent of a host."""
    return read(host.cli("doctor", "--json", *args))


def ask_spare(
    lab: Lab, *args: str, state: Path | None = None, by: Sequence[str] = OCTASKLY
) -> Found:
    """Run the doctor on the third host, where no agent runs."""
    host = lab.hosts[2]
    chosen = ["--state-dir", str(state)] if state else []
    return read(
        host.run(*by, *chosen, "doctor", "--json", *args, env=host.environ(SPARE))
    )


def together(*asks: Callable[[], Found]) -> list[Found]:
    """Run doctors at the same time that do not disturb each other."""
    with ThreadPoolExecutor(len(asks)) as threads:
        return [each.result() for each in [threads.submit(ask) for ask in asks]]


def is_well(host: Host) -> bool:
    """Return True if the doctor finds no fault of the agent of a host."""
    return all(status == "ok" for status, _, _ in ask(host).values())


def test_healthy_mesh_has_no_fault(lab: Lab) -> None:
    """All possible checks pass, both ways, and the exit code says so."""
    wait_until("all is well", lambda: is_well(lab.hosts[0]), within_s=FORM_S)
    found = ask(lab.hosts[0])
    assert {check: status for check, (status, _, _) in found.items()} == dict.fromkeys(
        (
            *("agent", "interface", "mdns", "secret", "mesh", "multicast", "tcp"),
            *("clock", "version", "port", "state", "disk", "files", "outputs"),
            *("log", "descriptors"),
        ),
        "ok",
    )
    assert found["tcp"][1] == "1 node is reached, in both directions"
    assert re.fullmatch(r"it has \d+ streams?", found["log"][1])


def test_doctor_names_the_program_that_holds_port_5353(lab: Lab, well: Found) -> None:
    """Another mDNS program may hold the port exclusively."""
    code = (
        "import socket; s = socket.socket(2, 2); s.bind(('', 5353));"
        "print(flush=True); input()"
    )
    holder = lab.hosts[2].popen(
        sys.executable, "-c", code, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    holder.stdout.readline()

    held = ask_spare(lab)["mdns"]
    holder.kill()
    holder.wait()

    assert held[0] == "fault"
    assert f"(pid {holder.pid}) uses UDP port 5353" in held[1]
    assert "disallow-other-stacks=no" in held[2]
    assert well["mdns"][0] == "ok"


def test_dropped_multicast_is_distinguished_from_a_dead_node(lab: Lab) -> None:
    """The switch drops it, as with IGMP snooping; TCP still works."""
    first, second, _ = lab.hosts
    # Both ways: a host that hears no question may still answer an earlier one.
    for host in (first, second):
        plug(lab, host, "mcast_flood off")

    dropped = ask(first)["multicast"]
    for host in (first, second):
        plug(lab, host, "mcast_flood on")

    assert dropped[0] == "fault"
    # The node is known by whichever of its addresses answered: IPv4 or link-local.
    assert re.search(rf"TCP works, .*: {second.name} \(\S+:7878\)", dropped[1])
    assert "octaskly agent --join HOST" in dropped[2]


def test_dropped_multicast_is_seen_before_an_agent_runs(
    lab: Lab, secret: MeshSecret
) -> None:
    """If a named node is not found, the doctor says that only multicast is missing."""
    first, _, third = lab.hosts
    key = str(write(third, secret.with_newest_only(0).to_text()))
    # A host may answer the question by unicast, so no host may hear it.
    for host in lab.hosts:
        plug(lab, host, "mcast_flood off")

    dropped = ask_spare(lab, "--join", first.ip, "--secret-file", key)["multicast"]
    for host in lab.hosts:
        plug(lab, host, "mcast_flood on")

    assert dropped[0] == "fault"
    assert f"no multicast arrives from any node: {first.ip}" in dropped[1]


def test_tcp_blocked_in_one_direction_is_seen_from_both_ends(lab: Lab) -> None:
    """A firewall at one end: the other end learns where it is, and so does this one."""
    first, second, _ = lab.hosts
    with firewalled(second):
        # Until then the node may count as cut off, and be missing in a moment.
        wait_until("it has dialled", lambda: is_dialled(first), within_s=FORM_S)
        until_met(lab)

        outside, inside = together(lambda: ask(first), lambda: ask(second))

    assert outside["tcp"][0] == "fault"
    # It has two addresses, and its link may use either.
    place = rf"({re.escape(second.ip)}|\[fe80::[0-9a-f:]+%eth0\]):7878"
    said = rf"{second.name} \({place}\) does not answer: "
    assert re.match(said, outside["tcp"][1])
    assert inside["tcp"][0] == "fault"
    assert inside["tcp"][1].startswith(f"{first.name} cannot connect to this machine")
    assert "ufw allow 7878/tcp" in inside["tcp"][2]
    wait_until("it is mended", lambda: ask(second)["tcp"][0] == "ok", within_s=FORM_S)


def test_lost_node_that_still_advertises_is_shown_by_name(lab: Lab) -> None:
    """The roster still knows its name; an id means nothing to people."""
    first, second, _ = lab.hosts
    with firewalled(first), firewalled(second):
        wait_until(
            "it is lost",
            lambda: "lost" in {each["state"] for each in nodes(first)},
            within_s=FORM_S,
        )
        cut = ask(first)["tcp"]
    until_met(lab)

    assert cut[0] == "fault"
    assert second.name in cut[1]


def is_dialled(host: Host) -> bool:
    """Return True if another node has made the connection between them."""
    links = host.run("ss", "-Htn", "state", "established", "sport", "=", ":7878")
    return bool(links.stdout)


@contextmanager
def firewalled(host: Host) -> Iterator[None]:
    """Drop only packets to the peer port of a host."""
    drop = "pref 1 iif eth0 ipproto tcp dport 7878 blackhole"
    # The host's own addresses come first; a rule can only precede a later one.
    rules(host, "add pref 10 lookup local", "del pref 0", f"add {drop}")
    try:
        yield
    finally:
        rules(host, f"del {drop}", "add pref 0 lookup local", "del pref 10")


def rules(host: Host, *changes: str) -> None:
    """Change the IPv4 and IPv6 routing rules of a host."""
    for family in ("-4", "-6"):
        for change in changes:
            done = host.run("ip", family, "rule", *change.split())
            assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("name", "kind"), [("docker0", "container bridge"), ("tun0", "point-to-point")]
)
def test_wrong_interface_is_named_by_its_kind(
    lab: Lab, well: Found, name: str, kind: str
) -> None:
    """A bridge of containers and a VPN have addresses too, but no LAN."""
    wrong = ask_spare(lab, "--interface", name)

    assert wrong["interface"][0] == "fault"
    assert f"{name} is set, but is a {kind}" in wrong["interface"][1]
    assert wrong["interface"][2] == "octaskly agent --interface eth0"
    assert well["interface"][0] == "ok"


def test_other_mesh_on_the_lan_is_reported_on_both_sides(lab: Lab) -> None:
    """It disturbs neither, but explains a node that is alone in the wrong mesh."""
    first, _, third = lab.hosts
    agent = third.agent(
        "lone", secret=write(third, generate_secret().to_text(), "lone.key")
    )
    mesh = agent.description["mesh"]

    among, alone = together(lambda: ask(first), lambda: ask(third))
    agent.stop()
    third.agents.clear()

    assert among["mesh"][0] == "warning"
    assert (
        f"1 other mesh on this LAN: mesh {mesh} ({third.ip}:7878)" in among["mesh"][1]
    )
    assert alone["secret"][0] == "fault"
    assert f"this machine is alone in the mesh {mesh}" in alone["secret"][1]
    assert alone["secret"][2] == "octaskly join"


def test_wrong_and_old_secrets_are_distinguished(
    lab: Lab, secret: MeshSecret, well: Found
) -> None:
    """Damaged, readable by others, of an ended generation, or right."""
    third = lab.hosts[2]
    good = secret.with_newest_only(0).to_text()
    shared = write(third, good, "shared.key")
    shared.chmod(0o644)
    older = MeshSecret(secret.generations[:1])
    files = {
        "missing": third.folder / "none.key",
        "damaged": write(third, good.replace("okm1-", "okm1-x", 1), "damaged.key"),
        "shared": shared,
        "old": write(third, older.to_text(), "old.key"),
    }

    found = dict(
        zip(
            files,
            together(
                *(
                    lambda file=file: ask_spare(lab, "--secret-file", str(file))
                    for file in files.values()
                )
            ),
            strict=True,
        )
    )

    told = {name: each["secret"] for name, each in found.items()}
    assert {each[0] for each in told.values()} == {"fault"}
    assert well["secret"][0] == "ok"
    assert "has none, but a mesh is visible" in told["missing"][1]
    assert "is not a mesh secret" in told["damaged"][1]
    assert told["shared"][2] == f"chmod 600 {shared}"
    assert f"has an old or wrong secret of the mesh {secret.mesh_id}" in told["old"][1]


def test_wrong_clock_is_measured(lab: Lab, secret: MeshSecret, well: Found) -> None:
    """If two others agree, this clock is wrong; the size shows the urgency."""
    key = str(write(lab.hosts[2], secret.with_newest_only(0).to_text()))

    fast = ask_spare(lab, "--secret-file", key, by=patched("clock"))

    assert fast["clock"][0] == "fault"
    said = re.fullmatch(r"this machine's clock is (\d+) s ahead", fast["clock"][1])
    assert said
    assert abs(int(said[1]) - 120) <= 5  # Half of the round trip is only an estimate.
    assert fast["clock"][2] == "sudo timedatectl set-ntp true"
    assert well["clock"][0] == "ok"


def test_version_gap_is_reported(lab: Lab, secret: MeshSecret, well: Found) -> None:
    """Another major version is a fault."""
    key = str(write(lab.hosts[2], secret.with_newest_only(0).to_text()))

    newer = ask_spare(lab, "--secret-file", key, by=patched("version"))

    assert newer["version"][0] == "fault"
    assert newer["version"][1].startswith("this machine runs 9.0.0, but ")
    assert "pipx upgrade octaskly" in newer["version"][2]
    assert well["version"][0] == "ok"


def patched(what: str) -> tuple[str, ...]:
    """Return an `octaskly` with another clock, or of another version."""
    code = {
        "clock": "import time; now = time.time; time.time = lambda: now() + 120",
        "version": "import octaskly; octaskly.__version__ = '9.0.0'",
    }[what]
    code += "; import sys; from octaskly.cli import main; sys.exit(main())"
    return (sys.executable, "-c", code)


def test_doctor_names_the_program_that_holds_the_api_port(lab: Lab) -> None:
    """The agent moved to the next port, and says so until the other program is gone."""
    third = lab.hosts[2]
    code = (
        "import socket; s = socket.create_server(('127.0.0.1', 3000));"
        "print(flush=True); input()"
    )
    holder = third.popen(
        sys.executable, "-c", code, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    holder.stdout.readline()
    agent = third.agent(
        "lone", secret=write(third, generate_secret().to_text(), "lone.key")
    )

    taken, before = together(lambda: ask(third), lambda: ask_spare(lab))
    holder.kill()
    holder.wait()
    mended = ask(third)["port"]
    agent.stop()
    third.agents.clear()

    assert taken["port"][0] == "warning"
    assert "3000 is taken by " in taken["port"][1]
    assert f"(pid {holder.pid}) of user root; the agent uses 3001" in taken["port"][1]
    assert taken["port"][2] == "octaskly service install --api-port 3001"
    assert before["port"][0] == "warning"
    assert mended[0] == "ok"


def test_copied_state_folder_is_detected(lab: Lab) -> None:
    """As after cloning a machine; without its key it is a node of its own."""
    first, _, third = lab.hosts
    copy = third.folder / "copy"
    shutil.copytree(first.first.state, copy, ignore=shutil.ignore_patterns("*.sock"))
    (copy / "agent.json").unlink()

    cloned = ask_spare(lab, state=copy)["state"]
    (copy / "node.key").unlink()
    own = ask_spare(lab, state=copy)["state"]

    assert cloned[0] == "fault"
    assert f"copy of the other: {first.ip}" in cloned[1]
    assert f"rm {copy}/node.key" in cloned[2]
    assert own[0] == "ok"


def test_full_disk_is_reported_with_its_path(lab: Lab, well: Found) -> None:
    """The disk of the state folder counts."""
    state = lab.hosts[2].folder / "small"
    state.mkdir(exist_ok=True)
    mount = f'mount -t tmpfs -o size=8m none {state} && exec "$@"'
    small = ("unshare", "--mount", "sh", "-c", mount, "sh", *OCTASKLY)

    full = ask_spare(lab, state=state, by=small)

    assert full["disk"][0] == "fault"
    assert f"only 8.4 MB is free for {state}, so no new" in full["disk"][1]
    assert full["disk"][2] == f"df -h {state}"
    assert well["disk"][0] == "ok"


def test_unusable_log_is_reported_before_an_agent_starts(lab: Lab) -> None:
    """An agent would end at once, and nothing is left beside a log that is fine."""
    state = lab.hosts[2].folder / "damaged"
    state.mkdir()
    log = state / "log.db"
    with closing(open_writer(log)):
        pass
    (before,) = state.iterdir()
    fine = ask_spare(lab, state=state)
    after = list(state.iterdir())
    with log.open("r+b") as file:
        file.seek(60)
        file.write((1000).to_bytes(4, "big"))
    newer = ask_spare(lab, state=state)["log"]
    log.write_bytes(b"SQL")
    broken = ask_spare(lab, state=state)["log"]

    assert "log" not in fine
    assert after == [before]
    assert newer[0] == "fault"
    assert f"{log} has schema 1000, this program knows up to" in newer[1]
    assert broken == (
        "fault",
        f"{log} is not a database",
        "`octaskly db reset` moves it aside and starts afresh",
    )


def test_doctor_reports_the_descriptor_limit_of_the_agent(
    lab: Lab, well: Found
) -> None:
    """It does not report the limit of the shell in which the doctor runs."""
    first = lab.hosts[0]
    pid = str(first.first.pid)
    before = first.run(
        "prlimit", "--nofile", "--pid", pid, "--noheadings", "-oSOFT,HARD"
    )
    soft, hard = before.stdout.split()

    first.run("prlimit", f"--nofile=256:{hard}", "--pid", pid)
    low = ask(first)["descriptors"]
    first.run("prlimit", f"--nofile={soft}:{hard}", "--pid", pid)

    assert low[0] == "fault"
    assert "the agent may open only 256 files" in low[1]
    assert "LimitNOFILE=" in low[2]
    assert well["descriptors"][0] == "ok"


def test_doctor_works_without_root_and_names_skipped_checks(lab: Lab) -> None:
    """A secret that this user may not read is no fault."""
    third = lab.hosts[2]
    folder = third.folder / "private"
    folder.mkdir(mode=0o700, exist_ok=True)
    nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    by = (*nobody, *OCTASKLY)
    probe = third.run(*by, "--version")
    if probe.returncode:
        pytest.skip("another user cannot run this Python")

    found = ask_spare(lab, "--secret-file", str(folder / "mesh.key"), by=by)

    assert found["secret"][0] == "unchecked"
    assert found["secret"][2] == "sudo octaskly doctor"


def plug(lab: Lab, host: Host, how: str) -> None:
    """Set how the switch treats the cable of a host."""
    ip(f"link set {host.port} type bridge_slave {how}", netns=lab.switch)
