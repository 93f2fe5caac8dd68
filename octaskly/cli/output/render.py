"""Formatting of tables, errors, notes and durations for the terminal.

`terminal` prints them, and makes text of others harmless.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import errno
import http
import math
import os
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence

import click

from octaskly.cli.output.terminal import (
    Styled,
    columns,
    cut,
    discard_output,
    has_colour,
    is_terminal,
    on_one_line,
    pad,
    print_json_body,
    print_line,
    print_text,
    width,
)
from octaskly.client import NoAnswer, Refused, SeveralAgents, Unreachable
from octaskly.client.flows.retry import CATCHING_UP_ERROR
from octaskly.config.defaults import EXIT_CONFIG
from octaskly.errors import (
    ConfigError,
    DispatcherUnknown,
    OctasklyError,
    PermissionDenied,
    TaskNotFound,
)
from octaskly.rest.mesh import NodeInfo

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_NOT_FOUND = 3
EXIT_NOT_ALLOWED = 4
EXIT_NO_DISPATCHER = 5
EXIT_TIMEOUT = 124
EXIT_OCTASKLY_FAILED = 125
EXIT_CANCELLED = 130  #: 128 + SIGINT

#: Errors of a write to stdout or stderr, if the error names no file.
WRITE_ERRORS = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF}
)

JSON_VERSION = 1
"""Version of the `--json` output: raised if a key is removed or changes meaning."""

_SURROGATE = re.compile(r"\\\\|\\udc([89a-f][0-9a-f])|[\udc80-\udcff]")
"""A byte that is not UTF-8, as Python has it in a text, or in the `repr` of a text.

There each other backslash is doubled.
"""

COMPLETED_LACKING = "completed ✗"
"""State in a list of a completed task without a declared output, as `run` marks it."""
STATE_COLOURS = {
    "completed": "green",
    COMPLETED_LACKING: "red",
    "failed": "red",
    "cancelled": "yellow",
    "running": "cyan",
    "ready": "green",
    "lost": "red",
    "paused": "yellow",
    "draining": "yellow",
    "short of disk": "red",
    "short of memory": "red",
}

PATHS_MAX = 5  #: paths on one line
LAST_COLUMN_MIN = 16  #: width of the last column for which others are left out

_BY_STATUS = {
    http.HTTPStatus.BAD_REQUEST: EXIT_USAGE,
    http.HTTPStatus.UNAUTHORIZED: EXIT_NOT_ALLOWED,
    http.HTTPStatus.FORBIDDEN: EXIT_NOT_ALLOWED,
    http.HTTPStatus.NOT_FOUND: EXIT_NOT_FOUND,
    http.HTTPStatus.SERVICE_UNAVAILABLE: EXIT_NO_DISPATCHER,
}
_API_HINTS = {
    400: "octaskly --help    and octaskly COMMAND --help list the options",
    401: "export OCTASKLY_TOKEN=...    with a token of this mesh",
    403: "octaskly token create --role client    on a node, or --role admin",
    404: "octaskly ls    lists the tasks",
    409: "octaskly cancel --force ID    also cancels a running task",
    503: "octaskly nodes    lists the nodes, once a dispatcher is elected",
}
_MESSAGES = {CATCHING_UP_ERROR: "Task not known here yet"}
"""Messages instead of the API's error text."""
_HINTS = {
    CATCHING_UP_ERROR: "octaskly nodes    shows which nodes are lost",
    "No dispatcher is elected": "octaskly doctor    finds out why nodes do not connect",
    "Too many requests": "octaskly config    on the dispatcher shows its rate limits",
    "Worker not found": "octaskly nodes    lists the nodes",
    "This node is not in a mesh yet": (
        "octaskly join CODE    from `octaskly invite` on a member\n"
        "octaskly agent --new-mesh    restarts it with a mesh of its own"
    ),
    "This node is no longer in the mesh": (
        "octaskly invite    on a member shows the code with which it joins again"
    ),
    "No node can run the task": "octaskly nodes    lists the nodes",
    "Token not found": "octaskly token list    lists the tokens that have a name",
    "Duplicate token name": "octaskly token list    shows the names that are taken",
    "Too many records": "octaskly token list    shows when each expires",
    "Too many open invites": "octaskly invite    once one of them has expired",
    "Members or tasks would be abandoned": "octaskly join --force CODE",
    "Tasks may be lost": "octaskly leave --force    leaves nevertheless",
    "Duplicate task ID": "octaskly show ID    shows the task that is there already",
    "Cannot cancel ended task": "octaskly retry ID    runs it again",
    "Task ID is ambiguous": "octaskly ls    shows full ids",
    "Task has not ended": "octaskly wait ID    waits for its end",
    "Cannot change the priority of this task": "octaskly ls    lists what waits",
    "Nothing to retry": "octaskly show ID    counts the members of an array",
    "Stdin was deleted": "octaskly submit --stdin FILE COMMAND    submits it again",
    "Mesh secret cannot be rotated now": "octaskly rotate --status    shows its "
    "progress",
    "Node cannot revoke itself": "octaskly leave    takes this node out of the mesh",
}
"""Hints by the API's error text, for a status with several causes."""
_FIELD_HINTS = {"requires.node": "octaskly nodes    lists the nodes"}
"""Hints by the field that the API refuses."""


def exit_code_of(error: OctasklyError) -> int:
    """Return the exit code that scripts may rely on for this error."""
    match error:
        case Refused():
            return _BY_STATUS.get(http.HTTPStatus(error.status), EXIT_FAILED)
        case TaskNotFound():
            return EXIT_NOT_FOUND
        case PermissionDenied():
            return EXIT_NOT_ALLOWED
        case Unreachable() | NoAnswer() | DispatcherUnknown():
            return EXIT_NO_DISPATCHER
        case ConfigError():
            return EXIT_CONFIG
        case _:
            return EXIT_FAILED


def report_error(error: OctasklyError, *, about: str | None = None) -> int:
    """Print an error with its cause and the command that helps; return its exit code.

    For a refusal, the API's `error` is the message and its `hint` is the cause.

    Args:
        error: The error.
        about: Object of the error, if the command has several objects.
    """
    hints = (error.hint or "").splitlines()
    if isinstance(error, SeveralAgents):
        hints = [f"octaskly --node {error.names[0]} ..."]
    reason = error.__cause__
    text = reason.message if isinstance(reason, OctasklyError) else str(reason or "")
    cause: str | None = text
    if isinstance(error, Refused):
        cause = error.hint
        hint = _HINTS.get(error.message) or _API_HINTS.get(error.status)
        if cause and error.field and error.status == http.HTTPStatus.BAD_REQUEST:
            # For a single task, print the name of the field instead of its path.
            place = error.field.removeprefix("$[0].").removeprefix("$.")
            cause = cause if place in cause else f"{place}: {cause}"
            hint = _FIELD_HINTS.get(place, hint)
        hints = [name_task(line, error.task) for line in (hint or "").splitlines()]
    message = _MESSAGES.get(error.message, error.message)
    what = f"{about}: {message}" if about else message
    print_error(what, cause=cause, hints=hints)
    return exit_code_of(error)


def report_os_error(error: OSError) -> int:
    """Print an error of the operating system; return the exit code.

    Output that follows is discarded. The error of a closed pipe is not printed, because
    its reader wants nothing more.
    """
    if error.errno != errno.EPIPE:
        _print_os_error(error)
    discard_output()
    return EXIT_FAILED


def _print_os_error(error: OSError) -> None:
    """Print the cause of an `OSError`: a file, the output, or something else."""
    why = error.strerror or str(error)
    if error.filename is not None:
        path = os.fsdecode(error.filename)
        hint = f"ls -ld {shlex.quote(path)}    does it exist, and is it yours?"
        print_error(f"cannot use {path}: {why}", hints=[hint])
    elif error.errno in WRITE_ERRORS:
        hint = "df .    is the output's disk full?"
        print_error(f"cannot write: {why}", hints=[hint])
    elif error.errno == errno.ENOENT:  # Only `getcwd` names no file.
        hint = 'cd "$PWD"    if it has been made again'
        print_error("the current folder has been deleted", hints=[hint])
    else:
        hint = "octaskly doctor    checks this machine"
        print_error(f"the operating system reports: {why}", hints=[hint])


def name_task(hint: str, ref: str | None) -> str:
    """Return a hint with a task's reference, if it is known, in place of `ID`."""
    return hint.replace(" ID ", f" {shlex.quote(ref)} ") if ref else hint


def for_each_task(refs: Iterable[str], action: Callable[[str], None]) -> int:
    """Apply an operation to each task; return the first exit code other than 0.

    A refusal for one task is printed, and the remaining tasks are still processed.
    """
    codes = []
    named = list(refs)
    for ref in named:
        try:
            action(ref)
        except Refused as error:
            is_about_node = error.status >= http.HTTPStatus.INTERNAL_SERVER_ERROR
            if is_about_node and error.message != CATCHING_UP_ERROR:
                raise  # It would fail for all tasks.
            codes.append(report_error(error, about=ref if len(named) > 1 else None))
    return codes[0] if codes else 0


def print_error(
    message: str, *, cause: str | None = None, hints: Iterable[str] = ()
) -> None:
    """Print on stderr the failure, its cause and the command that helps."""
    lines = [f" {_indent_continuation(message)}"]
    if cause:
        lines.append(f"  cause: {_indent_continuation(cause)}")
    lines += [f"  hint: {hint}" for hint in hints]
    text = _SURROGATE.sub(_byte_of, "\n".join(lines))
    _print_stderr(Styled("error:", fg="red", is_bold=True), text)


def _byte_of(found: re.Match[str]) -> str:
    r"""Return `\xe9` for a byte that is not UTF-8; backslashes stay doubled."""
    if found[0] == r"\\":
        return found[0]
    byte = found[1] or f"{ord(found[0]) - 0xDC00:02x}"
    return rf"\x{byte}"


def note(text: str) -> None:
    """Print a note on stderr, unless `--quiet` is set.

    Further lines are indented, so that none looks like another note.
    """
    if not is_quiet():
        _print_stderr(_indent_continuation(text))


def _print_stderr(*parts: str | Styled) -> None:
    """Print on stderr; ignore a closed stderr, so that the work goes on."""
    with contextlib.suppress(OSError):
        print_text(*parts, is_error=True)


def is_quiet() -> bool:
    """Return True if `--quiet` limits stderr to errors."""
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.find_root().params.get("quiet"))


def _indent_continuation(text: str) -> str:
    return text.replace("\n", "\n    ")


def print_json(body: bytes) -> None:
    """Print a JSON response with the version of its format, escaped on a terminal.

    An object gets `v` as its first key.
    """
    if body.startswith(b"{"):
        more = body[1:].lstrip()
        comma = b"" if more.startswith(b"}") else b","
        body = b'{"v":%d%s%s' % (JSON_VERSION, comma, more)
    print_json_body(body)


def print_table(
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    state_column: int,
    below: Mapping[int, str] = {},
    dropped_first: Sequence[str] = (),
) -> None:
    """Print rows under headings; the last column is cut to fit the terminal.

    Args:
        heads: The headings.
        rows: The cells of each row.
        state_column: Index of the column with a state, which gets its colour.
        below: Lines to print below rows on a terminal, by the index of the row.
        dropped_first: Headings of the columns that a narrow terminal does not show, the
            least important first.
    """
    cells = [list(map(on_one_line, row)) for row in (heads, *rows)]
    widths = [max(map(width, column)) for column in zip(*cells, strict=True)]
    shown, room = _fit_columns(heads, widths, dropped_first)
    for number, row in enumerate(cells):
        line = [pad(row[index], widths[index]) for index in shown]
        line[-1] = cut(row[-1], room)
        if not has_colour():
            print_line("  ".join(line).rstrip())
            _print_below(below.get(number - 1))
            continue
        styled = [Styled(cell, is_bold=not number) for cell in line]
        if number:
            at = shown.index(state_column)
            styled[at] = Styled(line[at], fg=STATE_COLOURS.get(row[state_column]))
        spaced = [part for cell in styled for part in (cell, "  ")]
        print_line(*spaced[:-1])
        _print_below(below.get(number - 1))


def _fit_columns(
    heads: Sequence[str], widths: Sequence[int], dropped_first: Sequence[str]
) -> tuple[list[int], int]:
    """Return the indices of the columns to show, and the width left for the last."""
    shown = list(range(len(heads)))
    terminal = columns() or 1 << 30
    wanted = min(widths[-1], LAST_COLUMN_MIN)

    def room() -> int:
        return terminal - sum(widths[index] + 2 for index in shown[:-1])

    for head in dropped_first:
        if room() < wanted and head in heads:
            shown.remove(heads.index(head))
    return shown, max(1, room())


def _print_below(text: str | None) -> None:
    if text is not None and is_terminal():
        line = cut(on_one_line(f"  └ {text}"), columns() or 1 << 30)
        print_line(Styled(line, fg="bright_black"))


def print_fields(fields: Sequence[tuple[str, object]]) -> None:
    """Print one `key: value` per line; omit None, and indent further lines."""
    shown = [(key, value) for key, value in fields if value is not None]
    margin = max((len(key) for key, _ in shown), default=0) + 1
    for key, value in shown:
        text = str(value).replace("\n", f"\n{'':<{margin}}  ")
        print_text(f"{key + ':':<{margin}}  {text}")


def duration(milliseconds: float | None) -> str:
    """Return a time span in at most seven characters."""
    if milliseconds is None:
        return "-"
    # Round before splitting, so that neither 1m60s nor 60.0 s can appear.
    whole_ms, tenths, seconds = (round(milliseconds / unit) for unit in (1, 100, 1000))
    minute, hour = 60, 3600
    if whole_ms < 1000:  # noqa: PLR2004
        return f"{whole_ms} ms"
    if tenths < 10 * minute:
        return f"{tenths / 10:.1f} s"
    if seconds < hour:
        return f"{seconds // minute}m{seconds % minute:02}s"
    return f"{seconds // hour}h{seconds % hour // minute:02}m"


def time_left(milliseconds: float) -> str:
    """Return a remaining time, in whole seconds and never none."""
    seconds = max(1, math.ceil(milliseconds / 1000))
    minute = 60
    text = f"{seconds} s" if seconds < minute else duration(seconds * 1000)
    return f"{text} left"


def count_of(count: int, noun: str) -> str:
    """Return a number with its noun: `1 file`, `2 files`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def clock_time(timestamp: str | None, now: dt.datetime) -> str:
    """Return a timestamp in the local time zone: a time of today, else with its day."""
    try:
        at = dt.datetime.fromisoformat(timestamp or "").astimezone()
    except ValueError:
        return timestamp or "-"
    today = now.astimezone()
    if at.date() == today.date():
        return f"{at:%H:%M:%S}"
    return f"{at:%b %d %H:%M}" if at.year == today.year else f"{at:%Y-%m-%d}"


def format_optional_duration(milliseconds: float | None) -> str | None:
    """Return a time span for `print_fields`, None if it is unknown."""
    return None if milliseconds is None else duration(milliseconds)


def size(count: int) -> str:
    """Return a number of bytes with a unit."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB"):
        if amount < 1024:  # noqa: PLR2004
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} GiB"


def data_size(count: int) -> str:
    """Return an amount of data in the decimal units of networks and files."""
    amount = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 999.5 or unit == "GB":  # noqa: PLR2004
            break
        amount /= 1000
    has_decimal = unit != "B" and amount < 9.95  # noqa: PLR2004
    return f"{amount:.1f} {unit}" if has_decimal else f"{amount:.0f} {unit}"


def listed(paths: Sequence[str]) -> str:
    """Return paths on one line, or their number if they are many."""
    return ", ".join(paths) if len(paths) <= PATHS_MAX else f"{len(paths)} outputs"


def format_capacity(node: NodeInfo) -> str:
    """Return the capacity of a node as text."""
    room = f"{count_of(node.slots, 'task')} at a time"
    return room + (f", {node.memory_mb / 1024:.1f} GiB" if node.memory_mb else "")


def age(timestamp: str | None, now: dt.datetime) -> str:
    """Return the age of an API timestamp as text: `now`, `12 s ago`."""
    if not timestamp:
        return "-"
    seconds = seconds_since(timestamp, now)
    if seconds is None:
        return timestamp
    just_now_s = 2
    return "now" if seconds < just_now_s else f"{duration(seconds * 1000)} ago"


def seconds_since(timestamp: str, now: dt.datetime) -> float | None:
    """Return the age of an API timestamp, None if it is not a timestamp."""
    try:
        return (now - dt.datetime.fromisoformat(timestamp)).total_seconds()
    except ValueError:
        return None
