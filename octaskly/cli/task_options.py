"""The task options of `submit` and `run`, and the task fields that they set."""

from __future__ import annotations

import base64
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, BinaryIO, Final, TypeVar

import click

from octaskly.cli import completion
from octaskly.cli.here import HERE_PREFIX, here_fields
from octaskly.cli.options import Duration
from octaskly.cli.sent_files import SentPaths
from octaskly.core.model.placeholders import PLACEHOLDER_PATTERN
from octaskly.files.output_patterns import is_in_git

STDIN_BYTES_MAX: Final = 1 << 20
LIMITS: Final = ("memory_mb", "cpu_seconds", "file_mb", "processes")
DIGITS_MAX: Final = 18  #: digits of a number that JSON and the log can store
STDIN_CONSUMED: Final = f"{__name__}.taken"
"""Key in the click context: True once `--stdin -` has read stdin."""

_C = TypeVar("_C", bound=Callable[..., Any])

DraftFields = dict[str, Any]
"""Fields of a `TaskDraft`."""


def _list(_: click.Context, __: click.Parameter, texts: Sequence[str]) -> list[str]:
    return list(texts)


def require_nonempty(
    _: click.Context, __: click.Parameter, text: str | None
) -> str | None:
    """Refuse an empty value, which usually comes from an unset variable."""
    if text == "":
        raise click.BadParameter("it is empty")
    return text


def _outputs(_: click.Context, __: click.Parameter, texts: Sequence[str]) -> list[str]:
    """Refuse what a node would refuse, before files are sent to it."""
    for text in texts:
        parts = PLACEHOLDER_PATTERN.sub("x", text).split("/")
        if text.startswith("/"):
            why = "name a path in the folder where the command runs"
        elif ".." in parts:
            why = "it is outside the folder where the command runs"
        elif is_in_git(text):
            why = ".git is never fetched"
        elif not any(part not in ("", ".") for part in parts):
            why = "name files or folders, or '*'"
        else:
            continue
        raise click.UsageError(f"--out {text}: {why}")
    return list(texts)


def _folder(
    context: click.Context, option: click.Parameter, text: str | None
) -> str | None:
    """Refuse what a node would refuse, before files are sent to it."""
    require_nonempty(context, option, text)
    if text and not text.startswith("/") and ".." in text.split("/"):
        raise click.UsageError(
            f"--cwd {text}: name an absolute path, or one below the worker directory"
        )
    return text


def _pairs(texts: Sequence[str], flag: str) -> dict[str, str]:
    pairs = {}
    for text in texts:
        name, _, value = text.partition("=")
        if not name:
            raise click.UsageError(f"{flag} {text}: give NAME or NAME=VALUE")
        pairs[name] = value
    return pairs


def _labels(_: click.Context, __: click.Parameter, texts: Sequence[str]) -> DraftFields:
    return _pairs(texts, "--label")


def _required_labels(
    _: click.Context, __: click.Parameter, texts: Sequence[str]
) -> DraftFields:
    for text in texts:
        if "=" not in text:
            raise click.UsageError(f"--require {text}: give NAME=VALUE")
    return _pairs(texts, "--require")


def _requires(values: dict[str, Any]) -> DraftFields:
    """Return the field `requires` of a draft from its flags."""
    requires = {
        "cpus": values.pop("cpus"),
        "memory_mb": values.pop("memory"),
        "gpus": values.pop("gpus"),
        "node": values.pop("wanted_node"),
        "labels": values.pop("require"),
    }
    return {field: value for field, value in requires.items() if value}


def _env(_: click.Context, __: click.Parameter, texts: Sequence[str]) -> DraftFields:
    env = _pairs(texts, "--env")
    for name in texts:
        if "=" not in name:
            if name not in os.environ:
                raise click.UsageError(f"--env {name}: there is no such variable here")
            env[name] = os.environ[name]
    return env


def _limits(
    _: click.Context, __: click.Parameter, texts: Sequence[str]
) -> dict[str, int]:
    limits = {}
    for text in ",".join(texts).split(",") if texts else ():
        name, _equals, most = text.partition("=")
        if name not in LIMITS:
            raise click.UsageError(f"--limit {text}: use one of {', '.join(LIMITS)}")
        if not _is_number(most):
            raise click.UsageError(f"--limit {text}: give a whole number")
        limits[name] = int(most)
    return limits


def _retry_causes(
    _: click.Context, __: click.Parameter, texts: Sequence[str]
) -> list[int | str] | None:
    return [int(t) if _is_number(t) else t for t in texts] if texts else None


def _visitors(
    _: click.Context, __: click.Parameter, text: str | None
) -> bool | str | None:
    return {"yes": True, "no": False}.get(text or "", text)


def _is_number(text: str) -> bool:
    """Return True if the text is a whole number that Python and a node can parse."""
    return text.isdecimal() and len(text) <= DIGITS_MAX


def _stdin(
    context: click.Context, _: click.Parameter, file: BinaryIO | None
) -> str | None:
    if file is None:
        return None
    data = file.read(STDIN_BYTES_MAX + 1)
    context.meta[STDIN_CONSUMED] = file.name == "<stdin>"
    if not context.meta[STDIN_CONSUMED]:
        file.close()
    if len(data) > STDIN_BYTES_MAX:
        raise click.UsageError(
            f"--stdin {file.name} has more than {STDIN_BYTES_MAX} bytes;"
            " send the file along with --in"
        )
    return base64.b64encode(data).decode()


REQUIREMENT_OPTIONS: Final = (
    click.option(
        "--priority",
        type=click.IntRange(-50, 50),
        default=0,
        metavar="N",
        help="Priority from -50 to 50; higher runs first (default: 0).",
    ),
    click.option(
        "--cpus",
        type=click.IntRange(1),
        metavar="N",
        help="CPUs to reserve (default: 1).",
    ),
    click.option(
        "--memory",
        type=click.IntRange(1),
        metavar="MB",
        help="Memory to reserve.",
    ),
    click.option(
        "--gpus", type=click.IntRange(1), metavar="N", help="GPUs to reserve."
    ),
    click.option(
        "--on",
        "wanted_node",
        metavar="NODE",
        callback=require_nonempty,
        shell_complete=completion.complete_nodes,
        help="Run on this node only.",
    ),
    click.option(
        "--require",
        multiple=True,
        metavar="NAME=VALUE",
        callback=_required_labels,
        shell_complete=completion.complete_labels,
        help="Run only on nodes with this label. Repeatable.",
    ),
    click.option(
        "--visitors",
        is_flag=False,
        flag_value="yes",
        type=click.Choice(["yes", "with-env", "no"]),
        callback=_visitors,
        help="Let visitors run it, too; with-env: and see its variables and secrets.",
    ),
    click.option(
        "--visitors-min",
        type=Duration(),
        metavar="T",
        help="Use only visitors that stay at least so long (default: the time limit).",
    ),
    click.option(
        "--fail-fast",
        is_flag=True,
        help="Refuse the task if no connected node could ever run it.",
    ),
)
TASK_OPTIONS: Final = (
    *REQUIREMENT_OPTIONS,
    click.option(
        "--timeout",
        type=Duration(),
        metavar="S",
        help="End it after this time, such as 90, 15m or 2h (default: no limit).",
    ),
    click.option(
        "--in",
        "sent_paths",
        multiple=True,
        metavar="PATH[=DEST]",
        shell_complete=completion.complete_files,
        help="Send this file or folder along, as DEST; implies --scratch. Repeatable.",
    ),
    click.option(
        "--in-all",
        "sends_ignored",
        is_flag=True,
        help="From folders, also send .git and the files that .gitignore excludes.",
    ),
    click.option(
        "--from",
        "outputs_of",
        multiple=True,
        metavar="ID",
        callback=_list,
        shell_complete=completion.complete_tasks,
        help="Run after this task, with its outputs in the folder; implies --scratch."
        " Repeatable.",
    ),
    click.option(
        "--needs",
        multiple=True,
        metavar="PATH",
        callback=_list,
        help="Run only where the worker directory has this file. Repeatable.",
    ),
    click.option(
        "--out",
        "outputs",
        multiple=True,
        metavar="PATH",
        callback=_outputs,
        help="Output to keep and fetch: a file, folder or glob. Repeatable.",
    ),
    click.option(
        "--name",
        metavar="TEXT",
        callback=require_nonempty,
        help="Display name (need not be unique).",
    ),
    click.option(
        "--label",
        "labels",
        multiple=True,
        metavar="NAME=VALUE",
        callback=_labels,
        help="Label to search by. Repeatable.",
    ),
    click.option(
        "--env",
        multiple=True,
        metavar="NAME=VALUE",
        callback=_env,
        help="Environment variable; NAME alone copies yours. Repeatable.",
    ),
    click.option(
        "--cwd",
        metavar="DIR",
        callback=_folder,
        help="Folder to run in: absolute, or relative to the worker directory.",
    ),
    click.option(
        "--here",
        "is_here",
        is_flag=True,
        help="Run in the current folder, on any node that shares it. A marker file,"
        f" {HERE_PREFIX}*, is kept there until the end; after submit and array, a later"
        " --here deletes it after a week.",
    ),
    click.option(
        "--read-only",
        "is_read_only",
        is_flag=True,
        help="With --here: also use nodes that can read the folder but not write it.",
    ),
    click.option(
        "--scratch",
        "workdir",
        is_flag=True,
        flag_value="scratch",
        default=None,
        help="Run in a scratch folder: new, with links to the inputs, deleted "
        "at the end.",
    ),
    click.option(
        "--stdin",
        "stdin_base64",
        type=click.File("rb"),
        callback=_stdin,
        help="File to use as the command's stdin, up to 1 MiB; - is stdin.",
    ),
    click.option(
        "--notify-url",
        metavar="URL",
        callback=require_nonempty,
        help="Notify this URL with a signed POST when the task has ended.",
    ),
    click.option(
        "--grace",
        type=Duration(least_s=0),
        metavar="S",
        help="Time from SIGTERM to SIGKILL (default: the node's setting, 10s).",
    ),
    click.option(
        "--limit",
        "limits",
        multiple=True,
        metavar="NAME=N",
        callback=_limits,
        help=f"Resource limit: {', '.join(LIMITS)}. Repeatable, or comma-separated.",
    ),
    click.option(
        "--retries",
        type=click.IntRange(0, 100),
        metavar="N",
        help="Retry up to N times after a failure.",
    ),
    click.option(
        "--retry-on",
        multiple=True,
        metavar="WHAT",
        callback=_retry_causes,
        help="When to retry: failure, lost, or an exit code. Repeatable.",
    ),
    click.option(
        "--after",
        multiple=True,
        metavar="ID",
        callback=_list,
        shell_complete=completion.complete_tasks,
        help="Run after this task has ended. Repeatable.",
    ),
    click.option(
        "--after-on",
        "on",
        type=click.Choice(["success", "failure", "any"]),
        help="Required outcome of the parent tasks (default: success).",
    ),
)
TASK_SECTIONS: Final[Mapping[str, Sequence[str]]] = {
    "Most used options": (
        *("--in", "--out", "--on", "--cpus", "--timeout", "--json", "--help"),
    ),
    "Files and folder": (
        *("--in-all", "--from", "--needs", "--here", "--read-only", "--cwd"),
        *("--scratch", "--stdin", "--env"),
    ),
    "Node": (
        *("--require", "--memory", "--gpus", "--visitors", "--visitors-min"),
        "--fail-fast",
    ),
    "Order and repetition": (
        *("--priority", "--after", "--after-on", "--retries", "--retry-on"),
    ),
    "Limits": ("--limit", "--grace"),
    "Description and notification": ("--name", "--label", "--notify-url"),
    "Submission": ("--idempotency-key", "--durability"),
}
"""The sections of the help of commands with these options."""
DRAFT_FIELDS: Final = (
    *("timeout", "outputs_of", "needs", "outputs"),
    *("name", "labels", "env", "cwd", "workdir", "stdin_base64", "grace", "limits"),
    "notify_url",
    *("retries", "retry_on", "after", "on"),
    *("priority", "fail_fast", "visitors", "visitors_min"),
)


def task_options(*, is_end_awaited: bool) -> Callable[[_C], _C]:
    """Add the task options; the command gets their values as `fields` and `sent`.

    Args:
        is_end_awaited: The command returns at the end of its tasks, not before.
    """

    def add_options(command: _C) -> _C:
        @functools.wraps(command)
        def gathered(*args: Any, **values: Any) -> Any:
            fields = {field: values.pop(field) for field in DRAFT_FIELDS}
            fields["requires"] = _requires(values)
            sent = SentPaths(values.pop("sent_paths"), values.pop("sends_ignored"))
            is_here, is_read_only = values.pop("is_here"), values.pop("is_read_only")
            _check_options(fields, sent, is_here=is_here)
            if sent.paths or fields["outputs_of"]:
                fields["workdir"] = "scratch"
            if not is_here:
                if is_read_only:
                    raise click.UsageError("--read-only needs --here")
                return command(*args, **values, fields=fields, sent=sent)
            with here_fields(
                values["idempotency_key"],
                is_read_only=is_read_only,
                is_kept=not is_end_awaited,
            ) as here:
                return command(*args, **values, fields=fields | here, sent=sent)

        for flag in reversed(TASK_OPTIONS):
            gathered = flag(gathered)
        return gathered  # type: ignore[return-value]

    return add_options


def _check_options(fields: DraftFields, sent: SentPaths, *, is_here: bool) -> None:
    """Raise UsageError for options that contradict or need each other."""
    parents = fields["after"] or fields["outputs_of"]
    if fields["on"] in ("failure", "any") and not parents:
        raise click.UsageError(f"--after-on {fields['on']} needs --after")
    codes = [cause for cause in fields["retry_on"] or () if isinstance(cause, int)]
    if codes and not fields["retries"]:
        raise click.UsageError(f"--retry-on {codes[0]} needs --retries")
    if fields["visitors_min"] and not fields["visitors"]:
        raise click.UsageError("--visitors-min needs --visitors")
    if sent.includes_ignored and not sent.paths:
        raise click.UsageError("--in-all needs a folder: --in DIR")
    if not is_here:
        return
    if fields["outputs"]:
        raise click.UsageError(
            "--out cannot be used with --here: outputs are already in this folder"
        )
    others = (("--in", sent.paths), ("--from", fields["outputs_of"]))
    own = (("--cwd", fields["cwd"]), ("--scratch", fields["workdir"]))
    for flag, value in (*others, *own):
        if value:
            raise click.UsageError(
                f"{flag} cannot be used with --here, which runs tasks in this folder"
            )


def strings_in(fields: DraftFields) -> list[str]:
    """Return all strings in the fields, including those in lists and mappings."""
    values: list[object] = []
    for value in fields.values():
        if isinstance(value, dict):
            values += [*value, *value.values()]
        elif isinstance(value, list):
            values += value
        else:
            values.append(value)
    return [value for value in values if isinstance(value, str)]
