"""`octaskly requests`, `approve`: admission of machines by comparing three words."""

from __future__ import annotations

import sys

import click

from octaskly.cli.context import CliContext
from octaskly.cli.options import JSON_OPTION, UsageProblem
from octaskly.cli.output.render import note, print_json, print_table
from octaskly.cli.output.terminal import confirm, on_one_line
from octaskly.client import Session
from octaskly.client.flows import rest_calls
from octaskly.client.flows.rest_calls import Call, resource_path
from octaskly.errors import MeshError
from octaskly.rest.access import JoinRequest, JoinRequests

REQUESTS = "/api/v1/requests"
_JOIN_HINT = "octaskly join    on that machine first; it waits for approval"


@click.command(epilog="Example: octaskly requests")
@JSON_OPTION
@click.pass_obj
def requests(context: CliContext, as_json: bool) -> None:  # noqa: FBT001
    """List the machines that are waiting to join, and their words."""
    with context.connect() as client:
        reply = client.send(Call("GET", REQUESTS))
    if as_json:
        print_json(reply.body)
        return
    waiting = client.decode(reply, JoinRequests).requests
    if not waiting:
        note("no machine is waiting to join")
        return
    print_table(
        ("NAME", "WORDS", "ADDRESS", "NODE ID"),
        [(one.name, one.fingerprint, one.address, one.node_id) for one in waiting],
        state_column=0,
    )
    note(
        f"next: octaskly approve {waiting[0].name}    once you have compared the words"
    )


@click.command(epilog="Example: octaskly approve pi4")
@click.argument("name", metavar="NAME")
@click.option(
    "--words",
    metavar="WORDS",
    help="The words that the machine shows; skips the question.",
)
@click.pass_obj
def approve(context: CliContext, name: str, words: str | None) -> None:
    """Admit a machine that is waiting in `octaskly join`.

    Both show three words. Approve only if they are the same. If they
    differ, the connection may be intercepted.
    """
    with context.connect() as client:
        waiting = _find_requests(client, name)
        if words is None:
            request = _confirm_words(client, waiting, name)
        else:
            request = _match_words(waiting, name, words)
        _post_decision(client, request, "approve")
    note(f"✓ {request.name} is approved; `octaskly nodes` shows it soon")


def _post_decision(client: Session, request: JoinRequest, decision: str) -> None:
    path = resource_path(REQUESTS, request.node_id, decision)
    client.send(rest_calls.post_once(path, {"fingerprint": request.fingerprint}))


def _find_requests(client: Session, name: str) -> list[JoinRequest]:
    page = client.send_and_decode(Call("GET", REQUESTS), JoinRequests)
    waiting = [one for one in page.requests if name in (one.name, one.node_id)]
    if not waiting:
        others = ", ".join(one.name for one in page.requests) or "none"
        raise MeshError(
            f"no machine called {name!r} is waiting to join",
            hint=f"{_JOIN_HINT}\noctaskly requests    shows the machines that are "
            f"waiting: {others}",
        )
    return waiting


def _confirm_words(
    client: Session, waiting: list[JoinRequest], name: str
) -> JoinRequest:
    """Return the machine whose words the user confirms; the others are refused."""
    if not sys.stdin.isatty():
        words = " or ".join(request.fingerprint for request in waiting)
        raise UsageProblem(
            f"`octaskly approve {name}` asks for confirmation, but there is no"
            " terminal",
            cause=f"somebody must check that it shows the same words: {words}",
            hint=f"octaskly approve {name} --words WORDS    with the words that it "
            "shows",
        )
    for request in waiting:
        note(f"{request.name} at {request.address} wants to join.")
        note(f"\n    {request.fingerprint}\n")
        if confirm(f"Does {on_one_line(request.name)} show the same words?"):
            return request
        _post_decision(client, request, "refuse")
    raise MeshError(
        f"{name} was refused, because the words differ",
        hint="octaskly invite    is safe even with an attacker in the middle",
    )


def _match_words(waiting: list[JoinRequest], name: str, words: str) -> JoinRequest:
    for request in waiting:
        if request.fingerprint == words.lower():
            return request
    raise MeshError(
        f"{name} was not approved: it does not show the words {words}",
        hint="octaskly requests    shows its words; if that machine shows "
        "others, an attacker is in the middle",
    )
