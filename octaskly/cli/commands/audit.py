"""`octaskly audit`: the audit log."""

from __future__ import annotations

import math
import time
from typing import Final

import click

from octaskly.cli.context import CliContext
from octaskly.cli.options import JSON_OPTION, Duration
from octaskly.cli.output.render import print_json, print_table
from octaskly.cli.output.terminal import print_line
from octaskly.client import Session
from octaskly.client.flows.rest_calls import Call
from octaskly.rest.access import AuditLine, AuditPage

PAGE: Final = 1000
FOLLOW_S: Final = 1.0
HEADS: Final = ("AT", "WHO", "ROLE", "FROM", "NODE", "ANSWER", "WHAT")
LATEST_ENTRIES: Final = 100  #: entries shown without --since


@click.command(epilog="Example: octaskly audit --since 7d")
@click.option(
    "--since",
    type=Duration(),
    metavar="T",
    help="How far back to start: 1h, 7d, at most 90d.",
)
@click.option("--follow", "-f", is_flag=True, help="Keep printing new entries.")
@JSON_OPTION
@click.pass_obj
def audit(context: CliContext, since: int | None, follow: bool, as_json: bool) -> None:  # noqa: FBT001
    """Show who changed what, and what was refused. Needs the role admin.

    Prints the latest hundred entries, or with --since all that are newer. Similar
    requests within one minute are one entry, such as `3 times`.
    """
    began_s = time.monotonic()
    with context.connect() as client:
        cursor = _show(client, since, None, as_json=as_json, is_first=True)
        while follow:
            time.sleep(FOLLOW_S)
            # While there is no entry to go on after, the start stays where it was.
            waited_s = math.ceil(time.monotonic() - began_s)
            since_s = None if since is None else since + waited_s
            cursor = _show(client, since_s, cursor, as_json=as_json, is_first=False)


def _show(
    client: Session,
    since: int | None,
    cursor: str | None,
    *,
    as_json: bool,
    is_first: bool,
) -> str | None:
    """Print all pages from a position; return the position after the last entry."""
    while True:
        if cursor is not None:
            asked = {"limit": PAGE, "after": cursor}
        elif since is not None:
            asked = {"limit": PAGE, "since_s": since}
        else:
            asked = {"limit": LATEST_ENTRIES}
        reply = client.send(Call("GET", "/api/v1/audit", asked))
        page = client.decode(reply, AuditPage)
        if as_json and (is_first or page.entries):
            print_json(reply.body)
        elif not as_json:
            _print(page.entries, with_head=is_first)
        is_first = False
        cursor = page.next
        if page.returned < PAGE:
            return cursor


def _print(entries: list[AuditLine], *, with_head: bool) -> None:
    rows = [_row(entry) for entry in entries]
    if with_head:
        print_table(HEADS, rows, state_column=HEADS.index("ANSWER"))
        return
    for row in rows:
        print_line("  ".join(row))


def _row(entry: AuditLine) -> tuple[str, ...]:
    times = [f"{entry.count} times"] if entry.count > 1 else []
    targets = entry.targets or ([entry.target] if entry.target else [])
    what = [*times, entry.action, *targets, *entry.tasks]
    if entry.task_count > len(entry.tasks):
        what.append(f"and {entry.task_count - len(entry.tasks)} more")
    if entry.command is not None:
        what.append(f": {entry.command}")
    return (
        entry.at,
        entry.subject or "-",
        entry.role or "-",
        entry.source,
        entry.node,
        f"{'allowed' if entry.allowed else 'refused'} {entry.status}",
        " ".join(what),
    )
