"""Options that several commands have, and the types of their values."""

from __future__ import annotations

import click

from octaskly.config.units import SECONDS

JSON_OPTION = click.option(
    "--json", "as_json", is_flag=True, help="Print the API's answer as JSON."
)


class Duration(click.ParamType[int]):
    """Seconds, given as `90`, `90s`, `15m`, `24h` or `7d`."""

    name = "duration"

    def __init__(self, *, least_s: int = 1) -> None:
        self._least_s = least_s

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Return whole seconds."""
        if isinstance(value, int):
            return value
        seconds = SECONDS.parse(str(value))
        if seconds is None or seconds < self._least_s:
            self.fail(f"{value!r} is not {SECONDS.example}", param, ctx)
        return seconds
