"""Visitors on hosts of their own: what they run, and what they never get."""

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pexpect
import pytest

from tests.mesh import moved_clock
from tests.mesh.forming import dispatcher_of, form, nodes, secret_file
from tests.mesh.lab import Host, Lab
from tests.mesh.netns import wait_until
from tests.support.agents import fork_agent

pytestmark = [pytest.mark.netns, pytest.mark.timeout(240)]

WITHIN_S = 60.0


class BorrowedMachine:
    """A visitor process on a host of the lab."""

    def __init__(
        self, host: Host, member: Host, *options: str, stay_s: int = 600
    ) -> None:
        asked = {"ttl_s": 300, "visitor": {"stay_s": stay_s}}
        made = member.http("POST", "/api/v1/invites", json=asked)
        assert made.status == 201, made.body
        self.invite = made.json
        self.log = host.folder / "visitor.log"
        words = ["agent", "--visitor", "--slots", "2", *options]
        environ = {
            **host.environ("visitor"),
            "TMPDIR": str(temporary_folder(host)),
            "OCTASKLY_INVITE": self.invite["url"],
        }
        with self.log.open("ab") as log, Path(os.devnull).open("rb") as nothing:
            process = fork_agent(
                words, environ=environ, files=(nothing, log, log), netns=host.netns
            )
            self.process = process or host.popen(
                *(sys.executable, "-m", "octaskly", *words),
                env=environ,
                stdin=nothing,
                stdout=log,
                stderr=log,
            )

    def leave(self) -> None:
        """End the visit, as Ctrl-C does."""
        self.process.terminate()
        assert self.process.wait(WITHIN_S) == 0


def temporary_folder(host: Host) -> Path:
    """Return a folder whose path is as long as those that clusters make for a job."""
    folder = host.folder / ("job" * 30)
    folder.mkdir(exist_ok=True)
    return folder


@contextlib.contextmanager
def visit_by_hand(borrowed: Host, *words: str) -> Iterator["pexpect.spawn[str]"]:
    """Type `octaskly join --visitor` on a machine; end the visit by Ctrl-C."""
    command = [*borrowed.prefix, sys.executable, "-m", "octaskly", "join", "--visitor"]
    terminal = pexpect.spawn(
        command[0],
        [*command[1:], *words],
        env={**borrowed.environ("hand"), "TMPDIR": str(temporary_folder(borrowed))},
        encoding="utf-8",
        timeout=WITHIN_S,
    )
    try:
        yield terminal
        terminal.sendintr()
        terminal.expect(pexpect.EOF)
        terminal.wait()
        assert terminal.exitstatus == 0, terminal.before
    finally:
        terminal.close(force=True)


def open_invite(member: Host) -> Mapping[str, Any]:
    """Open an invite for a visitor."""
    made = member.http("POST", "/api/v1/invites", json={"visitor": {"stay_s": 600}})
    assert made.status == 201, made.body
    return dict(made.json)


def visitors(host: Host) -> list[Mapping[str, Any]]:
    """Return the visitors that a host lists."""
    return [node for node in nodes(host) if node["visitor"]]


@pytest.fixture(scope="module")
def one_member(_may_make_labs: None) -> Iterator[Lab]:
    with Lab(3) as lab:
        form(lab, hosts=lab.hosts[:1])
        try:
            yield lab
        finally:
            log = lab.hosts[1].folder / "visitor.log"
            print("--- visitor", log.read_text()[-8000:] if log.exists() else "")
            lab.show_logs()


@pytest.fixture
def lab(one_member: Lab) -> Iterator[Lab]:
    """A member that takes no work itself, a machine to borrow, and a spare one."""
    member = one_member.hosts[0]
    member.http("POST", f"/api/v1/nodes/{member.name}/drain")
    yield one_member
    member.http("POST", f"/api/v1/nodes/{member.name}/resume")


def run_task(host: Host, command: str, **fields: Any) -> Mapping[str, Any]:
    """Run a task to its end."""
    asked = {"command": command, **fields}
    answer = host.http("POST", "/api/v1/tasks", json=asked)
    assert answer.status in (200, 201), answer.body
    task = answer.json["id"]

    def is_over() -> bool:
        shown = host.http("GET", f"/api/v1/tasks/{task}").json
        return shown["status"] not in ("queued", "running")

    wait_until(f"the end of {task}", is_over, within_s=WITHIN_S)
    return dict(host.http("GET", f"/api/v1/tasks/{task}").json)


def listening_sockets(host: Host) -> list[str]:
    """Return the lines of the kernel's tables for TCP, UDP and local sockets."""
    tables = ("tcp", "tcp6", "udp", "udp6", "unix")
    found: list[str] = []
    for table in tables:
        _, *lines = host.run("cat", f"/proc/net/{table}").stdout.splitlines()
        for line in lines:
            fields = line.split()
            state = {"unix": fields[3] == "00010000"}.get(table, fields[3] == "0A")
            if state or table.startswith("udp"):
                found.append(f"{table}: {line}")
    return found


KEY_FORMS = (b"PRIVATE KEY", bytes.fromhex("302e020100300506032b6570"), b"MC4CAQAwBQY")
"""First bytes of an Ed25519 key as PEM, as DER and as base64 of that (RFC 8410)."""


def has_private_key(path: Path) -> bool:
    """Return True if a file has a private key, or a name that those of keys have."""
    return path.suffix == ".key" or any(form in path.read_bytes() for form in KEY_FORMS)


def test_visitor_runs_a_task_that_allows_it(lab: Lab) -> None:
    """The thin path: invite, visit, a task and its result."""
    member, borrowed = lab.hosts[:2]
    machine = BorrowedMachine(borrowed, member)
    wait_until("a visitor", lambda: visitors(member), within_s=WITHIN_S)

    done = run_task(member, "echo from $OCTASKLY_NODE", visitors=True, timeout=60)

    assert done["status"] == "completed", done
    assert done["stdout"] == f"from {visitors(member)[0]['name']}\n"
    assert listening_sockets(borrowed) == []
    written = list(temporary_folder(borrowed).rglob("*"))
    assert written
    assert [p for p in written if p.is_file() and has_private_key(p)] == []
    machine.leave()


def test_files_travel_to_a_visitor_and_back(lab: Lab) -> None:
    """Inputs that a client lends, and outputs that stay when the visitor has left."""
    member, borrowed = lab.hosts[:2]
    machine = BorrowedMachine(borrowed, member)
    wait_until("a visitor", lambda: visitors(member), within_s=WITHIN_S)
    source = member.folder / "data.txt"
    source.write_text("ten words\n" * 100_000)

    read = member.cli(
        *("run", "--visitors", "--in", f"{source}=data.txt", "--", "wc -l < data.txt")
    )
    assert (read.returncode, read.stdout.strip()) == (0, "100000"), read.stderr
    sent = member.cli(
        *("submit", "--visitors", "--in", f"{source}=data.txt", "--out", "counted"),
        *("--", "wc -l < data.txt > counted"),
    )
    assert sent.returncode == 0, sent.stderr
    waited = member.cli("wait", sent.stdout.split()[0])
    assert waited.returncode == 0, waited.stderr
    machine.leave()
    assert not list(temporary_folder(borrowed).iterdir())  # It erased its folder.
    task = sent.stdout.split()[0]
    again = member.http("GET", f"/api/v1/tasks/{task}/outputs/counted")
    shown = member.http("GET", f"/api/v1/tasks/{task}").json
    assert (again.status, again.body.strip()) == (200, b"100000"), shown["detail"]


@pytest.mark.usefixtures("_may_make_labs")
def test_a_visitor_follows_a_failover_and_its_task_continues() -> None:
    """It dials the new dispatcher, whose address it was told, and keeps its task."""
    with Lab(3) as lab:
        *members, borrowed = lab.hosts
        form(lab, hosts=members)
        first = next(h for h in members if h.name == dispatcher_of(members[0]))
        other = next(host for host in members if host is not first)
        machine = BorrowedMachine(borrowed, first, "--label", "borrowed=yes")
        wait_until("a visitor", lambda: visitors(other), within_s=WITHIN_S)
        asked = {
            "command": "echo begun; sleep 12; echo through",
            "visitors": True,
            "timeout": 120,
            "requires": {"labels": {"borrowed": "yes"}},
        }
        task = first.http("POST", "/api/v1/tasks", json=asked).json["id"]
        path = f"/api/v1/tasks/{task}"
        wait_until(
            "it runs",
            lambda: other.http("GET", path).json["status"] == "running",
            within_s=WITHIN_S,
        )

        own = ("--state-dir", str(other.first.state))
        followed = other.popen(
            *(sys.executable, "-m", "octaskly", *own, "logs", "-f", task),
            env=other.environ(other.first.name),
            stdout=subprocess.PIPE,
        )
        assert followed.stdout is not None
        assert followed.stdout.readline() == b"begun\n"  # The dispatcher asks for it.

        first.first.kill()

        wait_until(
            "its end",
            lambda: other.http("GET", path).json.get("status") == "completed",
            within_s=WITHIN_S * 2,
        )
        done = other.http("GET", path).json
        assert (done["stdout"], done["attempt"]) == ("begun\nthrough\n", 1)
        assert followed.communicate(timeout=WITHIN_S)[0] == b"through\n"
        machine.leave()


def test_output_of_a_running_task_is_shown_line_by_line(lab: Lab) -> None:
    """`run` prints what a task on a visitor writes when it writes it."""
    member, borrowed = lab.hosts[:2]
    machine = BorrowedMachine(borrowed, member)
    wait_until("a visitor", lambda: visitors(member), within_s=WITHIN_S)
    gate = borrowed.folder / "gate"
    command = f"echo first; echo warned >&2; until test -e {gate}; do sleep 0.1; done"
    words = ("run", "--visitors", "--", f"{command}; seq 300000")
    own = ("--state-dir", str(member.first.state))

    shown = member.popen(
        *(sys.executable, "-m", "octaskly", *own, *words),
        env=member.environ(member.first.name),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert shown.stdout is not None
    assert shown.stderr is not None
    first = shown.stdout.readline()
    warned = next(line for line in shown.stderr if b"warned" in line)
    listed = member.cli("nodes").stdout
    (visitor,) = visitors(member)
    gate.touch()
    rest, said = shown.communicate(timeout=WITHIN_S)

    assert (first, warned) == (b"first\n", b"warned\n")
    (line,) = [each for each in listed.splitlines() if each.startswith(visitor["name"])]
    assert "visitor" in line
    assert "echo first" in line  # What it runs, until when, and by whose invitation.
    assert re.search(
        rf"until [^,]+, invited by {re.escape(visitor['invited_by'])}", line
    )
    assert visitor["leaves_at"] is not None
    assert shown.returncode == 0, said
    # All of it: the mesh keeps 1 MiB, but it was followed to its end.
    assert rest.split() == [b"%d" % n for n in range(1, 300_001)], (len(rest), said)
    machine.leave()


def files_below(folder: Path) -> set[str]:
    """Return all files and folders."""
    return {str(path) for path in folder.rglob("*")}


@pytest.mark.parametrize("ending", ["idle", "until", "signal"])
def test_a_visitor_leaves_nothing_behind(lab: Lab, ending: str) -> None:
    """Its disk is as before, whatever it ran; what it did not finish runs elsewhere."""
    member, borrowed = lab.hosts[:2]
    borrowed.environ("visitor")
    (borrowed.folder / "visitor.log").touch()
    temporary_folder(borrowed)
    before = files_below(borrowed.folder)
    options = {"idle": ("--idle", "4s"), "until": ("--until", "24s"), "signal": ()}
    machine = BorrowedMachine(borrowed, member, *options[ending])
    wait_until("a visitor", lambda: visitors(member), within_s=WITHIN_S)
    asked = {"visitors": True, "timeout": "none", "outputs": ["kept"]}
    done = run_task(member, "echo x > kept; echo y > left", **asked)
    assert done["status"] == "completed", done
    longer, path = None, ""
    if ending != "idle":
        longer = member.http(
            "POST",
            "/api/v1/tasks",
            json={"command": "test $OCTASKLY_NODE = h1 || sleep 60", **asked},
        ).json["id"]
        path = f"/api/v1/tasks/{longer}"
        wait_until(
            "it runs",
            lambda: member.http("GET", path).json["status"] == "running",
            within_s=WITHIN_S,
        )
    if ending == "signal":
        machine.process.terminate()

    assert machine.process.wait(WITHIN_S * 2) == 0
    assert files_below(borrowed.folder) == before
    wait_until("it is gone", lambda: not visitors(member), within_s=WITHIN_S)
    if longer is not None:
        member.http("POST", f"/api/v1/nodes/{member.name}/resume")
        wait_for_second_attempt(member, path)


def wait_for_second_attempt(member: Host, path: str) -> None:
    """Wait until a task that a visitor gave back has completed at a member."""
    wait_until(
        "its end at the member",
        lambda: member.http("GET", path).json["status"] == "completed",
        within_s=WITHIN_S,
    )
    assert member.http("GET", path).json["attempt"] == 2


def test_the_audit_log_names_what_a_visitor_ran(lab: Lab) -> None:
    """Also when its task has been forgotten."""
    member, borrowed = lab.hosts[:2]
    machine = BorrowedMachine(borrowed, member)
    wait_until("a visitor", lambda: visitors(member), within_s=WITHIN_S)
    visitor = visitors(member)[0]["id"]

    task = run_task(member, "true", visitors=True, timeout=60)["id"]

    def entries() -> list[Mapping[str, Any]]:
        found = member.http("GET", "/api/v1/audit").json["entries"]
        return [each for each in found if each["action"] == "run on visitor"]

    def is_named() -> bool:
        return (visitor, [task]) in [(e["target"], e["tasks"]) for e in entries()]

    wait_until("an entry", is_named, within_s=WITHIN_S)
    machine.leave()


def test_a_machine_visits_two_meshes_one_after_the_other(lab: Lab) -> None:
    """It is a stranger at the second one, and has nothing of the first one there.

    The first code is typed without an address: it finds the member by mDNS.
    """
    member, borrowed, second = lab.hosts
    second.agent("", secret=secret_file(second.folder))
    second.http("POST", f"/api/v1/nodes/{second.name}/drain")
    borrowed.environ("hand")
    temporary_folder(borrowed)
    before = files_below(borrowed.folder)
    ids = set()
    found = {member: "1", second: "0"}  # Files that name the first mesh.

    for mesh, invite in ((member, "code"), (second, "url")):
        with visit_by_hand(borrowed, open_invite(mesh)[invite]) as terminal:
            terminal.expect("visitor ready")
            wait_until("a visitor", partial(visitors, mesh), within_s=WITHIN_S)
            command = f"echo {mesh.name} > left; grep -rlx {member.name} ../.. | wc -l"
            done = run_task(mesh, command, visitors=True, timeout=60)
            (visitor,) = visitors(mesh)
            ids.add(visitor["id"])
            assert done["status"] == "completed"
            assert done["stdout"].strip() == found[mesh]
    assert files_below(borrowed.folder) == before
    assert len(ids) == len({member.name, second.name})


def test_a_visitor_whose_clock_is_wrong_is_told_so(lab: Lab) -> None:
    """An hour ahead or behind, it does not join, and leaves its invite and no file."""
    member, borrowed = lab.hosts[:2]
    invite = open_invite(member)
    environ = {**borrowed.environ("visitor"), "OCTASKLY_INVITE": invite["url"]}
    folders = {ms: borrowed.folder / f"wrong{ms}" for ms in (3_600_000, -3_600_000)}
    for offset_ms, folder in folders.items():
        folder.mkdir()
        moved_clock.move(folder, offset_ms)

    tried = [
        borrowed.popen(
            *(sys.executable, "-m", "tests.mesh.moved_clock"),
            *("agent", "--visitor", "--state-dir", str(folder / "state")),
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for folder in folders.values()
    ]
    said = [process.communicate(timeout=WITHIN_S)[0].decode() for process in tried]

    assert [process.returncode for process in tried] == [1, 1]
    for text in said:
        assert re.search("clocks of this machine and h1 are (59|60) minutes", text)
        assert invite["code"] not in text
    for folder in folders.values():
        assert files_below(folder) == {str(folder / moved_clock.OFFSET)}
    listed = member.http("GET", "/api/v1/invites").json["invites"]
    assert {each["state"] for each in listed if each["id"] == invite["id"]} == {"open"}
    member.http("DELETE", f"/api/v1/invites/{invite['id']}")


def test_a_clock_that_is_set_during_a_visit_ends_it_in_order(lab: Lab) -> None:
    """An hour ahead: its time is up, so that it gives its task back and leaves."""
    member, borrowed = lab.hosts[:2]
    folder = borrowed.folder / "set"
    folder.mkdir()
    moved_clock.move(folder, 0)
    before = files_below(folder)
    visitor = borrowed.popen(
        *(sys.executable, "-m", "tests.mesh.moved_clock"),
        *("agent", "--visitor", "--state-dir", str(folder / "state")),
        env={
            **borrowed.environ("visitor"),
            "OCTASKLY_INVITE": open_invite(member)["url"],
        },
    )
    wait_until("a visitor", lambda: visitors(member), within_s=WITHIN_S)
    command = "test $OCTASKLY_NODE = h1 || sleep 600"
    asked = {"command": command, "visitors": True, "timeout": "none"}
    task = member.http("POST", "/api/v1/tasks", json=asked).json["id"]
    path = f"/api/v1/tasks/{task}"
    wait_until(
        "it runs",
        lambda: member.http("GET", path).json["status"] == "running",
        within_s=WITHIN_S,
    )

    moved_clock.move(folder, 3_600_000)

    assert visitor.wait(WITHIN_S) == 0
    assert files_below(folder) == before
    member.http("POST", f"/api/v1/nodes/{member.name}/resume")
    wait_for_second_attempt(member, path)
