"""The code blocks of all pages, and the comments that control their tests.

A reader who copies a block must get the result that the page promises. So each block is
run, or checked otherwise. Comments, which no reader sees, hold the instructions:

- `not run: WHY`: the commands of the next block are only parsed, and must exist.
- `given: COMMANDS`: run before the next block; prepares the page's initial state.
- `check: COMMANDS`: run where the comment stands; they fail if the block before did not
  do what the page says.
- `until Ctrl-C`: the commands of the next block run for ever, and are interrupted.
- `on: NAME`: the next block is typed at this machine, not at the first one.
- `then: Ctrl-C NAME`: ends the agent of that name, as the page instructs.
- `shown: WHAT`: the next block is no command, but a sample of WHAT.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PAGES = sorted(
    path
    for folder in (".", "docs", "systemd", "benchmarks")
    for path in (ROOT.glob("*.md") if folder == "." else (ROOT / folder).rglob("*.md"))
)
SHELLS = frozenset({"console", "sh"})
RUN = SHELLS | {"python"}
CHECKED_MAP = """\
import octaskly


def check(task):
    assert task.status == "completed", f"item {task.item}: exit code {task.exit_code}"
    return task


async def check_all(tasks):
    async for task in tasks:
        yield check(task)


map_, async_map = octaskly.Client.map, octaskly.AsyncClient.map
octaskly.Client.map = lambda *args, **named: map(check, map_(*args, **named))
octaskly.AsyncClient.map = lambda *args, **named: check_all(async_map(*args, **named))
"""
"""Fails an example in which an item of `map` fails: nobody would see it."""

_STEP = re.compile(
    r"^ *<!-- (?P<what>not run|given|check|on|then|until Ctrl-C|shown)"
    r"(?:: (?P<how>.*?))? -->"
    r"|^(?P<indent> *)```(?P<language>\S*)[^\n]*\n(?P<text>.*?)^ *```",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True, kw_only=True)
class Block:
    """One fenced block, or one comment that stands alone."""

    line: int
    language: str = ""
    text: str = ""
    given: tuple[str, ...] = ()  #: commands that run before
    not_run: str | None = None  #: the reason why it does not run
    is_endless: bool = False
    host: str | None = None  #: the machine, if not the first one
    shown: str | None = None  #: the kind of its content
    stopped: str | None = None  #: an agent that is ended; then there is no text


def blocks_of(page: str) -> Iterator[Block]:
    """Yield the blocks of a page, in order."""
    given: list[str] = []
    marks: dict[str, str] = {}
    for step in _STEP.finditer(page):
        line = page.count("\n", 0, step.start()) + 1
        match step["what"]:
            case None:
                yield Block(
                    line=line,
                    language=step["language"],
                    text=re.sub(rf"(?m)^{step['indent']}", "", step["text"]),
                    given=tuple(given),
                    not_run=marks.get("not run"),
                    is_endless="until Ctrl-C" in marks,
                    host=marks.get("on"),
                    shown=marks.get("shown"),
                )
                given, marks = [], {}
            case "then":
                name = step["how"].removeprefix("Ctrl-C ")
                yield Block(line=line, stopped=name, given=tuple(given))
                given = []
            case "given":
                given.append(step["how"])
            case "check":
                # A shell of its own, because `a && b` is no error where `a` fails.
                yield Block(line=line, given=(*given, f"({step['how']})"))
                given = []
            case what:
                marks[what] = step["how"] or ""


END = "END-OF-BLOCK"


@dataclass
class Command:
    """One command of a block, and its output lines."""

    text: str
    shown: list[str]


def commands_of(block: Block) -> list[Command]:
    """Return the commands of a block for a shell.

    In a `console` block `$ ` starts a command. A backslash, an open quote or an open
    here-document continues it, and the lines after it are output. Any other block is
    one command.
    """
    if block.language == "python":
        return [Command(f"python3 - <<'{END}'\n{CHECKED_MAP}{block.text}{END}", [])]
    if block.language == "sh":
        return [Command(block.text.rstrip("\n"), [])]
    commands: list[Command] = []
    is_open = False
    for line in block.text.splitlines():
        if is_open:
            commands[-1].text += "\n" + line
        elif line.startswith("$ "):
            commands.append(Command(line.removeprefix("$ "), []))
        else:
            commands[-1].shown.append(line)
            continue
        is_open = line.endswith("\\")
    return commands
