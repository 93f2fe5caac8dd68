"""`octaskly doctor`: what is wrong here, and how to mend it. It changes nothing."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import msgspec

from octaskly.cli.choice import Choice
from octaskly.cli.render import EXIT_FAILED, has_colour, print_json, printable
from octaskly.errors import ConfigError

MARKS = {"ok": "✓", "warning": "!", "fault": "✗", "unchecked": "-"}
COLOURS = {"ok": "green", "warning": "yellow", "fault": "red", "unchecked": None}


@click.command(epilog="Example: octaskly doctor --join 192.168.1.20")
@click.option(
    "--interface",
    "interfaces",
    multiple=True,
    metavar="NAME",
    help="Look at this network interface, where no agent runs. Repeatable.",
)
@click.option(
    "--secret-file",
    type=click.Path(path_type=Path),
    help="The mesh secret, where no agent runs.",
)
@click.option(
    "--join",
    multiple=True,
    metavar="HOST[:PORT]",
    help="Also look at this node, which is not found by itself. Repeatable.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@click.pass_obj
def doctor(
    choice: Choice,
    interfaces: tuple[str, ...],
    secret_file: Path | None,
    join: tuple[str, ...],
    as_json: bool,  # noqa: FBT001
) -> int:
    """Find out what is wrong here; exit code 1 if something is.

    It asks the agent of this machine if one runs, looks around on the LAN for some
    seconds, and changes nothing.
    """
    # Imported here: mDNS and TLS cost more than a quick command takes.
    from octaskly.cli.examining import examine  # noqa: PLC0415
    from octaskly.cli.findings import Status, findings  # noqa: PLC0415

    if choice.url:
        raise ConfigError(
            "the doctor looks at this machine, not at --url", hint="octaskly doctor"
        )
    found = findings(examine(choice, interfaces, secret_file, join))
    is_healthy = all(each.status is not Status.BAD for each in found)
    if as_json:
        listed = [each._asdict() for each in found]
        shown = {"healthy": is_healthy, "findings": listed}
        print_json(msgspec.json.encode(shown))
        return 0 if is_healthy else EXIT_FAILED
    colour = has_colour(sys.stdout)
    for each in found:
        mark = MARKS[each.status]
        if colour:
            mark = click.style(mark, fg=COLOURS[each.status])
        click.echo(f"{mark} {each.check}: {printable(each.says)}")
        if each.hint:
            click.echo(f"    hint: {printable(each.hint)}")
    return 0 if is_healthy else EXIT_FAILED
