"""`octaskly rotate` and `revoke`: rotation of the mesh secret, removal of a node."""

from __future__ import annotations

import datetime as dt
import shlex
from collections.abc import Mapping
from http import HTTPStatus

import click
import msgspec

from octaskly.cli.commands.drain import NODE_ARGUMENT
from octaskly.cli.context import CliContext
from octaskly.cli.options import JSON_OPTION, YES_OPTION, require_yes
from octaskly.cli.output.render import age, note, print_fields, print_json
from octaskly.client import Refused, Session
from octaskly.client.flows import rest_calls
from octaskly.client.flows.rest_calls import NODES, Call, resource_path
from octaskly.core.model.ids import VISITOR_PREFIX
from octaskly.rest.access import RotationStatus
from octaskly.rest.mesh import NodeInfo

_ROTATION = "/api/v1/rotation"
_PHASES: Mapping[str, str] = {
    "spreading": "generation {newest} is accepted; {generation} stays in use until "
    "all nodes know it",
    "switched": "generation {newest} is in use; older ones are still accepted",
    "settled": "generation {newest} is in use; older ones are invalid",
}
_URGENT_TEXT = (
    "generation {newest} is accepted; {generation} becomes invalid within 5 s"
)


@click.command(epilog="Example: octaskly rotate --status")
@click.option(
    "--status", is_flag=True, help="Show the progress of a rotation; change nothing."
)
@click.option(
    "--now",
    is_flag=True,
    help="Make the old secret invalid within seconds, for everyone.",
)
@YES_OPTION
@JSON_OPTION
@click.pass_obj
def rotate(
    context: CliContext,
    status: bool,  # noqa: FBT001
    now: bool,  # noqa: FBT001
    yes: bool,  # noqa: FBT001
    as_json: bool,  # noqa: FBT001
) -> None:
    """Give the mesh a new secret, without downtime.

    Connected nodes get it at once. It takes effect when all nodes have it, or after a
    day. The old one is accepted for another week, for offline nodes. With --now
    there is no wait: offline nodes have to be invited again, and all tokens
    become invalid. --now also completes a rotation that waits for an absent node.
    """
    if now and status:
        raise click.UsageError("--status changes nothing; do not use it with --now")
    if now:
        require_yes(
            "all tokens become invalid, and offline nodes have to be invited again",
            is_given=yes,
            arguments="--now",
        )
    order = rest_calls.post_once(f"{_ROTATION}?now=true" if now else _ROTATION)
    with context.connect() as client:
        reply = client.send(Call("GET", _ROTATION) if status else order)
    if as_json:
        print_json(reply.body)
        return
    _show(client.decode(reply, RotationStatus), is_urgent=now)
    if not status:
        note("octaskly rotate --status    shows its progress")


@click.command(epilog="Example: octaskly revoke attic")
@NODE_ARGUMENT
@YES_OPTION
@JSON_OPTION
@click.pass_obj
def revoke(
    context: CliContext,
    name: str,
    yes: bool,  # noqa: FBT001
    as_json: bool,  # noqa: FBT001
) -> None:
    """Revoke a node's access: all others get a new secret at once.

    Its tasks run again elsewhere. Offline nodes have to be invited again, and all
    earlier tokens become invalid. The node keeps the data that it already has.
    Of a visitor, only its own visit ends, and the secret stays as it is.
    """
    with context.connect() as client:
        if _is_visitor(client, name):
            _end_visit(client, name, yes=yes, as_json=as_json)
            return
        require_yes(
            f"{name} loses access, all tokens become invalid, and offline "
            "nodes have to be invited again",
            is_given=yes,
            arguments=shlex.quote(name),
        )
        reply = client.send(rest_calls.post_once(resource_path(NODES, name, "revoke")))
    if as_json:
        print_json(reply.body)
        return
    note(f"{name} is revoked")
    _show(client.decode(reply, RotationStatus), is_urgent=True)


def _is_visitor(client: Session, name: str) -> bool:
    """Return True if a node is a visitor, which may have left."""
    try:
        node = client.send_and_decode(Call("GET", resource_path(NODES, name)), NodeInfo)
    except Refused as error:
        if error.status != HTTPStatus.NOT_FOUND:
            raise
        return name.startswith(VISITOR_PREFIX)
    return node.visitor


def _end_visit(client: Session, name: str, *, yes: bool, as_json: bool) -> None:
    require_yes(
        f"the visit of {name} ends at once, and what it runs runs again elsewhere",
        is_given=yes,
        arguments=shlex.quote(name),
    )
    reply = client.send(rest_calls.post_once(resource_path(NODES, name, "end-visit")))
    if as_json:
        print_json(reply.body)
    else:
        note(f"the visit of {name} has ended")


def _show(found: RotationStatus, *, is_urgent: bool) -> None:
    is_spreading = found.phase == "spreading"
    text = _URGENT_TEXT if is_urgent and is_spreading else _PHASES[found.phase]
    # The API sends wall-clock times, so compare them with the wall clock.
    now = dt.datetime.now(dt.UTC)
    print_fields(
        [
            ("secret", text.format(**msgspec.structs.asdict(found))),
            ("since", age(found.since, now) if found.since else None),
            ("next step", _due(found)),
            ("known to", ", ".join(found.confirmed) or None),
            ("waiting for", ", ".join(found.awaited) or None),
            ("revoked", ", ".join(found.revoked) or None),
        ]
    )


def _due(found: RotationStatus) -> str | None:
    if found.due is None:
        return None
    step = "in force" if found.phase == "spreading" else "alone"
    return f"generation {found.newest} is {step} at {found.due} at the latest"
