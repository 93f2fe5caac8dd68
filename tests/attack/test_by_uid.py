"""What a local user and a task get from an agent that runs as the system unit runs it.

Both are real: a process of a user without rights, and a task under the task user. One
agent serves all tests. Each test lets both try, without a token or with one of each
role that is not an administrator, and asserts what stopped them.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from zeroconf import ServiceInfo
from zeroconf._protocol.outgoing import DNSOutgoing

from octaskly.api.http.handler_types import Access
from octaskly.api.routes.table import ROUTES
from octaskly.api.schemas.query import ATTEMPT_PATH
from octaskly.mesh.discovery.adverts import SERVICE
from octaskly.trust import TokenSigner
from octaskly.trust.mesh_secret import parse_secret
from tests.attack.conftest import leave_out, own_network
from tests.support import intruder
from tests.support.agents import TASKS, finished, request, submit, until
from tests.support.as_unit import CHECKOUT
from tests.support.port_thief import BOUND, THIEF_UID, thief
from tests.support.system_unit import (
    AGENT_UID,
    TASK_UID,
    SystemAgent,
    system_agent,
)
from tests.support.trees import send_tree

pytestmark = [pytest.mark.netns, pytest.mark.timeout(300)]

USER, SECOND_USER, TASK = "local user", "second local user", "task"
UIDS = {USER: THIEF_UID, SECOND_USER: THIEF_UID + 1}
BOTH = pytest.mark.parametrize("attacker", [USER, TASK])
INTRUDER = [sys.executable, "-I", "-S", intruder.__file__]
API, LAN, PEERS, PAIRING = "127.0.0.1:3000", "127.0.0.1:3443", "127.0.0.1:7878", 7879
RATE_STRANGER = 200  #: requests a minute, fewer than by default to save time
RESPONSE = 0x8400  #: flags of an authoritative mDNS response
ALLOWED = {
    None: set(),
    "viewer": {Access.READ, Access.READ_OR_LOCAL},
    "client": {Access.READ, Access.READ_OR_LOCAL, Access.SUBMIT},
}
"""What each role may do, beyond what is for everybody."""

COMMAND, VALUE, STDIN, OUTPUT, FILE = (
    f"private-{what}" for what in ("command", "variable", "stdin", "output", "file")
)


Attempt = tuple[str, int, object]
"""Name of the attempt, process, target."""


@dataclass(frozen=True, slots=True)
class Result:
    """What an attempt printed, and the name of the error that stopped it."""

    printed: str
    error: str | None


class Machine:
    """The agent, and those who attack it."""

    def __init__(self, system: SystemAgent, victim: str) -> None:
        self.system = system
        self.victim = victim  #: id of the task of somebody
        self.agent = system.agent

    def attempt(
        self, attacker: str, name: str, pid: int, target: object, stdin: str = ""
    ) -> Result:
        """Let somebody try something."""
        words = [*INTRUDER, name, str(pid), str(target)]
        printed, status = self.run(attacker, words, stdin)
        if status == 0:
            return Result(printed, None)
        *lines, error = printed.splitlines() or [""]
        assert (status, error[:1]) == (1, "E"), f"{name} {target}: {printed}"
        return Result("\n".join(lines), error)

    def run(
        self, attacker: str, words: Sequence[str], stdin: str = ""
    ) -> tuple[str, int]:
        """Run a program as the attacker; return its output and exit status."""
        if attacker == TASK:
            task = finished(
                self.agent, submit(self.agent, shlex.join(words), stdin=stdin)
            )
            return task["stdout"] + task["stderr"], task["exit_code"]
        done = subprocess.run(
            [
                *("nsenter", "--target", str(self.system.pid), "--mount", "setpriv"),
                *("--reuid", str(UIDS[attacker]), "--regid", str(UIDS[attacker])),
                *("--clear-groups", "--bounding-set=-all", *words),
            ],
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout + done.stderr, done.returncode

    def errors(self, attacker: str, *attempts: Attempt) -> dict[Attempt, str | None]:
        """Let somebody try several things; return the errors that stopped them."""
        given = json.dumps([[name, pid, str(target)] for name, pid, target in attempts])
        result = self.attempt(attacker, "several", 0, "-", given)
        assert result.error is None, result
        return dict(zip(attempts, json.loads(result.printed), strict=True))

    def ask(
        self, attacker: str, address: str, requests: Sequence[Sequence[Any]]
    ) -> list[Any]:
        """Let somebody send requests; return the status and body of each."""
        result = self.attempt(attacker, "ask", 0, address, json.dumps(requests))
        assert result.error is None, result
        answers: list[Any] = json.loads(result.printed)
        return answers

    def mint(self, role: str) -> str:
        """Return a new token of somebody who is not the administrator."""
        given = {"role": role, "subject": "mallory"}
        status, minted = self.agent.call("POST", "/api/v1/tokens", given)
        assert status == 201, minted
        return str(minted["token"])


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """Run the agent, in a network of its own, where it has run a task of somebody."""
    if os.geteuid() != 0:
        leave_out("attacks need root, to act as other users")
    rate = ("--rate-stranger", str(RATE_STRANGER))
    with own_network(), system_agent(*rate) as system:
        tree = send_tree(system.agent, {"given": FILE.encode()})
        victim = submit(
            system.agent,
            f"cat; echo {OUTPUT}; : {COMMAND}; cp given kept; head -c 400000 /dev/zero",
            workdir="scratch",
            env={"PRIVATE": VALUE},
            stdin=STDIN,
            tree=tree,
            outputs=["kept"],
        )
        assert finished(system.agent, victim)["exit_code"] == 0
        yield Machine(system, victim)


def private_words(machine: Machine) -> list[str]:
    """Return what nobody but its owner may read."""
    state, credentials = machine.system.state, machine.system.credentials
    secret = (credentials / "mesh.key").read_text().strip()
    key = (state / "node.key").read_text().splitlines()[1]
    return [secret, key, machine.mint("admin"), COMMAND, VALUE, STDIN, OUTPUT, FILE]


def test_attackers_succeed_at_what_is_allowed(machine: Machine) -> None:
    """So a refusal below is no error of the attempt."""
    words = json.dumps(["nobody"])
    for attacker in (USER, TASK):
        for name, pid, target in [
            ("read", 0, "/etc/passwd"),
            ("list", 0, "/tmp"),
            ("bind", 0, "127.0.0.1:3999"),
            ("talk", 0, API),
            ("search", 0, machine.system.settings),
        ]:
            result = machine.attempt(attacker, name, pid, target, words)
            assert result.error is None, (attacker, name)


# -- files and sockets -----------------------------------------------------------------

CLOSED_FILES = [
    *("state/node.key", "state/log.db", "state/log.db-wal", "state/log.db-shm"),
    *("state/log.db.lock", "state/mesh.id", "state/agent.json"),
    *("credentials/mesh.key", "journal"),
]
CLOSED_FOLDERS = [
    *("state", "state/outputs", "state/transcripts", "state/files", "credentials"),
    *("cache",),
]
AGENT_FOLDERS = [".", "state", "runtime", "cache", "configuration", "state/outputs"]


@BOTH
@pytest.mark.parametrize("file", CLOSED_FILES)
def test_files_of_the_agent_are_closed(
    machine: Machine, attacker: str, file: str
) -> None:
    """Secret, keys, database, description and journal."""
    target = machine.system.base / file
    assert target.exists()
    names = ("read", "open to write", "remove", "rename")
    tried = [(name, 0, target) for name in names]

    assert machine.errors(attacker, *tried) == dict.fromkeys(tried, "EACCES")


@BOTH
def test_folders_of_the_agent_cannot_be_listed(machine: Machine, attacker: str) -> None:
    """They would show the tasks of others, by name."""
    folders = [machine.system.base / folder for folder in CLOSED_FOLDERS]
    assert all(folder.is_dir() for folder in folders)
    tried = [("list", 0, folder) for folder in folders]

    assert machine.errors(attacker, *tried) == dict.fromkeys(tried, "EACCES")


@pytest.mark.parametrize("folder", ["state/work", "state/scratch", "cache/home"])
def test_folders_of_tasks_are_closed_to_local_users(
    machine: Machine, folder: str
) -> None:
    """Files there have names, and any mode that their task chose."""
    target = machine.system.base / folder
    assert target.is_dir()
    tried = [("list", 0, target), ("enter", 0, target), ("make", 0, target / "planted")]

    assert machine.errors(USER, *tried) == dict.fromkeys(tried, "EACCES")


@BOTH
@pytest.mark.parametrize("folder", AGENT_FOLDERS)
def test_nothing_can_be_planted_in_folders_of_the_agent(
    machine: Machine, attacker: str, folder: str
) -> None:
    """Neither a file nor a socket where programs look for an agent."""
    target = machine.system.base / folder / "planted"
    tried = [("make", 0, target), ("bind unix", 0, target)]

    assert machine.errors(attacker, *tried) == dict.fromkeys(tried, "EACCES")


@BOTH
def test_settings_cannot_be_changed(machine: Machine, attacker: str) -> None:
    """They may be read, since they hold no secret."""
    target = machine.system.settings / "config.toml"
    tried = [(name, 0, target) for name in ("open to write", "remove", "rename")]

    assert machine.errors(attacker, *tried) == dict.fromkeys(tried, "EACCES")


@BOTH
def test_the_local_socket_is_closed(machine: Machine, attacker: str) -> None:
    """Whoever uses it is an administrator, with or without a token."""
    target = machine.agent.ready()["socket"]
    tried = [(name, 0, target) for name in ("connect", "remove", "rename")]

    assert machine.errors(attacker, *tried) == dict.fromkeys(tried, "EACCES")


@BOTH
def test_nothing_that_can_be_read_holds_anything_private(
    machine: Machine, attacker: str
) -> None:
    """Not in any file of the agent, nor in `/proc` for any of its processes."""
    pids = [machine.system.pid, *children_of(machine.system.pid)]
    folders = [str(machine.system.base), *(f"/proc/{pid}" for pid in pids)]
    words = json.dumps(private_words(machine))

    result = machine.attempt(attacker, "search", 0, ",".join(folders), words)
    lines = result.printed.splitlines()

    assert f"{machine.system.settings}/config.toml []" in lines
    assert {f"/proc/{pid}/cmdline []" for pid in pids} <= set(lines)
    assert [line for line in lines if not line.endswith(" []")] == []


def children_of(pid: int) -> list[int]:
    """Return the children of a process: of an agent its launchers, at least one."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    children = [int(word) for word in text.split()]
    assert children
    return children


# -- processes -------------------------------------------------------------------------

CLOSED_PROC = [
    *("environ", "mem", "maps", "smaps", "auxv", "stack", "syscall", "io", "pagemap"),
    *("personality", "exe", "fd/3", "task/{pid}/environ"),
]
REFUSED = {"EACCES", "EPERM"}


@BOTH
def test_the_agent_cannot_be_inspected(machine: Machine, attacker: str) -> None:
    """Its environment, memory, stack and open files."""
    pid = machine.system.pid
    files = [f"/proc/{pid}/{file.format(pid=pid)}" for file in CLOSED_PROC]
    folders = [f"/proc/{pid}/{name}" for name in ("fd", "map_files", "cwd", "root")]
    tried: list[Attempt] = [("read", 0, file) for file in files]
    tried += [("list", 0, folder) for folder in folders]

    errors = machine.errors(attacker, *tried)

    assert {one: e for one, e in errors.items() if e not in REFUSED} == {}


@BOTH
def test_the_agent_s_process_cannot_be_changed(machine: Machine, attacker: str) -> None:
    """As by a value that makes the kernel end it first."""
    files = ("oom_score_adj", "comm", "clear_refs", "mem", "coredump_filter")
    tried = [("open to write", 0, f"/proc/{machine.system.pid}/{f}") for f in files]

    assert machine.errors(attacker, *tried) == dict.fromkeys(tried, "EACCES")


@BOTH
def test_the_agent_cannot_be_signalled(machine: Machine, attacker: str) -> None:
    """Neither ended nor stopped."""
    tried = [("signal", machine.system.pid, number) for number in (0, 1, 9, 15, 19)]

    assert machine.errors(attacker, *tried) == dict.fromkeys(tried, "EPERM")


@BOTH
def test_the_agent_cannot_be_taken_over(machine: Machine, attacker: str) -> None:
    """By ptrace, its descriptors, its memory, its limits or its namespaces."""
    names = ("trace", "descriptors", "memory", "limit", "renice", "affinity")
    tried = [(name, machine.system.pid, "-") for name in (*names, "namespace")]

    assert machine.errors(attacker, *tried) == dict.fromkeys(tried, "EPERM")


@BOTH
def test_a_launcher_cannot_be_taken_over(machine: Machine, attacker: str) -> None:
    """Its connection to the agent would carry forged results."""
    names = ("trace", "descriptors", "memory")
    tried = [(n, p, "-") for p in children_of(machine.system.pid) for n in names]

    assert machine.errors(attacker, *tried) == dict.fromkeys(tried, "EPERM")


def test_processes_of_tasks_cannot_be_signalled_by_local_users(
    machine: Machine,
) -> None:
    """Tasks have the user of their launchers, so they can, and lose their attempt."""
    pids = children_of(machine.system.pid)
    tried = [("signal", pid, number) for pid in pids for number in (0, 9, 15, 19)]

    assert machine.errors(USER, *tried) == dict.fromkeys(tried, "EPERM")


@BOTH
def test_attackers_stay_who_they_are(machine: Machine, attacker: str) -> None:
    """Neither root nor the agent, whatever the agent left them."""
    names = ("setuid", "setgid", "setgroups")
    tried = [(name, 0, uid) for name in names for uid in (0, AGENT_UID)]

    assert machine.errors(attacker, *tried) == dict.fromkeys(tried, "EPERM")


# -- ports and requests ----------------------------------------------------------------


@BOTH
def test_ports_of_the_agent_cannot_be_shared(machine: Machine, attacker: str) -> None:
    """Not by SO_REUSEPORT, and not by another address that covers them."""
    hosts = ("127.0.0.1", "::1", "0.0.0.0", "::")
    ports = (3000, 3443, 7878)
    tried = [("bind", 0, f"{host}:{port}") for host in hosts for port in ports]

    assert machine.errors(attacker, *tried) == dict.fromkeys(tried, "EADDRINUSE")


@BOTH
def test_the_peer_port_answers_nothing_without_a_certificate(
    machine: Machine, attacker: str
) -> None:
    """But a TLS alert, at most."""
    result = machine.attempt(attacker, "talk", 0, PEERS)

    assert result.printed.startswith(("b''", "b'\\x15\\x03", "")), result
    assert len(result.printed) < 40


def requests_to_all_routes(token: str | None) -> list[list[Any]]:
    """Return a harmless request to each route, files of the dashboard excepted."""
    found: list[list[Any]] = []
    for route in ROUTES:
        if not route.is_page:
            path = route.path.replace(ATTEMPT_PATH, "/0/1-1-1-1")
            while "{" in path:
                before, _, rest = path.partition("{")
                path = before + "0" + rest.partition("}")[2].lstrip("}:.+)?")
            body: dict[str, object] | None = {} if route.body_type is not None else None
            found.append([route.method, path, token, body])
    return found


@BOTH
@pytest.mark.parametrize("address", [API, LAN])
@pytest.mark.parametrize("role", [None, "viewer", "client"])
def test_each_route_refuses_whoever_lacks_the_role(
    machine: Machine, attacker: str, role: str | None, address: str
) -> None:
    """Loopback gives no rights, but to read the metrics."""
    token = machine.mint(role) if role else None
    routes = [route for route in ROUTES if not route.is_page]
    allowed = {Access.PUBLIC, *ALLOWED[role]}
    if address == API:
        allowed.add(Access.READ_OR_LOCAL)

    answers = machine.ask(attacker, address, requests_to_all_routes(token))
    refused = [status in (401, 403) for status, _ in answers]

    assert len(routes) == len(answers) > 50
    assert [
        (route.method, route.path)
        for route, is_refused in zip(routes, refused, strict=True)
        if route.access not in allowed and not is_refused
    ] == []
    by_path = {
        (r.method, r.path): status
        for r, (status, _) in zip(routes, answers, strict=True)
    }
    assert by_path["GET", "/health"] == 200
    assert by_path["GET", "/api/v1/stats"] == (200 if role else 401)


@BOTH
def test_what_everybody_may_read_holds_nothing_private(
    machine: Machine, attacker: str
) -> None:
    """The metrics, on the machine itself, and the health: numbers and states only."""
    open_to_all = [["GET", "/metrics", None, None], ["GET", "/health", None, None]]
    words = [
        *private_words(machine),
        machine.victim,
        "task-0",
        str(machine.system.base),
    ]

    answers = machine.ask(attacker, API, open_to_all)

    assert [status for status, _ in answers] == [200, 200]
    assert "octaskly_queue_tasks" in answers[0][1]
    assert [word for word in words if any(word in body for _, body in answers)] == []


@BOTH
@pytest.mark.parametrize("role", ["viewer", "client"])
def test_tasks_of_others_are_not_cancelled(
    machine: Machine, attacker: str, role: str
) -> None:
    """A client may cancel what it submitted, a viewer nothing."""
    path = f"/api/v1/tasks/{submit(machine.agent, 'sleep 600')}?force=true"

    answers = machine.ask(attacker, API, [["DELETE", path, machine.mint(role), None]])
    status, _ = machine.agent.call("DELETE", path)

    assert [status for status, _ in answers] == [403]
    assert status == 200  # It was still there.


@BOTH
@pytest.mark.parametrize("role", ["viewer", "client"])
def test_tasks_of_others_are_not_retried(
    machine: Machine, attacker: str, role: str
) -> None:
    """A retry gets the stdin of the task, and its submitter may cancel it."""
    task = submit(machine.agent, "cat", stdin="for this task alone")
    finished(machine.agent, task)
    path = f"/api/v1/tasks/{task}/retry"

    answers = machine.ask(attacker, API, [["POST", path, machine.mint(role), None]])
    status, repeated = machine.agent.call("POST", path)
    cancel = f"/api/v1/tasks/{repeated['id']}?force=true"
    status_of_cancel, _ = machine.agent.call("DELETE", cancel)

    assert [status for status, _ in answers] == [403]
    assert status == 201
    assert status_of_cancel in (200, 404)  # 404: it has ended already.


@BOTH
@pytest.mark.parametrize("role", ["viewer", "client"])
def test_tasks_of_others_are_not_reprioritized(
    machine: Machine, attacker: str, role: str
) -> None:
    """Otherwise, anybody could let all others wait."""
    absent = {"labels": {"no": "node"}}
    task = submit(machine.agent, "true", priority=3, requires=absent)
    path = f"/api/v1/tasks/{task}/reprioritize"
    token, body = machine.mint(role), {"priority": -50}

    answers = machine.ask(attacker, API, [["POST", path, token, body]])
    _, shown = machine.agent.call("GET", f"/api/v1/tasks/{task}")

    assert [status for status, _ in answers] == [403]
    assert shown["priority"] == 3


@BOTH
@pytest.mark.parametrize("role", ["viewer", "client", "admin"])
def test_a_token_in_a_query_string_is_worth_nothing(
    machine: Machine, attacker: str, role: str
) -> None:
    """It would be in logs and histories."""
    token = machine.mint(role)
    names = ("token", "access_token", "authorization")
    asked = [["GET", f"/api/v1/stats?{name}={token}", None, None] for name in names]

    answers = machine.ask(attacker, API, asked)

    assert [status for status, _ in answers] == [401] * 3


@BOTH
def test_the_code_of_a_page_is_burnt_by_another_user(
    machine: Machine, attacker: str
) -> None:
    """The browser's arguments show it to all users for a moment."""
    status, made = machine.agent.call("POST", "/api/v1/sessions/codes", {})
    redeem = ["POST", "/api/v1/sessions", None, {"code": made["code"]}]

    stolen = machine.ask(attacker, API, [redeem])
    with contextlib.closing(HTTPConnection("localhost", 3000)) as owner:
        late, _ = request(owner, "POST", "/api/v1/sessions", {"code": made["code"]})

    assert status == 201
    assert (stolen[0][0], late) == (401, 401)
    assert "another user" in stolen[0][1]


def test_guesses_of_one_user_keep_no_other_from_a_page(machine: Machine) -> None:
    """Guesses are limited on loopback, where all users have one address."""
    guess = ["POST", "/api/v1/sessions", None, {"code": "guessed"}]
    _, made = machine.agent.call("POST", "/api/v1/sessions/codes", {})

    guesses = machine.ask(SECOND_USER, API, [guess] * (RATE_STRANGER + 1))
    with contextlib.closing(HTTPConnection("127.0.0.1", 3000)) as owner:
        status, _ = request(owner, "POST", "/api/v1/sessions", {"code": made["code"]})

    assert {status for status, _ in guesses} == {401, 429}
    assert status == 201


# -- pairing and mDNS ------------------------------------------------------------------


def join(machine: Machine, folder: Path, *words: str) -> list[str]:
    """Return the words of a command that joins with a code, without an agent."""
    return [
        *("env", f"PYTHONPATH={CHECKOUT}", f"HOME={folder}", sys.executable, "-m"),
        *("octaskly", "join", *words, "--interface", "lo"),
        *("--secret-file", str(folder / "mesh.key")),
    ]


@pytest.fixture
def drop(machine: Machine) -> Path:
    """Return an empty folder where everybody may write."""
    folder = Path(tempfile.mkdtemp(prefix="drop-", dir=machine.system.base))
    folder.chmod(0o777)
    return folder


def invite(machine: Machine) -> tuple[str, int]:
    """Open an invite; return its code, and the port that accepts it."""
    status, opened = machine.agent.call("POST", "/api/v1/invites", {})
    assert status == 201, opened
    return opened["code"], int(opened["places"][0].rpartition(":")[2])


@BOTH
def test_an_open_invite_gives_nothing_to_who_lacks_its_code(
    machine: Machine, attacker: str, drop: Path
) -> None:
    """The port is not shared, it tells nothing, and a wrong code burns the invite."""
    code, port = invite(machine)
    slot, first, second = code.split("-")
    wrong = f"{slot}-{second}-{first}" if first != second else f"{slot}-0000-0000"
    tried = [("bind", 0, f"{host}:{port}") for host in ("127.0.0.1", "0.0.0.0")]

    errors = machine.errors(attacker, *tried)
    said = machine.attempt(attacker, "talk", 0, f"127.0.0.1:{port}").printed
    at = f"127.0.0.1:{port}"
    printed, status = machine.run(attacker, join(machine, drop, wrong, "--at", at))

    assert errors == dict.fromkeys(tried, "EADDRINUSE")
    assert [word for word in private_words(machine) if word in said + printed] == []
    assert status != 0
    assert "does not accept the code" in printed
    assert "the code is no longer valid" in printed
    assert list(drop.glob("mesh.key*")) == []


def test_a_stolen_pairing_port_gives_no_code(
    machine: Machine, drop: Path, tmp_path: Path
) -> None:
    """The invite takes another port; who asks the first one sends no code."""
    with thief(tmp_path, "127.0.0.1", "::1", port=PAIRING) as attacker:
        until(attacker.has_port, "the port is taken")
        code, port = invite(machine)
        misled = join(machine, drop, code, "--at", "127.0.0.1")
        wrong = subprocess.run(misled, capture_output=True, text=True, check=False)
        joined = subprocess.run(
            join(machine, drop, code), capture_output=True, text=True, check=False
        )
        heard = attacker.heard().removeprefix(BOUND)

    assert port != PAIRING
    assert (wrong.returncode != 0, joined.returncode) == (True, 0), joined.stderr
    assert heard
    digits = code.replace("-", "").encode()
    words = [code.encode(), digits, *(word.encode() for word in private_words(machine))]
    assert [word for word in words if word in heard] == []


def advert(machine: Machine, node: str, port: int, host: str = "127.0.0.1") -> str:
    """Return a datagram, in hexadecimal, for a dispatcher of our mesh elsewhere."""
    mesh = (machine.system.state / "mesh.id").read_text().strip()
    txt = {"v": "1", "m": mesh, "b": "boot", "a": "1", "r": "d", "t": "9" * 18}
    info = ServiceInfo(
        SERVICE,
        f"{node}.{SERVICE}",
        port=port,
        server=f"{node}.local.",
        parsed_addresses=[host],
        properties=txt,
    )
    out = DNSOutgoing(RESPONSE)
    for record in (info.dns_pointer(), info.dns_service(), info.dns_text()):
        out.add_answer_at_time(record, 0)
    for address in info.dns_addresses():
        out.add_answer_at_time(address, 0)
    (packet,) = out.packets()
    return packet.hex()


@BOTH
def test_forged_adverts_depose_nobody_and_get_no_secret(
    machine: Machine, attacker: str, tmp_path: Path
) -> None:
    """The agent dials them, and proves itself only to a node that has the secret."""
    own = str(machine.agent.ready()["node_id"])
    _, before = machine.agent.call("GET", "/api/v1/nodes")
    uid = THIEF_UID if attacker == USER else TASK_UID
    with thief(tmp_path, "127.0.0.1", port=7900, uid=uid) as listener:
        until(listener.has_port, "the attacker listens")
        names = [own, *(letter * 16 for letter in "a2hpz7")]
        forged = [advert(machine, name, 7900) for name in names]
        forged.append(advert(machine, "b" * 16, 53, "8.8.8.8"))
        result = machine.attempt(attacker, "shout", 0, "-", json.dumps(forged))
        until(lambda: b"\x16\x03" in listener.heard(), "the agent dials")
        task = finished(machine.agent, submit(machine.agent, "echo on"))
        _, after = machine.agent.call("GET", "/api/v1/nodes")
        heard = listener.heard()

    assert result.error is None
    assert [word for word in private_words(machine) if word.encode() in heard] == []
    assert task["stdout"] == "on\n"
    kept = ("id", "role", "state")
    assert [[node[name] for name in kept] for node in after["nodes"]] == [
        [node[name] for name in kept] for node in before["nodes"]
    ]
    assert after["term"] == before["term"]


# -- what an attacker does get ---------------------------------------------------------


def test_a_client_runs_commands_and_a_viewer_reads_them(machine: Machine) -> None:
    """A viewer reads the variables of all tasks, too, but not their stdin."""
    given = {"command": "sleep 600", "env": {"SHOWN": VALUE}, "stdin": STDIN}
    client, viewer = machine.mint("client"), machine.mint("viewer")
    ((accepted, body), (refused, _)) = machine.ask(
        USER,
        API,
        [["POST", TASKS, client, given], ["POST", TASKS, viewer, given]],
    )
    path = f"{TASKS}/{json.loads(body)['id']}"
    (read, own) = machine.ask(
        USER,
        API,
        [
            ["GET", path, viewer, None],
            ["DELETE", f"{path}?force=true", client, None],
        ],
    )

    assert (accepted, refused, read[0], own[0]) == (201, 403, 200, 200)
    assert (VALUE in read[1], STDIN in read[1]) == (True, False)


def test_a_local_user_sees_the_commands_of_running_tasks(machine: Machine) -> None:
    """As of all processes, in `/proc`; but not their variables and their stdin."""
    task = submit(
        machine.agent, f"sleep 600; : {COMMAND}", env={"HIDDEN": VALUE}, stdin=STDIN
    )
    words = json.dumps([COMMAND, VALUE, STDIN])

    def seen() -> list[str]:
        grandchildren = [
            pid
            for child in children_of(machine.system.pid)
            for pid in Path(f"/proc/{child}/task/{child}/children").read_text().split()
        ]
        folders = ",".join(f"/proc/{pid}" for pid in grandchildren)
        found = machine.attempt(USER, "search", 0, folders, words)
        return [one for one in found.printed.splitlines() if not one.endswith("[]")]

    lines = until(seen, "the task runs")
    machine.agent.call("DELETE", f"{TASKS}/{task}?force=true")

    assert {line.partition(" ")[2] for line in lines} == {f"[{COMMAND!r}]"}
    assert {Path(line.partition(" ")[0]).name for line in lines} == {"cmdline"}


def test_a_stolen_disk_makes_its_holder_a_member(machine: Machine) -> None:
    """It has the secret, so any token, and all that tasks were given and wrote."""
    secret = parse_secret((machine.system.credentials / "mesh.key").read_text())
    forged = TokenSigner(secret).sign_token(
        subject="thief", role="admin", expires_s=60, now_s=time.time(), jti="stolen"
    )
    database = b"".join(
        path.read_bytes() for path in machine.system.state.glob("*.db*")
    )
    files = [path for path in machine.system.state.rglob("*") if path.is_file()]

    answers = machine.ask(USER, API, [["GET", "/api/v1/tokens", forged, None]])

    assert [status for status, _ in answers] == [200]
    assert [
        word for word in (COMMAND, VALUE, STDIN) if word.encode() not in database
    ] == []
    assert any(OUTPUT.encode() in path.read_bytes() for path in files)
