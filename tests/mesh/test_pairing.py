"""Case F32: attackers on the LAN while a machine joins.

Each attacker is a program on a host of its own. A machine without an agent joins, so
each test has a newcomer without any state.
"""

import contextlib
import itertools
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, Self

import pytest

from octaskly.joining.conversation import EXCHANGE_S
from octaskly.joining.greeting import GREETING_BYTES, Greeting
from octaskly.joining.key_exchange import (
    NO_PROOF,
    PROOF_BYTES,
    SEALED_BYTES,
    SHARE_BYTES,
    InviteCode,
    KeyExchange,
    is_proof_valid,
)
from octaskly.trust import NodeKey, load_secret
from tests.mesh.forming import secret_file
from tests.mesh.lab import Host, Lab
from tests.mesh.netns import wait_until

pytestmark = [pytest.mark.netns, pytest.mark.timeout(120)]

PORT = 7879
Tamper = Callable[[bytes], bytes]


class Scene(NamedTuple):
    """A mesh of one, two machines without one, and an attacker."""

    member: Host
    joiner: Host
    other: Host
    attacker: Host
    secret: Path


@pytest.fixture(scope="module")
def scene(_may_make_labs: None) -> Iterator[Scene]:
    with Lab(4) as lab:
        secret = secret_file(lab.folder)
        assert lab.hosts[0].agent(secret=secret).description
        member, joiner, other, attacker = lab.hosts
        yield Scene(member, joiner, other, attacker, secret)


@pytest.fixture
def invites(scene: Scene) -> Iterator[Callable[[], InviteCode]]:
    """Open invites of the member; unused ones are burnt after the test."""
    opened: list[InviteCode] = []

    def invite() -> InviteCode:
        made = scene.member.http("POST", "/api/v1/invites", json={"ttl_s": 300})
        assert made.status == 201, made.body
        opened.append(InviteCode.parse(made.json["code"]))
        return opened[-1]

    yield invite
    for code in opened:
        with contextlib.suppress(OSError):
            guess(scene, code, InviteCode(code.slot, "00000000"))


_homes = itertools.count()


class Newcomer:
    """A machine without state, and its `octaskly join`."""

    def __init__(self, host: Host) -> None:
        self._host = host
        name = f"new{next(_homes)}"
        self._environ = host.environ(name)
        self.secret = host.folder / name / "xdg-config" / "octaskly" / "mesh.key"

    def join(self, *args: str) -> "subprocess.CompletedProcess[str]":
        return self._host.run(
            *(sys.executable, "-m", "octaskly", "join", *args), env=self._environ
        )


def hear(connection: socket.socket, size: int) -> bytes:
    """Return so many bytes, or fewer if the other side hangs up before."""
    data = b""
    # A reset occurs if data was unread.
    with contextlib.suppress(ConnectionResetError):
        while len(data) < size and (chunk := connection.recv(size - len(data))):
            data += chunk
    return data


def hello_of(slot: int, key: NodeKey) -> bytes:
    now_ms = time.time_ns() // 1_000_000
    return Greeting(
        name="mallory", key=key.public_bytes(), wall_ms=now_ms, slot_or_port=slot
    ).pack()


def guess(scene: Scene, code: InviteCode, guessed: InviteCode) -> bytes:
    """Play a joiner who guesses; return all that the member sends after the shares."""
    with scene.attacker.connect((scene.member.ip, PORT), 5.0) as connection:
        hello = hello_of(code.slot, NodeKey.generate())
        connection.sendall(hello)
        welcome = hear(connection, GREETING_BYTES)
        exchange = KeyExchange.for_joiner(guessed)
        with contextlib.suppress(ConnectionError):  # It may be gone already.
            connection.sendall(exchange.share)
        share = hear(connection, SHARE_BYTES)
        if len(share) < SHARE_BYTES:
            return b""
        keys = exchange.derive_keys(share, hello, welcome)
        connection.sendall(keys.joiner_proof())
        return hear(connection, PROOF_BYTES + SEALED_BYTES)


class Interceptor:
    """An attacker between joiner and member, who changes, relays and records bytes.

    Args:
        scene: The scene; this attacker is at its attacker's host.
        to_member: Changes each piece that the joiner sends.
        to_joiner: Changes each piece that the member sends.
    """

    def __init__(
        self, scene: Scene, to_member: Tamper = bytes, to_joiner: Tamper = bytes
    ) -> None:
        self.heard = {"joiner": b"", "member": b""}
        self._scene = scene
        self._tamper = {"joiner": to_member, "member": to_joiner}
        self._listener = scene.attacker.call(self._listen)
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        self._thread.join(EXCHANGE_S + 5)

    def _listen(self) -> socket.socket:
        listener = socket.create_server(("", PORT))
        listener.settimeout(30.0)
        return listener

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            joiner, _ = self._listener.accept()
            target = (self._scene.member.ip, PORT)
            member = self._scene.attacker.connect(target, 5.0)
            with joiner, member, ThreadPoolExecutor(2) as both:
                for source, drain, name in (
                    (joiner, member, "joiner"),
                    (member, joiner, "member"),
                ):
                    source.settimeout(EXCHANGE_S + 2)
                    both.submit(self._pass, source, drain, name)

    def _pass(self, source: socket.socket, drain: socket.socket, name: str) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self.heard[name] += data
                drain.sendall(self._tamper[name](data))
        with contextlib.suppress(OSError):
            drain.shutdown(socket.SHUT_WR)


def shows_secret(heard: bytes, secret: Path) -> bool:
    """Return True if bytes hold the secret in any form that a program would send."""
    kept = load_secret(secret)
    texts = [line.split()[0] for line in secret.read_text().splitlines()]
    forms = [*kept.generations, *(text.encode() for text in texts)]
    forms += [text.removeprefix("okm1-")[:32].encode() for text in texts]
    return any(form in heard for form in forms)


def test_f32_attacker_who_only_relays_bytes_learns_nothing(
    scene: Scene, invites: Callable[[], InviteCode]
) -> None:
    """The pairing succeeds through the attacker, who holds noise of one size."""
    code, newcomer = invites(), Newcomer(scene.joiner)

    with Interceptor(scene) as middle:
        done = newcomer.join("--at", scene.attacker.ip, code.formatted())

    assert done.returncode == 0, done.stderr
    assert load_secret(newcomer.secret) == load_secret(scene.secret)
    sizes = {who: len(heard) for who, heard in middle.heard.items()}
    assert sizes == {
        "joiner": GREETING_BYTES + SHARE_BYTES + PROOF_BYTES,
        "member": GREETING_BYTES + SHARE_BYTES + PROOF_BYTES + SEALED_BYTES,
    }
    assert not shows_secret(b"".join(middle.heard.values()), scene.secret)
    assert code.secret.encode() not in b"".join(middle.heard.values())


@pytest.mark.parametrize("side", ["joiner", "member"])
def test_f32_attacker_in_the_middle_ends_the_pairing(
    scene: Scene, invites: Callable[[], InviteCode], side: str
) -> None:
    """A greeting with another node key, either way, makes both proofs wrong."""
    code, newcomer = invites(), Newcomer(scene.joiner)
    mine = NodeKey.generate().public_bytes()

    def forge(data: bytes) -> bytes:
        if len(data) != GREETING_BYTES:
            return data
        said = Greeting.unpack(data)
        forged = Greeting(
            name=said.name,
            key=mine,
            wall_ms=said.wall_ms,
            slot_or_port=said.slot_or_port,
        )
        return forged.pack()

    to_member, to_joiner = (forge, bytes) if side == "joiner" else (bytes, forge)
    with Interceptor(scene, to_member, to_joiner) as middle:
        done = newcomer.join("--at", scene.attacker.ip, code.formatted())

    assert done.returncode == 1
    assert "does not accept the code" in done.stderr
    assert "another machine impersonates the member" in done.stderr
    assert not newcomer.secret.exists()
    assert middle.heard["member"][GREETING_BYTES + SHARE_BYTES :] == NO_PROOF


def test_f32_attacker_as_joiner_has_one_guess(
    scene: Scene, invites: Callable[[], InviteCode]
) -> None:
    """The attacker gets a refusal of 32 bytes, and the code is burnt for all."""
    code, _, newcomer = invites(), invites(), Newcomer(scene.joiner)
    wrong = InviteCode(code.slot, f"{(int(code.secret) + 1) % 10**8:08}")

    answered = guess(scene, code, wrong)
    again = guess(scene, code, code)
    late = newcomer.join("--at", scene.member.ip, code.formatted())

    assert answered == NO_PROOF
    assert again == b""
    assert late.returncode == 1
    assert "it was already tried" in late.stderr
    assert not newcomer.secret.exists()
    assert "wrong code" in scene.member.first.log


def test_f32_attacker_as_member_has_one_guess(
    scene: Scene, invites: Callable[[], InviteCode]
) -> None:
    """The joiner proves first, to an attacker who cannot check it, and stops."""
    code, newcomer = invites(), Newcomer(scene.joiner)
    wrong = InviteCode(code.slot, f"{(int(code.secret) + 1) % 10**8:08}")
    proofs: list[bool] = []

    def play(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            hello = hear(connection, GREETING_BYTES)
            welcome = hello_of(7878, NodeKey.generate())
            connection.sendall(welcome)
            exchange = KeyExchange.for_member(wrong)
            share = hear(connection, SHARE_BYTES)
            connection.sendall(exchange.share)
            keys = exchange.derive_keys(share, hello, welcome)
            proof = hear(connection, PROOF_BYTES)
            proofs.append(is_proof_valid(proof, keys.joiner_proof()))
            connection.sendall(keys.member_proof() + bytes(SEALED_BYTES))

    with scene.attacker.call(lambda: socket.create_server(("", PORT))) as listener:
        listener.settimeout(30.0)
        thread = threading.Thread(target=play, args=(listener,))
        thread.start()
        done = newcomer.join("--at", scene.attacker.ip, code.formatted())
        thread.join()

    assert proofs == [False]
    assert done.returncode == 1
    assert "mallory does not accept the code" in done.stderr
    assert not newcomer.secret.exists()


def test_f32_replayed_messages_open_nothing(
    scene: Scene, invites: Callable[[], InviteCode]
) -> None:
    """A replay meets another run, with other shares and so other keys."""
    first, newcomer = invites(), Newcomer(scene.joiner)
    with Interceptor(scene) as middle:
        done = newcomer.join("--at", scene.attacker.ip, first.formatted())
    assert done.returncode == 0, done.stderr
    heard = middle.heard["joiner"]
    second = invites()
    said = Greeting.unpack(heard[:GREETING_BYTES])
    hello = Greeting(
        name=said.name, key=said.key, wall_ms=said.wall_ms, slot_or_port=second.slot
    ).pack()

    with scene.attacker.connect((scene.member.ip, PORT), 5.0) as connection:
        connection.sendall(hello + heard[GREETING_BYTES:])
        answered = hear(connection, GREETING_BYTES + SHARE_BYTES + SEALED_BYTES)

    assert answered[GREETING_BYTES + SHARE_BYTES :] == NO_PROOF


def test_f32_only_one_of_two_machines_with_one_code_joins(
    scene: Scene, invites: Callable[[], InviteCode]
) -> None:
    """The other one gets the reason, and has no secret."""
    code = invites()
    newcomers = [Newcomer(scene.joiner), Newcomer(scene.other)]

    with ThreadPoolExecutor(2) as both:
        done = list(both.map(lambda one: one.join(code.formatted()), newcomers))

    joined = [one.returncode == 0 for one in done]
    assert sorted(joined) == [False, True], [one.stderr for one in done]
    assert [one.secret.exists() for one in newcomers] == joined
    loser = done[joined.index(False)].stderr
    assert "hint: octaskly invite" in loser


def test_f32_no_port_is_open_without_an_invite(
    scene: Scene, invites: Callable[[], InviteCode]
) -> None:
    """A closed port cannot be attacked."""

    def is_closed() -> bool:
        try:
            scene.attacker.connect((scene.member.ip, PORT), 5.0).close()
        except ConnectionRefusedError:
            return True
        return False

    code = invites()
    assert not is_closed()

    guess(scene, code, InviteCode(code.slot, "00000000"))

    wait_until("no port is open", is_closed, within_s=45.0)
