"""`octaskly invite`, `join`: pairing of machines with a mesh."""

from __future__ import annotations

import contextlib
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from octaskly.cli.context import CliContext
from octaskly.cli.options import JSON_OPTION, Duration, UsageProblem
from octaskly.cli.output.render import count_of, format_capacity, note, print_json
from octaskly.cli.output.terminal import (
    is_terminal,
    print_line,
    print_text,
    prompt_hidden,
)
from octaskly.client import Refused, ReplyLost, Session, Unreachable
from octaskly.client.flows import rest_calls
from octaskly.client.flows.rest_calls import MEMBERSHIP, NODES, Call, resource_path
from octaskly.errors import ConfigError, MeshError, MeshNotEmpty
from octaskly.rest.access import Invite, Membership
from octaskly.rest.mesh import NodeInfo

if TYPE_CHECKING:
    from octaskly.config.agent import AgentConfig
    from octaskly.joining.join_by_code import JoinGrant
    from octaskly.joining.key_exchange import InviteCode

READY_S = 15.0  #: limit for the agent to become a member, which takes 1 or 2 s
POLL_S = 0.1
TTL_S = 300
STAY_S = 8 * 3600


@click.command(epilog="Example: octaskly invite --ttl 10m")
@click.option(
    "--ttl",
    type=Duration(),
    default=TTL_S,
    metavar="T",
    help="How long the code is valid: 10s to 1h (default: 5m); 7d for a visitor.",
)
@click.option(
    "--visitor",
    "is_visitor",
    is_flag=True,
    help="Invite a worker that gets no mesh secret and cannot give commands.",
)
@click.option(
    "--stay",
    "stay_s",
    type=Duration(least_s=60),
    metavar="T",
    help="How long the visitor may stay: 1m to 7d (default: 8h).",
)
@JSON_OPTION
@click.pass_obj
def invite(
    context: CliContext,
    ttl: int,
    is_visitor: bool,  # noqa: FBT001
    stay_s: int | None,
    as_json: bool,  # noqa: FBT001
) -> None:
    """Show a code with which one more machine can join the mesh.

    The code is valid for one attempt. The first machine to enter it joins.
    """
    if stay_s is not None and not is_visitor:
        raise click.UsageError("--stay needs --visitor")
    asked: dict[str, Any] = {"ttl_s": ttl}
    if is_visitor:
        asked["visitor"] = {"stay_s": stay_s or STAY_S}
    with context.connect() as client:
        reply = client.send(rest_calls.post_once("/api/v1/invites", asked))
    if as_json:
        print_json(reply.body)
        return
    if is_visitor:
        _show_visitor_invite(client.decode(reply, Invite), ttl, stay_s or STAY_S)
        return
    opened = client.decode(reply, Invite)
    note(f"On the other machine (valid {_span(ttl)}, for one attempt):")
    print_line(f"    octaskly join {opened.code}")
    if opened.places:
        note("Where multicast is blocked:")
        note(f"    octaskly join --at {opened.places[0]} {opened.code}")
    note(
        "The first machine to enter this code joins the mesh,"
        " and can run commands on every node."
    )


def _show_visitor_invite(opened: Invite, ttl: int, stay_s: int) -> None:
    note(f"On the machine that you borrow (valid {_span(ttl)}, for one visitor):")
    print_line(f"    octaskly join --visitor {opened.url or opened.code}")
    if opened.url and is_terminal():
        from octaskly.joining.qr_code import qr_terminal  # noqa: PLC0415 - rare

        print_text(qr_terminal(opened.url))
    note(
        f"It runs only tasks that allow visitors, for {_span(stay_s)} at most,"
        " and can give no commands."
    )


@click.command(epilog="Example: octaskly join 7-4821-9375")
@click.argument("code", metavar="[CODE]", required=False)
@click.option(
    "--at",
    metavar="HOST[:PORT]",
    help="Address of a member; makes multicast unnecessary.",
)
@click.option(
    "--force", is_flag=True, help="Abandon the members and tasks of the current mesh."
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
    help="File for the mesh secret, if no agent runs.",
)
@click.option(
    "--visitor",
    "is_visitor",
    is_flag=True,
    help="Run tasks here as a visitor, until Ctrl-C; CODE may be a URL.",
)
@click.pass_obj
def join(
    context: CliContext,
    code: str | None,
    at: str | None,
    force: bool,  # noqa: FBT001
    interfaces: tuple[str, ...],
    secret_file: Path | None,
    is_visitor: bool,  # noqa: FBT001
) -> int:
    """Join a mesh, with a code or by comparing words.

    `-` reads the code from stdin, where no other user can see it. Without a code, it
    waits until somebody approves it on a member, and shows three words to compare.
    """
    if is_visitor:
        if force or interfaces or secret_file:
            raise click.UsageError(
                "--force, --interface and --secret-file are for members; leave out"
                " --visitor to join as one"
            )
        return _join_as_visitor(context, code, at)
    _check_join_options(code, at)
    socket = _agent_socket(context)
    if socket is None:
        _join_without_agent(context, _JoinMethod(code, at, interfaces), secret_file)
        return 0
    with Session.at_socket(socket) as client:
        own = client.send_and_decode(Call("GET", MEMBERSHIP), Membership)
        _check_leaving(own, force=force)
        way = _JoinMethod(code, at, interfaces or own.interfaces)
        admitted = way.pair(own.name, bytes.fromhex(own.node_key), own.mesh)
        with _explain_interrupt(admitted):
            wanted = {"keyring": admitted.secret_text, "seeds": [admitted.seed]}
            client.send(rest_calls.post_once(MEMBERSHIP, {**wanted, "force": force}))
            _await_ready(socket, own, admitted)
    return 0


def _join_as_visitor(context: CliContext, code: str | None, at: str | None) -> int:
    """Run a visitor with this invite and the settings of this machine."""
    from octaskly.cli.agent import run_visitor  # noqa: PLC0415 - only visitors need it
    from octaskly.config.agent import load_agent_config  # noqa: PLC0415

    if code in (None, "-"):
        code = _read_code()
    if at is not None:
        code = f"octaskly://{at}/{code}"
    return run_visitor(load_agent_config({}, context.environ), str(code))


@dataclass(frozen=True, slots=True)
class _JoinMethod:
    """How this machine joins."""

    code: str | None  #: None if users compare words instead
    at: str | None
    interfaces: Sequence[str]

    def pair(self, name: str, key: bytes, mesh: str | None) -> JoinGrant:
        """Pair with a member, and return the credentials of a member."""
        # Imported here and below, because only pairing needs these libraries.
        from octaskly.joining.key_exchange import InviteCode  # noqa: PLC0415

        if self.code is None:
            import asyncio  # noqa: PLC0415

            from octaskly.cli.join_dialog import join_by_words  # noqa: PLC0415

            return asyncio.run(join_by_words(name, key, self.interfaces))
        code = InviteCode.parse(_read_code() if self.code == "-" else self.code)
        return _pair_by_code(name, key, mesh, code, self.at, self.interfaces)


def _check_join_options(code: str | None, at: str | None) -> None:
    if code is not None:
        return
    if at is not None:
        raise click.UsageError("--at needs a code from `octaskly invite`")
    if not sys.stdin.isatty():
        raise UsageProblem(
            "`octaskly join` without a code asks for confirmation, but there "
            "is no terminal",
            cause="somebody must compare three words with those on a member",
            hint="octaskly join CODE    with a code from `octaskly invite`",
        )


def _agent_socket(context: CliContext) -> Path | None:
    """Return the socket of the local agent, None if none runs."""
    try:
        return context.socket_path()
    except Unreachable:
        if context.node or context.state_dir:
            raise  # The user chose an agent, which does not run.
        return None


def _read_code() -> str:
    if sys.stdin.isatty():
        return prompt_hidden("Code")
    return sys.stdin.readline()


def _check_leaving(own: Membership, *, force: bool) -> None:
    """Report what joining would abandon, before the code is consumed."""
    left = [count_of(own.tasks, "task")] if own.tasks else []
    if own.members:
        left.append(
            f"the other {'node' if len(own.members) == 1 else 'nodes'} "
            f"{', '.join(own.members)}"
        )
    if not left:
        return
    if not force:
        raise MeshNotEmpty(
            f"this machine is in the mesh {own.mesh}, and joining another one "
            f"would abandon {' and '.join(left)}",
            hint="octaskly nodes    shows its members; to stay in it, do nothing\n"
            f"octaskly drain {own.name} --wait    lets its tasks end first\n"
            "octaskly join --force CODE    abandons them; the log is moved "
            "aside, not deleted",
        )
    note(f"abandoning: {' and '.join(left)}")


def _pair_by_code(
    name: str,
    key: bytes,
    mesh: str | None,
    code: InviteCode,
    at: str | None,
    interfaces: Sequence[str],
) -> JoinGrant:
    import asyncio  # noqa: PLC0415

    from octaskly.joining.join_by_code import (  # noqa: PLC0415
        JoinClient,
        discover_targets,
        resolve_target,
    )
    from octaskly.system.clock import SystemClock  # noqa: PLC0415

    async def pair() -> JoinGrant:
        places = resolve_target(at) if at else discover_targets(interfaces, mesh)
        async with contextlib.aclosing(places):
            joiner = JoinClient(name, key, SystemClock(), _print_step)
            return await joiner.join_by_code(code, places)

    return asyncio.run(pair())


def _print_step(text: str) -> None:
    note(f"· {text}")


def _join_without_agent(
    context: CliContext, method: _JoinMethod, secret_file: Path | None
) -> None:
    """Join without a running agent: write the secret, and start any service.

    Raises:
        ConfigError: the agent of this machine is a system service, which only root can
            start, and only the service can write its secret.
    """
    from octaskly.cli.service.systemd import Scope, Systemd  # noqa: PLC0415
    from octaskly.joining.join_by_code import save_mesh_secret  # noqa: PLC0415
    from octaskly.trust import NodeKey  # noqa: PLC0415

    config, has_service = next_agent_config(context, secret_file)
    key = NodeKey.load_or_create(config.paths.state)
    admitted = method.pair(config.name, key.public_bytes(), None)
    with _explain_interrupt(admitted):
        left = save_mesh_secret(config.paths, admitted.secret_text)
        if left is not None:
            note(f"the secret of the previous mesh is in {left}")
        note(f"✓ the mesh secret is in {config.paths.secret}")
        if has_service:
            Systemd(Scope.USER, context.environ).start_unit("restart")
            note(f"✓ service started; joined the mesh of {admitted.member}")
            return
    seed = f" --join {admitted.seed}" if method.at else ""
    note(f"next: octaskly agent{seed}")


@contextlib.contextmanager
def _explain_interrupt(admitted: JoinGrant) -> Iterator[None]:
    """Print how far joining got if Ctrl-C interrupts the block.

    The block takes effect completely or not at all, but this is not known yet.
    """
    try:
        _print_step(f"{admitted.member} admitted this machine")
        yield
    except KeyboardInterrupt:
        note(f"interrupted; this machine may be in the mesh of {admitted.member} now")
        note("octaskly nodes    shows whether it is")
        note("octaskly leave    removes it")
        raise


def next_agent_config(
    context: CliContext, secret_file: Path | None
) -> tuple[AgentConfig, bool]:
    """Return the settings of the agent that will run here, and True for a service.

    Raises:
        ConfigError: the agent is the system service.
    """
    from octaskly.cli.service import unit_files  # noqa: PLC0415
    from octaskly.cli.service.install import service_config  # noqa: PLC0415
    from octaskly.cli.service.systemd import Scope  # noqa: PLC0415
    from octaskly.config.agent import load_agent_config  # noqa: PLC0415

    flags = context.agent_flags() | {"secret_file": secret_file}
    if any(flags.values()):
        return load_agent_config(flags, context.environ), False
    own = unit_files.read_installed_unit(
        unit_files.unit_path(Scope.USER, context.environ)
    )
    if own is not None:
        return service_config(Scope.USER, context.environ, own.flags or ()), True
    if unit_files.unit_path(Scope.SYSTEM, context.environ).exists():
        raise ConfigError(
            "the service of this machine is not running",
            hint="sudo systemctl start octaskly    then join",
        )
    return load_agent_config({}, context.environ), False


def _await_ready(socket: Path, before: Membership, admitted: JoinGrant) -> None:
    """Wait until the agent is listed as a ready member, and report it."""
    give_up_at = time.monotonic() + READY_S
    while time.monotonic() < give_up_at:
        node = _find_own_node(socket, before, admitted)
        if node is not None and node.state == "ready":
            kind = f", {node.arch}" if node.arch else ""
            note(
                f"✓ joined the mesh of {admitted.member} as {node.name} "
                f"({format_capacity(node)}{kind})"
            )
            if node.name != before.name:
                note(
                    f"  its name is not {before.name}, because another node has that "
                    "name; if that node was this machine before it was set up again:\n"
                    f"octaskly revoke {shlex.quote(before.name)}    frees the name; "
                    "all tokens become invalid"
                )
            return
        time.sleep(POLL_S)
    raise MeshError(
        f"this machine has the secret of {admitted.member}'s mesh, but is not "
        f"ready in it after {READY_S:.0f} s",
        hint="octaskly nodes    shows whether it is ready now; see also its log",
    )


def _find_own_node(
    socket: Path, before: Membership, admitted: JoinGrant
) -> NodeInfo | None:
    """Return this node's entry in its new mesh, None until there is one.

    The new mesh may be its previous one, after a rotation that this node missed.
    """
    from octaskly.trust.mesh_secret import parse_secret  # noqa: PLC0415

    wanted = parse_secret(admitted.secret_text).mesh_id
    try:
        with Session.at_socket(socket, retry_timeout_s=0.0) as client:
            if (
                client.send_and_decode(Call("GET", MEMBERSHIP), Membership).mesh
                != wanted
            ):
                return None
            if before.mesh == wanted and _node(client, admitted.member).state == "lost":
                return None
            return _node(client, before.node_id)
    except (Refused, Unreachable, ReplyLost):
        return None  # The agent is restarting.


def _node(client: Session, name: str) -> NodeInfo:
    return client.send_and_decode(Call("GET", resource_path(NODES, name)), NodeInfo)


def _span(seconds: int) -> str:
    if seconds % 3600 == 0:
        return f"{seconds // 3600} h"
    return f"{seconds // 60} min" if seconds % 60 == 0 else f"{seconds} s"
