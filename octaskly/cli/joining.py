"""`octaskly invite` and `join`: how machines get into a mesh."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from octaskly.cli.choice import Choice
from octaskly.cli.render import Duration, note, print_json
from octaskly.cli.tasks import JSON_OPTION
from octaskly.client import (
    ApiError,
    Client,
    Invite,
    Membership,
    NodeInfo,
    ReplyLost,
    Unreachable,
)
from octaskly.errors import MeshError, WouldLeave

if TYPE_CHECKING:
    from octaskly.agent.joining import Admitted
    from octaskly.trust.code import Code

READY_S = 15.0  #: for the agent to be a member; it takes a second or two
POLL_S = 0.1
TTL_S = 300


@click.command(epilog="Example: octaskly invite --ttl 10m")
@click.option(
    "--ttl", type=Duration(), default=TTL_S, metavar="T", help="How long it is good."
)
@JSON_OPTION
@click.pass_obj
def invite(choice: Choice, ttl: int, as_json: bool) -> None:  # noqa: FBT001
    """Let one more machine into the mesh: show a code for `octaskly join`.

    The code is good for one attempt. Whoever types it first joins.
    """
    with choice.client() as client:
        reply = client.invite(ttl)
    if as_json:
        print_json(reply.body)
        return
    opened = msgspec.json.decode(reply.body, type=Invite)
    note(f"On the other machine (valid {_span(ttl)}, for one attempt):")
    click.echo(f"    octaskly join {opened.code}")
    if opened.places:
        note("Where multicast is blocked:")
        note(f"    octaskly join --at {opened.places[0]} {opened.code}")
    note("Whoever types this code first joins, and can run commands on every node.")


@click.command(epilog="Example: octaskly join 7-4821-9375")
@click.argument("code", metavar="CODE")
@click.option(
    "--at", metavar="HOST[:PORT]", help="Where the member is; multicast is not needed."
)
@click.option(
    "--force", is_flag=True, help="Leave members and tasks of another mesh behind."
)
@click.option(
    "--interface",
    "interfaces",
    multiple=True,
    metavar="NAME",
    help="Look for members on this network interface only. Repeatable.",
)
@click.option(
    "--secret-file",
    type=click.Path(path_type=Path),
    help="Where no agent runs: the file for the mesh secret.",
)
@click.pass_obj
def join(
    choice: Choice,
    code: str,
    at: str | None,
    force: bool,  # noqa: FBT001
    interfaces: tuple[str, ...],
    secret_file: Path | None,
) -> None:
    """Make this machine a member of a mesh, with the code of `octaskly invite`.

    `-` reads the code from stdin, where no other user can see it.
    """
    # Imported here, as below: pairing brings in what quick commands do without.
    from octaskly.trust.code import Code  # noqa: PLC0415

    typed = Code.parse(_read_code() if code == "-" else code)
    try:
        socket = choice.socket()
    except Unreachable:
        if choice.node or choice.state_dir:
            raise
        _join_alone(choice, typed, at, interfaces, secret_file)
        return
    with Client.at_socket(socket) as client:
        own = client.membership()
        _check_leaving(own, force=force)
        used = interfaces or own.interfaces
        key = bytes.fromhex(own.node_key)
        admitted = _pair(own.name, key, own.mesh, typed, at, used)
        client.enter(admitted.keyring, seeds=[admitted.seed], force=force)
    _await_ready(socket, own, admitted)


def _read_code() -> str:
    if sys.stdin.isatty():
        return str(click.prompt("Code", hide_input=True, err=True))
    return sys.stdin.readline()


def _check_leaving(own: Membership, *, force: bool) -> None:
    """Say what joining would leave behind, before a code is spent."""
    left = [f"{own.tasks} tasks"] if own.tasks else []
    if own.members:
        left.append(f"the nodes {', '.join(own.members)}")
    if not left:
        return
    if not force:
        raise WouldLeave(
            f"this machine is in the mesh {own.mesh}, and joining another one "
            f"leaves behind: {' and '.join(left)}",
            hint="octaskly join --force CODE    leaves them; "
            "the log is kept, moved aside",
        )
    note(f"leaving behind: {' and '.join(left)}")


def _pair(
    name: str,
    key: bytes,
    mesh: str | None,
    code: Code,
    at: str | None,
    interfaces: Sequence[str],
) -> Admitted:
    from octaskly.agent.clock import SystemClock  # noqa: PLC0415
    from octaskly.agent.joining import Joiner, place_at, places_in_sight  # noqa: PLC0415

    async def pair() -> Admitted:
        places = [await place_at(at)] if at else await places_in_sight(interfaces, mesh)
        joiner = Joiner(name, key, SystemClock(), lambda text: note(f"· {text}"))
        return await joiner.by_code(code, places)

    return asyncio.run(pair())


def _join_alone(
    choice: Choice,
    code: Code,
    at: str | None,
    interfaces: Sequence[str],
    secret_file: Path | None,
) -> None:
    """Join where no agent runs: write the secret, and say what to start."""
    from octaskly.agent.joining import keep  # noqa: PLC0415
    from octaskly.config.agent import configure  # noqa: PLC0415
    from octaskly.trust import NodeKey  # noqa: PLC0415

    config = configure({"secret_file": secret_file}, choice.environ)
    key = NodeKey.load_or_create(config.paths.state)
    admitted = _pair(config.name, key.public_bytes(), None, code, at, interfaces)
    left = keep(config.paths, admitted.keyring)
    if left is not None:
        note(f"the secret of the mesh before lies in {left}")
    note(f"✓ the mesh secret is in {config.paths.secret}")
    seed = f" --join {admitted.seed}" if at else ""
    note(f"next: octaskly agent{seed}")


def _await_ready(socket: Path, before: Membership, admitted: Admitted) -> None:
    """Return once the agent is listed as a ready member; say so."""
    give_up_at = time.monotonic() + READY_S
    while time.monotonic() < give_up_at:
        node = _own(socket, before)
        if node is not None and node.state == "ready":
            note(f"✓ joined the mesh of {admitted.member} as {node.name}")
            return
        time.sleep(POLL_S)
    raise MeshError(
        f"this machine has the secret of {admitted.member}'s mesh, but is not "
        f"ready in it after {READY_S:.0f} s",
        hint="octaskly nodes    shows whether it is in now; its log tells more",
    )


def _own(socket: Path, before: Membership) -> NodeInfo | None:
    """Return this node as its new mesh lists it, None while it does not."""
    try:
        with Client.at_socket(socket, patience_s=0.0) as client:
            if client.membership().mesh in (None, before.mesh):
                return None
            return client.node(before.node_id)
    except (ApiError, Unreachable, ReplyLost):
        return None  # It is just beginning anew.


def _span(seconds: int) -> str:
    return f"{seconds // 60} min" if seconds % 60 == 0 else f"{seconds} s"
