"""Makes the generated parts of the reference: `make docs`.

Each part stands between two comments of its page, and is never edited by hand; the rest
of a page is prose. One small module makes each part, and is listed here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.docs import (
    commands_page,
    exits_page,
    frames_page,
    metrics_page,
    python_page,
    routes_page,
    settings_page,
    states_page,
)

PAGES = Path(__file__).parent.parent.parent / "docs" / "reference"
END = "<!-- The end of what is made. -->\n"


def parts() -> Iterator[tuple[str, str, Callable[[], str]]]:
    """Yield the page of each part, its source, and the function that makes it."""
    yield "configuration.md", "octaskly/config/settings.py", settings_page.table
    yield "metrics.md", "octaskly/metrics/table.py", metrics_page.tables
    for words, command in commands_page.commands():
        make = functools.partial(commands_page.part, words, command)
        yield "cli.md", f"octaskly {words}", make
    yield "rest-api.md", "the routes", routes_page.table
    yield "rest-api.md", "the OpenAPI document", routes_page.forms
    yield "exit-codes.md", "octaskly/cli/output/render.py", exits_page.table
    yield "wire-protocol.md", "octaskly/mesh/wire.py", frames_page.sizes
    yield "wire-protocol.md", "octaskly/core/protocol/messages.py", frames_page.messages
    yield "wire-protocol.md", "octaskly/core/model/tasks.py", frames_page.values
    yield "python.md", "octaskly/__init__.py", python_page.page
    rules = "octaskly/core/dispatcher/task_rules.py"
    yield "../explanation/log.md", rules, states_page.diagram


def made_anew(page: str, text: str) -> str:
    """Return the text of a page with its parts made anew."""
    for where, source, make in parts():
        if where != page:
            continue
        begin = f"<!-- Made from {source} by `make docs`. -->\n"
        before, found, rest = text.partition(begin)
        assert found, f"{page} lacks these lines, where the part goes:\n{begin}{END}"
        text = f"{before}{begin}\n{make()}\n{END}{rest.partition(END)[2]}"
    return text


if __name__ == "__main__":
    for page in sorted({where for where, _, _ in parts()}):
        path = PAGES / page
        path.write_text(made_anew(page, path.read_text()))
