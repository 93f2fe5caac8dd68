"""Validation and JSON of task options.

Only this module knows the JSON of `core.model.task_options`.
"""

from __future__ import annotations

import base64
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from operator import attrgetter
from typing import Annotated, Any, Final, Literal, TypeVar
from urllib.parse import SplitResult, urlsplit

import msgspec
from msgspec.structs import replace

from octaskly.api.schemas import files as given
from octaskly.api.schemas.base import InvalidField, RequestBody, openapi_schema
from octaskly.config.units import is_host
from octaskly.core.model.ids import TaskId, task_name
from octaskly.core.model.task_options import (
    OUTPUTS_OF_MAX,
    After,
    BlobRef,
    Pairs,
    Requirements,
    Retry,
    TaskLimits,
    TaskOptions,
    VisitorRule,
    is_stdin_freed,
)
from octaskly.core.model.tasks import PRIORITY_MAX, Priority
from octaskly.rest import tasks as rest

NAME_CHARS_MAX: Final = 128
CALL_CHARS_MAX: Final = 120
LABELS_MAX: Final = 32
LABEL_CHARS_MAX: Final = 256
ENV_MAX: Final = 1000
ENV_BYTES_MAX: Final = 1 << 20  #: of all names and values together
ENV_VALUE_BYTES_MAX: Final = 131_000  #: the kernel allows 128 KiB with the name
CWD_BYTES_MAX: Final = 4096
STDIN_BYTES_MAX: Final = 1 << 20
GRACE_S_MAX: Final = 3600
VISITORS_MIN_MAX: Final = 7 * 86_400
MEMORY_MB_MAX: Final = 1 << 30
COUNT_MAX: Final = 1 << 20
RETRIES_MAX: Final = 100
RETRY_CODES_MAX: Final = 64
URL_CHARS_MAX: Final = 2048
PARENTS_MAX: Final = 1000
RESERVED_PREFIX: Final = "OCTASKLY_"  #: prefix of the variables that the agent sets

_REF = re.compile(r"[A-Za-z0-9._-]{1,64}(~[0-9]{1,3})?")
_LABEL = re.compile(r"[A-Za-z0-9._/-]{1,64}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}")
_URL = re.compile(r"https?://[\x21-\x7e]+")
_JOINER = re.compile("(?<=[^\u200c\u200d])[\u200c\u200d](?=[^\u200c\u200d])")
"""Emoji and some scripts join adjacent characters; a joiner alone shows nothing."""
_EMOJI = re.compile(
    # The flags of some regions, which end in invisible tags, such as that of Wales.
    "\U0001f3f4[\U000e0030-\U000e0039\U000e0061-\U000e007a]{3,6}\U000e007f"
    "|[\U0001f300-\U0001faff]"  # Python does not know those of later years.
)
_SIMPLE = re.compile(r"[A-Za-z0-9._-]{1,64}")

T = TypeVar("T")


Count = Annotated[int, msgspec.Meta(ge=1, le=COUNT_MAX)]
Megabytes = Annotated[int, msgspec.Meta(ge=1, le=MEMORY_MB_MAX)]


ExitCode = Annotated[int, msgspec.Meta(ge=1, le=255)]
Cause = Literal["failure", "lost"]
Word = Annotated[str, openapi_schema(pattern=f"^{_SIMPLE.pattern}$")]
TaskRef = Annotated[str, openapi_schema(pattern=f"^{_REF.pattern}$")]
Labels = Annotated[
    dict[str, Annotated[str, openapi_schema(maxLength=LABEL_CHARS_MAX)]],
    openapi_schema(
        maxProperties=LABELS_MAX, propertyNames={"pattern": f"^{_LABEL.pattern}$"}
    ),
]
_NAMES = {"pattern": f"^(?!{RESERVED_PREFIX}){_VARIABLE.pattern}$"}
Env = Annotated[
    dict[str, Annotated[str, openapi_schema(maxLength=ENV_VALUE_BYTES_MAX)]],
    openapi_schema(maxProperties=ENV_MAX, propertyNames=_NAMES),
]
RetryOn = Annotated[
    tuple[ExitCode | Cause, ...], msgspec.Meta(max_length=RETRY_CODES_MAX)
]


class RequiresIn(RequestBody, gc=False):
    """Requirements of a task for its node."""

    labels: Labels = msgspec.field(default_factory=dict)
    node: Word | None = None
    os: Word | None = None
    arch: Word | None = None
    cpus: Count | None = None
    memory_mb: Megabytes | None = None
    gpus: Count | None = None
    python: Word | None = None


class LimitsIn(RequestBody, gc=False):
    """Resource limits of a task."""

    memory_mb: Megabytes | None = None
    cpu_seconds: Annotated[int, msgspec.Meta(ge=1, le=1 << 30)] | None = None
    file_mb: Megabytes | None = None
    processes: Count | None = None


class OptionsIn(RequestBody, gc=False):
    """The optional fields of a task."""

    name: (
        Annotated[str, openapi_schema(minLength=1, maxLength=NAME_CHARS_MAX)] | None
    ) = None
    labels: Labels = msgspec.field(default_factory=dict)
    env: Env = msgspec.field(default_factory=dict)
    cwd: Annotated[str, openapi_schema(minLength=1, maxLength=CWD_BYTES_MAX)] | None = (
        None
    )
    stdin: Annotated[str, openapi_schema(maxLength=STDIN_BYTES_MAX)] = ""
    stdin_base64: Annotated[str, openapi_schema(contentEncoding="base64")] = ""
    workdir: Literal["scratch"] | None = None
    grace: Annotated[int, msgspec.Meta(ge=0, le=GRACE_S_MAX)] | None = None
    requires: RequiresIn | None = None
    limits: LimitsIn | None = None
    priority: Priority = 0
    retries: Annotated[int, msgspec.Meta(ge=0, le=RETRIES_MAX)] = 0
    retry_on: RetryOn | None = None
    notify_url: Annotated[str, openapi_schema(pattern=f"^{_URL.pattern}$")] | None = (
        None
    )
    after: Annotated[tuple[TaskRef, ...], msgspec.Meta(max_length=PARENTS_MAX)] = ()
    on: Literal["success", "failure", "any"] = "success"
    tree: given.TreeIn | None = None
    stdin_file: given.BlobIn | None = None
    same_folder: given.SameFolderIn | None = None
    outputs_of: Annotated[
        tuple[TaskRef, ...], msgspec.Meta(max_length=OUTPUTS_OF_MAX)
    ] = ()
    call: (
        Annotated[str, openapi_schema(minLength=1, maxLength=CALL_CHARS_MAX)] | None
    ) = None
    visitors: bool | Literal["with-env"] | None = None
    visitors_min: Annotated[int, msgspec.Meta(ge=1, le=VISITORS_MIN_MAX)] | None = None


NO_OPTIONS: Final = TaskOptions()
_option_fields = attrgetter(
    *(f for f in OptionsIn.__struct_fields__ if f != "priority")
)
_DEFAULT_FIELDS: Final = _option_fields(OptionsIn())

FIELD_HINTS: Final = {
    "name": f"1 to {NAME_CHARS_MAX} printable characters",
    "call": f"1 to {CALL_CHARS_MAX} printable characters",
    "labels": f"at most {LABELS_MAX} pairs; names of 1 to 64 characters of A-Z a-z 0-9"
    f" . _ / -, values of at most {LABEL_CHARS_MAX} printable characters",
    "env": f"at most {ENV_MAX} variables, {ENV_BYTES_MAX} bytes in all",
    "cwd": "a folder: absolute, or below the worker directory",
    "stdin": f"a string of at most {STDIN_BYTES_MAX} bytes",
    "stdin_base64": f"at most {STDIN_BYTES_MAX} bytes in base64, and no `stdin`",
    "workdir": "scratch, or omitted",
    "grace": f"an integer from 0 to {GRACE_S_MAX} (seconds)",
    "priority": f"an integer from -{PRIORITY_MAX} to {PRIORITY_MAX}",
    "node": "name or id of a node",
    "os": "a word, for example linux",
    "arch": "a word, for example x86_64",
    "cpus": f"an integer from 1 to {COUNT_MAX}",
    "gpus": f"an integer from 1 to {COUNT_MAX}",
    "python": "a minor version, for example 3.13",
    "processes": f"an integer from 1 to {COUNT_MAX}",
    "memory_mb": f"an integer from 1 to {MEMORY_MB_MAX} (MiB)",
    "file_mb": f"an integer from 1 to {MEMORY_MB_MAX} (MiB)",
    "cpu_seconds": f"an integer from 1 to {1 << 30}",
    "retries": f"an integer from 0 to {RETRIES_MAX}",
    "retry_on": f"at most {RETRY_CODES_MAX} of: failure, lost, exit codes from 1 to"
    " 255",
    "notify_url": f"an http or https URL of at most {URL_CHARS_MAX} visible ASCII "
    "characters",
    "after": f"at most {PARENTS_MAX} ids of tasks",
    "on": "success, failure or any; needs `after` (to choose a node: `node` in "
    "`requires`)",
    "outputs_of": f"at most {OUTPUTS_OF_MAX} ids of tasks; needs `workdir`: scratch",
    "tree": given.TREE_HINT,
    "stdin_file": "an object with `sha256` and `node` (name or id); excludes other "
    "stdin fields",
    "folders": given.FOLDERS_HINT,
    "same_folder": given.SAME_FOLDER_HINT,
    "visitors": 'true, false or "with-env"',
    "visitors_min": f"an integer from 1 to {VISITORS_MIN_MAX} (seconds); needs"
    " `visitors`",
    "requires": "an object with labels, node, os, arch, cpus, memory_mb, gpus, python",
    "limits": "an object with memory_mb, cpu_seconds, file_mb, processes",
}
"""Valid values of each field, for hints and the OpenAPI document."""


def parse_options(fields: OptionsIn, limit_s: int | None = None) -> TaskOptions | None:
    """Return the options of a task; None if all have their defaults.

    Args:
        fields: The fields of the request.
        limit_s: The time limit; None: it has none.

    Raises:
        InvalidField: a field is invalid.
    """
    if _option_fields(fields) == _DEFAULT_FIELDS:
        return None  # Most tasks have no options, and this runs for each task.
    # An empty name is an error: it often comes from an unset shell variable.
    if fields.name is not None:
        _check_text("name", fields.name, NAME_CHARS_MAX)
    if fields.call is not None:
        _check_text("call", fields.call, CALL_CHARS_MAX)
    options = TaskOptions(
        name=fields.name or "",
        labels=_labels(fields.labels, "labels"),
        env=_env(fields.env),
        cwd=_cwd(fields.cwd),
        stdin=_stdin(fields),
        is_scratch=fields.workdir == "scratch",
        grace_s=fields.grace,
        requires=_requires(fields, limit_s),
        limits=None if fields.limits is None else _limits(fields.limits),
        retry=_retry(fields),
        notify_url=_notify_url(fields.notify_url),
        after=_after(fields),
        stdin_file=_stdin_file(fields),
        tree=given.parse_tree(fields.tree, is_scratch=fields.workdir == "scratch"),
        same_folder=given.parse_same_folder(
            fields.same_folder,
            fields.cwd or "",
            is_scratch=fields.workdir == "scratch",
        ),
        outputs_of=_outputs_of(fields),
        call=fields.call or "",
    )
    return None if options == NO_OPTIONS else options


def render_options(options: TaskOptions | None) -> dict[str, Any]:
    """Return the JSON fields of options, without the bytes of stdin."""
    return _NO_OPTIONS_RENDERED if options is None else _render(options)


def _render(options: TaskOptions) -> dict[str, Any]:
    requires, limits, retry = options.requires, options.limits, options.retry or Retry()
    return {
        "after": [task_name(TaskId(t)) for t in options.after.tasks]
        if options.after
        else [],
        "on": options.after and options.after.end,
        "retry_of": options.retry_of or None,
        "retries": retry.retries,
        "retry_on": [
            *(["failure"] if retry.on_failure else retry.codes),
            *(["lost"] if retry.on_lost else []),
        ],
        "notify_url": options.notify_url or None,
        "env": dict(options.env),
        "cwd": options.cwd or None,
        "stdin_bytes": options.stdin_bytes,
        "stdin_freed": is_stdin_freed(options),
        "workdir": "scratch" if options.is_scratch else None,
        "tree": given.render_tree(options.tree),
        "stdin_file": given.render_blob(options.stdin_file),
        "same_folder": given.render_same_folder(options.same_folder),
        "outputs_of": [task_name(TaskId(t)) for t in options.outputs_of],
        "grace": options.grace_s,
        "visitors": _shown_visitors(requires),
        "visitors_min": (requires and requires.visitor_s) or None,
        "requires": requires
        and rest.Requirements(
            labels=dict(requires.labels),
            node=requires.node or None,
            os=requires.os or None,
            arch=requires.arch or None,
            cpus=requires.cpus or None,
            memory_mb=requires.memory_mb or None,
            gpus=requires.gpus or None,
            python=requires.python or None,
        ),
        "limits": limits
        and rest.ResourceLimits(
            memory_mb=limits.memory_mb or None,
            cpu_seconds=limits.cpu_s or None,
            file_mb=limits.file_mb or None,
            processes=limits.processes or None,
        ),
    }


def _shown_visitors(requires: Requirements | None) -> bool | None:
    """Return True if visitors may run a task, False if not, None without a rule."""
    rule = VisitorRule.UNSET if requires is None else requires.visitors
    return None if rule is VisitorRule.UNSET else rule is VisitorRule.ALLOWED


_NO_OPTIONS_RENDERED: Final = _render(NO_OPTIONS)


def _labels(labels: Mapping[str, str], field: str) -> Pairs:
    if len(labels) > LABELS_MAX:
        raise InvalidField(field, f"{len(labels)} labels")
    for name, value in labels.items():
        if not _LABEL.fullmatch(name):
            raise InvalidField(field, f"invalid name {name[:80]!r}")
        if value:
            _check_text(field, value, LABEL_CHARS_MAX, place=f" of {name}")
    return tuple(sorted(labels.items()))


def _env(env: Mapping[str, str]) -> Pairs:
    if len(env) > ENV_MAX:
        raise InvalidField("env", f"{len(env)} variables")
    size_bytes = 0
    for name, value in env.items():
        if not _VARIABLE.fullmatch(name):
            raise InvalidField("env", f"{name[:80]!r} is not a valid variable name")
        if name.startswith(RESERVED_PREFIX):
            raise InvalidField(
                "env",
                f"{name[:80]}: only the agent sets {RESERVED_PREFIX} variables",
            )
        if "\0" in value:
            raise InvalidField("env", f"the value of {name} contains a NUL character")
        value_bytes = len(value.encode())
        if value_bytes > ENV_VALUE_BYTES_MAX:
            allowed = f"at most {ENV_VALUE_BYTES_MAX} are allowed"
            raise InvalidField(
                "env", f"the value of {name} has {value_bytes} bytes; {allowed}"
            )
        size_bytes += len(name) + value_bytes
    if size_bytes > ENV_BYTES_MAX:
        raise InvalidField("env", f"the variables have {size_bytes} bytes")
    return tuple(sorted(env.items()))


def _notify_url(url: str | None) -> str:
    if url is None:
        return ""
    if len(url) > URL_CHARS_MAX or not _URL.fullmatch(url):
        raise InvalidField("notify_url", "invalid URL")
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        is_usable = bool(host) and is_host(host) and parts.port != 0
    except ValueError:  # The port or the address is invalid.
        parts, is_usable = SplitResult("", "", "", "", ""), False
    if not is_usable:
        raise InvalidField("notify_url", "the URL has no valid host or port")
    if parts.username is not None:
        raise InvalidField(
            "notify_url",
            "the URL must not contain credentials: everyone who can "
            "read the task sees it",
        )
    return url


def _cwd(cwd: str | None) -> str:
    if cwd is None:
        return ""
    if not cwd:
        raise InvalidField("cwd", "the path is empty")
    if "\0" in cwd:
        raise InvalidField("cwd", "the path contains a NUL character")
    if len(cwd.encode()) > CWD_BYTES_MAX:
        raise InvalidField("cwd", f"the path is longer than {CWD_BYTES_MAX} bytes")
    if not cwd.startswith("/") and ".." in cwd.split("/"):
        raise InvalidField("cwd", "the path contains `..`; give an absolute path")
    return cwd


def _stdin(fields: OptionsIn) -> bytes:
    if fields.stdin and fields.stdin_base64:
        raise InvalidField("stdin_base64", "stdin is given twice")
    try:
        data = fields.stdin.encode() or base64.b64decode(
            fields.stdin_base64, validate=True
        )
    except ValueError:  # Characters beyond ASCII raise it, too.
        raise InvalidField("stdin_base64", "this is not base64") from None
    if len(data) > STDIN_BYTES_MAX:
        field = "stdin" if fields.stdin else "stdin_base64"
        raise InvalidField(field, f"stdin has {len(data)} bytes")
    return data


def _stdin_file(fields: OptionsIn) -> BlobRef | None:
    if fields.stdin_file is None:
        return None
    if fields.stdin or fields.stdin_base64:
        raise InvalidField("stdin_file", "stdin is given twice")
    return given.check_blob(fields.stdin_file, "stdin_file")


def _visitor_rule(fields: OptionsIn) -> VisitorRule:
    match fields.visitors:
        case None:
            return VisitorRule.UNSET
        case False:
            return VisitorRule.REFUSED
        case True if fields.env:
            return VisitorRule.HAS_ENV
        case _:
            return VisitorRule.ALLOWED


def _requires(fields: OptionsIn, limit_s: int | None) -> Requirements | None:
    """Return the requirements of a task, with its rule for visitors."""
    rule = _visitor_rule(fields)
    may_visit = rule in (VisitorRule.ALLOWED, VisitorRule.HAS_ENV)
    if fields.visitors_min is not None and not may_visit:
        raise InvalidField("visitors_min", "the task does not allow visitors")
    asked = _node_requirements(fields.requires or RequiresIn())
    visitor_s = max(limit_s or 0, fields.visitors_min or 0) if may_visit else 0
    asked = replace(asked, visitors=rule, visitor_s=visitor_s)
    return _or_none(asked, Requirements)


def _node_requirements(fields: RequiresIn) -> Requirements:
    for field in ("node", "os", "arch", "python"):
        word: str | None = getattr(fields, field)
        # An empty value often comes from an unset shell variable, so it is an error
        # instead of a task without this requirement.
        if word is not None and not _SIMPLE.fullmatch(word):
            raise InvalidField(f"requires.{field}", "invalid word")
    return Requirements(
        labels=_labels(fields.labels, "requires.labels"),
        node=fields.node or "",
        os=fields.os or "",
        arch=fields.arch or "",
        cpus=fields.cpus or 0,
        memory_mb=fields.memory_mb or 0,
        gpus=fields.gpus or 0,
        python=fields.python or "",
    )


def _limits(fields: LimitsIn) -> TaskLimits | None:
    return _or_none(
        TaskLimits(
            memory_mb=fields.memory_mb or 0,
            cpu_s=fields.cpu_seconds or 0,
            file_mb=fields.file_mb or 0,
            processes=fields.processes or 0,
        ),
        TaskLimits,
    )


def _retry(fields: OptionsIn) -> Retry | None:
    if fields.retry_on is None:
        return _or_none(Retry(retries=fields.retries), Retry)
    codes = {cause for cause in fields.retry_on if isinstance(cause, int)}
    on_failure = "failure" in fields.retry_on
    if codes and not fields.retries:
        raise InvalidField("retries", "`retry_on` has exit codes, but `retries` is 0")
    return _or_none(
        Retry(
            retries=fields.retries,
            on_failure=on_failure,
            codes=() if on_failure else tuple(sorted(codes)),
            on_lost="lost" in fields.retry_on,
        ),
        Retry,
    )


def _after(fields: OptionsIn) -> After | None:
    """Return the dependencies; a task comes after those whose outputs it gets."""
    _check_refs("after", fields.after)
    tasks = tuple(dict.fromkeys((*fields.after, *fields.outputs_of)))
    if not tasks:
        if fields.on != "success":
            raise InvalidField("on", "`on` needs tasks in `after`")
        return None
    if len(tasks) > PARENTS_MAX:
        raise InvalidField(
            "after", f"{len(tasks)} tasks, including those in `outputs_of`"
        )
    return After(tasks=tasks, end=fields.on)


def _outputs_of(fields: OptionsIn) -> tuple[str, ...]:
    _check_refs("outputs_of", fields.outputs_of)
    if fields.outputs_of and fields.workdir != "scratch":
        raise InvalidField(
            "outputs_of", "outputs need a scratch folder: set `workdir` to scratch"
        )
    return tuple(dict.fromkeys(fields.outputs_of))


def _check_refs(field: str, refs: Iterable[str]) -> None:
    for index, ref in enumerate(refs):
        if not _REF.fullmatch(ref):
            raise InvalidField(f"{field}[{index}]", "this is not a valid id")


def _or_none(value: T, empty: Callable[[], T]) -> T | None:
    return None if value == empty() else value


def _check_text(field: str, text: str, chars_max: int, place: str = "") -> None:
    """Refuse a text that shows nothing, more than it has, or on several lines.

    Raises:
        InvalidField: the length, or the character that must be left out.
    """
    if not 1 <= len(text) <= chars_max:
        raise InvalidField(field, f"{len(text)} characters{place}")
    if text.isprintable():
        return
    for char in _JOINER.sub("", _EMOJI.sub("x", text)):
        if not char.isprintable():
            name = f"U+{ord(char):04X} {unicodedata.name(char, '')}".rstrip()
            raise InvalidField(field, f"remove the character {name}{place}")
