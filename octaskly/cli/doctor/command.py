"""`octaskly doctor`: read-only diagnosis of this machine and its mesh."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from octaskly.cli.context import CliContext
from octaskly.cli.output.render import EXIT_FAILED, print_json
from octaskly.cli.output.terminal import Styled, print_line
from octaskly.errors import ConfigError

if TYPE_CHECKING:
    from octaskly.cli.doctor.diagnosis import Finding

MARKS = {"ok": "✓", "warning": "!", "fault": "✗", "unchecked": "-"}
COLOURS = {"ok": "green", "warning": "yellow", "fault": "red", "unchecked": None}


@click.command(epilog="Example: octaskly doctor --join 192.168.1.20")
@click.option(
    "--interface",
    "interfaces",
    multiple=True,
    metavar="NAME",
    help="Check this network interface, if no agent runs. Repeatable.",
)
@click.option(
    "--secret-file",
    type=click.Path(path_type=Path),
    help="The mesh secret, if no agent runs.",
)
@click.option(
    "--join",
    multiple=True,
    metavar="HOST[:PORT]",
    help="Also check this node, which is not discovered. Repeatable.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@click.pass_obj
def doctor(
    context: CliContext,
    interfaces: tuple[str, ...],
    secret_file: Path | None,
    join: tuple[str, ...],
    as_json: bool,  # noqa: FBT001
) -> int:
    """Find out what is wrong with this machine, its agent or LAN.

    Takes some seconds and changes nothing. The exit code is 1 if something is wrong.
    """
    # Imported here, because importing mDNS and TLS would slow other commands.
    from octaskly.cli.doctor.diagnosis import FindingStatus, make_findings  # noqa: PLC0415
    from octaskly.cli.doctor.probes import collect_symptoms  # noqa: PLC0415

    if context.url:
        raise ConfigError(
            "`octaskly doctor` checks this machine, so --url is not allowed",
            hint="octaskly doctor",
        )
    found = make_findings(collect_symptoms(context, interfaces, secret_file, join))
    is_healthy = all(each.status is not FindingStatus.FAULT for each in found)
    if as_json:
        listed = [each._asdict() for each in found]
        shown = {"healthy": is_healthy, "findings": listed}
        print_json(msgspec.json.encode(shown))
        return 0 if is_healthy else EXIT_FAILED
    for line in format_findings(found):
        print_line(*line)
    return 0 if is_healthy else EXIT_FAILED


def format_findings(found: Iterable[Finding]) -> Iterator[tuple[str | Styled, ...]]:
    """Yield the parts of each line about the findings."""
    for each in found:
        mark = Styled(MARKS[each.status], fg=COLOURS[each.status])
        yield mark, f" {each.check}: {each.says}"
        if each.hint:
            yield (f"    hint: {each.hint}",)
