"""`octaskly token`: management of API tokens."""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import sys
from typing import Any

import click
import msgspec

from octaskly.cli import completion
from octaskly.cli.context import CliContext
from octaskly.cli.options import JSON_OPTION, Duration
from octaskly.cli.output.render import age, note, print_json, print_table
from octaskly.cli.output.terminal import print_line
from octaskly.client.flows import rest_calls
from octaskly.client.flows.rest_calls import Call, resource_path
from octaskly.errors import ConfigError
from octaskly.rest.access import IssuedToken, TokenLine, TokenList

ROLES = ("admin", "client", "viewer")
DAY_S = 86400


@click.group(epilog="Example: octaskly token create --role viewer")
def token() -> None:
    """Create, list and revoke tokens for the REST API."""


@token.command(
    epilog="Example: octaskly token create --name ci --role client --expires 30d"
)
@click.option(
    "--role", type=click.Choice(ROLES), required=True, help="What the token may do."
)
@click.option("--name", metavar="NAME", help="Name to list and revoke it by.")
@click.option(
    "--expires",
    type=Duration(),
    default=DAY_S,
    metavar="T",
    help="Lifetime, up to 90d (default: 24h).",
)
@click.option(
    "--subject",
    metavar="WHO",
    help="Owner of the tasks it submits (default: the token's name).",
)
@click.pass_obj
def create(
    context: CliContext, role: str, name: str | None, expires: int, subject: str | None
) -> None:
    """Print a new token, and nothing else. It is not stored.

    An admin may do everything; a client submits, and cancels its own tasks; a viewer
    reads. A token for more than a day gets a name if you give none.
    """
    wanted = {"role": role, "expires_s": expires, "subject": subject, "name": name}
    wanted = {field: value for field, value in wanted.items() if value is not None}
    with context.connect() as client:
        made = client.send_and_decode(
            rest_calls.post_once(rest_calls.TOKENS, wanted), IssuedToken
        )
    print_line(made.token)
    if made.name is not None and name is None:
        note(f"its name is {made.name}")


@token.command("list", epilog="Example: octaskly token list --json")
@JSON_OPTION
@click.pass_obj
def list_(context: CliContext, as_json: bool) -> None:  # noqa: FBT001
    """List the tokens that have a name and have not expired."""
    with context.connect() as client:
        reply = client.send(Call("GET", rest_calls.TOKENS))
    if as_json:
        print_json(reply.body)
        return
    found = client.decode(reply, TokenList)
    if not found.tokens:
        note("no named tokens (unnamed tokens are not listed)")
        return
    now = dt.datetime.now(dt.UTC)
    print_table(
        ("NAME", "STATE", "ROLE", "SUBJECT", "ISSUED", "BY", "EXPIRES", "ID"),
        [_row(shown, now) for shown in found.tokens],
        state_column=1,
    )


def _row(shown: TokenLine, now: dt.datetime) -> tuple[str, ...]:
    return (
        shown.name or "-",
        shown.state,
        shown.role or "-",
        shown.subject or "-",
        age(shown.issued_at, now),
        shown.issued_by or "-",
        (shown.expires_at or "-").partition("T")[0],
        shown.id,
    )


@token.command(epilog="Example: octaskly token revoke ci")
@click.argument("name", metavar="NAME", shell_complete=completion.complete_tokens)
@click.pass_obj
def revoke(context: CliContext, name: str) -> None:
    """Revoke a token by its name or id, on all nodes.

    With -, the token itself is read from stdin: arguments are visible to every user of
    the machine.
    """
    ref = _id_of(sys.stdin.read().strip()) if name == "-" else name
    with context.connect() as client:
        client.send(Call("DELETE", resource_path(rest_calls.TOKENS, ref)))
    note(f"revoked {ref}; every node refuses it")


def _id_of(token_text: str) -> str:
    """Return the id inside a token, by which the mesh identifies it."""
    claims: dict[str, Any] = {}
    _, _, rest = token_text.partition(".")
    body = rest.partition(".")[0]
    with contextlib.suppress(ValueError, msgspec.DecodeError):
        raw = base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))
        claims = msgspec.json.decode(raw, type=dict[str, Any])
    if "jti" not in claims:
        raise ConfigError(
            "stdin has no token",
            hint="octaskly token revoke NAME    or the token alone, on stdin",
        )
    return str(claims["jti"])
