"""Exit codes of commands by API error, for docs/reference/exit-codes.md."""

from __future__ import annotations

from octaskly.api.routes.openapi import phrase
from octaskly.cli.output.render import exit_code_of
from octaskly.client import Refused
from tests.docs.routes_page import operations


def table() -> str:
    """Return a row for each exit code that stands for API errors."""
    statuses = {
        int(status)
        for _, _, operation in operations()
        for status in operation["responses"]
        if status >= "400"
    }
    answers: dict[int, list[str]] = {}
    for status in sorted(statuses):
        code = exit_code_of(Refused("", status=status))
        answers.setdefault(code, []).append(f"{status} {phrase(status)}")
    rows = (f"| {code} | {', '.join(of)} |\n" for code, of in sorted(answers.items()))
    return "| Code | Answers |\n| --- | --- |\n" + "".join(rows)
