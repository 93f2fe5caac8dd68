"""Request bodies as validated values.

Each error of a client becomes a `Problem` that names the field. This module does not
depend on HTTP headers or the agent.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Final, Literal, NoReturn, TypeVar

import msgspec
from msgspec.structs import replace

from octaskly.api.problems import (
    INVALID_COMMAND,
    INVALID_VALUE,
    MALFORMED_JSON,
    MISSING_FIELD,
    UNKNOWN_FIELD,
    Problem,
)
from octaskly.api.schemas import arrays, files
from octaskly.api.schemas.base import (
    SHA256,
    InvalidField,
    RequestBody,
    openapi_schema,
)
from octaskly.api.schemas.task_options import FIELD_HINTS as OPTION_RANGES
from octaskly.api.schemas.task_options import NO_OPTIONS, OptionsIn, parse_options
from octaskly.core.model import placeholders
from octaskly.core.model.drafts import TaskDraft
from octaskly.core.model.ids import TaskId
from octaskly.core.model.task_options import BlobRef, InputBlob, TaskOptions
from octaskly.core.model.tasks import Priority
from octaskly.files.output_patterns import is_in_git
from octaskly.files.pack import ASKED_FILES_MAX
from octaskly.system.cooperative import map_in_batches
from octaskly.trust.tokens import EXPIRES_S_MAX, PERMISSIONS

COMMAND_BYTES_MAX = 65_536
PATHS_MAX = 10_000
PATH_BYTES_MAX = 4_096
LIST_BYTES_MAX = 1 << 20  #: of one list of paths, because a task must fit into a frame
TASK_BYTES_MAX = 5 << 20
"""Of a task in all: a frame holds it, and beside it the output of an attempt."""
BATCH_MAX = 10_000
BATCH_PARENTS_MAX = 100_000  #: entries in `after` of all tasks of a request
TOKEN_S_DEFAULT = 86_400
VALUES_MAX = 1 << 20  #: of a body, with keys; a text takes about 60 bytes of memory
MESSAGE_CHARS_MAX = 1000  #: of an error message of msgspec, at each end
RESCAN_BYTES_MAX = 1 << 20
SUBJECT_MAX = 128

_ID = re.compile(r"[A-Za-z0-9._][A-Za-z0-9._-]{0,63}")
"""A command line takes what begins with `-` for an option, such as `--force`."""
_KEYED_ID = re.compile(r"task-[0-9]{12}-[0-9a-f]{8}(\.|$)")
"""Ids that the dispatcher derives from idempotency keys, and those of their members."""
_MSGSPEC_MESSAGE = re.compile(r"^(?P<what>.*?)(?: - at `(?P<path>[^`]*)`)?$", re.DOTALL)
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<name>.*)`", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(?P<name>[^`]*)`")
_BOUND = re.compile(r"Expected [^,]*(, got (?P<got>`.*`))?", re.DOTALL)
_TEXT = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_SURROGATE = re.compile("[\ud800-\udfff]")

_T = TypeVar("_T", bound=msgspec.Struct)
_U = TypeVar("_U")

Path = Annotated[
    str, openapi_schema(minLength=1, maxLength=PATH_BYTES_MAX, pattern="^[^/]")
]
Paths = Annotated[tuple[Path, ...], msgspec.Meta(max_length=PATHS_MAX)]


class TaskIn(OptionsIn, gc=False, kw_only=True):
    """One task in a submission."""

    command: Annotated[str, openapi_schema(maxLength=COMMAND_BYTES_MAX, pattern=r"\S")]
    timeout: Annotated[int, msgspec.Meta(ge=1, le=86_400)] | Literal["none"] = 3600
    inputs: Paths = ()
    outputs: Paths = ()
    id: (
        Annotated[str, openapi_schema(pattern=f"^{_ID.pattern}$")] | msgspec.UnsetType
    ) = msgspec.UNSET
    durability: Literal["normal", "strict"] = "normal"
    fail_fast: bool = False
    array: arrays.ArrayIn | None = None


Tasks = Annotated[list[TaskIn], msgspec.Meta(min_length=1, max_length=BATCH_MAX)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The tasks of a submission, in order."""

    drafts: list[TaskDraft]
    is_array: bool
    is_strict: bool  #: True if any task asks for it, because all or none are accepted


FORGET_S_MAX: Final = 10 * 365 * 86_400


class TokenIn(RequestBody):
    """A request for a token."""

    role: Annotated[str, openapi_schema(enum=sorted(PERMISSIONS))]
    subject: (
        Annotated[str, openapi_schema(minLength=1, maxLength=SUBJECT_MAX)] | None
    ) = None
    expires_s: Annotated[int, msgspec.Meta(ge=1, le=EXPIRES_S_MAX)] = TOKEN_S_DEFAULT
    name: Annotated[str, openapi_schema(pattern=f"^{_ID.pattern}$")] | None = None


class ForgetIn(RequestBody):
    """A request to delete ended tasks."""

    older_than_s: Annotated[int, msgspec.Meta(ge=0, le=FORGET_S_MAX)]


class PriorityIn(RequestBody):
    """A request to change the priority of a task."""

    priority: Priority


class EmptyIn(RequestBody):
    """The body of a request that needs none."""


FIELD_HINTS: Final = {
    **OPTION_RANGES,
    **arrays.FIELD_HINTS,
    "timeout": 'an integer from 1 to 86400 (seconds), or "none"',
    "inputs": f"an array of at most {PATHS_MAX} relative paths",
    "outputs": f"an array of at most {PATHS_MAX} relative paths or globs",
    "id": "1 to 64 characters of A-Z a-z 0-9 . _ -, the first not -",
    "durability": "normal or strict",
    "fail_fast": "true or false",
    "trees": "an array of objects with sha256 and node",
    "kind": "tree or file",
    "node": "a node, by name or id",
    "sha256": f"at most {ASKED_FILES_MAX} digests of 64 digits 0-9 a-f",
    "command": f"a string of 1 to {COMMAND_BYTES_MAX} bytes",
    "role": "admin, client or viewer",
    "subject": "1 to 128 printable characters",
    "older_than_s": f"an integer from 0 to {FORGET_S_MAX} (seconds)",
    "expires_s": f"an integer from 1 to {EXPIRES_S_MAX} (seconds)",
    "ttl_s": "an integer from 10 to 3600 (seconds)",
}

_many = msgspec.json.Decoder(list[TaskIn])


async def parse_tasks(body: bytes) -> Batch:
    """Return the tasks of a submission; yield to the event loop during a large one."""
    if not body.lstrip(b" \t\r\n").startswith(b"["):
        task = decode_body(TaskIn, body)
        is_strict = task.durability == "strict"
        drafts = [_parse_task(task, None)]
        _reject_large_tasks(body, drafts, is_array=False)
        return Batch(drafts=drafts, is_array=False, is_strict=is_strict)
    tasks: list[TaskIn] = _decode(_many, TaskIn, body)
    if not 1 <= len(tasks) <= BATCH_MAX:
        raise Problem(
            400,
            INVALID_VALUE,
            hint=f"an array has 1 to {BATCH_MAX} tasks, not {len(tasks)}",
            field="$",
        )
    drafts = await map_in_batches(
        list(enumerate(tasks)), lambda each: _parse_task(*each[::-1])
    )
    _reject_large_tasks(body, drafts, is_array=True)
    _reject_repeated_ids(drafts)
    _reject_many_parents(tasks)
    is_strict = "strict" in {task.durability for task in tasks}
    return Batch(drafts=drafts, is_array=True, is_strict=is_strict)


def parse_missing(body: bytes) -> files.MissingIn:
    """Return the files that a client asks about."""
    asked = decode_body(files.MissingIn, body)
    _check_digests(asked.sha256)
    return asked


def parse_wanted_pack(body: bytes) -> files.PackIn:
    """Return the small files that a node asks for."""
    asked = decode_body(files.PackIn, body)
    _check_digests(asked.sha256)
    if asked.tree and not SHA256.fullmatch(asked.tree):
        _raise_invalid("$.tree", f"{asked.tree[:80]!r} is not a SHA-256")
    return asked


def parse_offer(body: bytes) -> str:
    """Return the SHA-256 of the tree that a client lends."""
    asked = decode_body(files.OfferIn, body)
    if not SHA256.fullmatch(asked.sha256):
        _raise_invalid("$.sha256", f"{asked.sha256[:80]!r} is not a SHA-256")
    return asked.sha256


def _check_digests(names: Sequence[str]) -> None:
    for index, name in enumerate(names):
        if not SHA256.fullmatch(name):
            _raise_invalid(f"$.sha256[{index}]", f"{name[:80]!r} is not a SHA-256")


def parse_input(body: bytes) -> InputBlob:
    """Return the input of tasks that a request is about."""
    asked = decode_body(files.InputIn, body)
    return InputBlob(_check_blob(asked, "$"), is_tree=asked.kind == "tree")


def parse_inputs(body: bytes) -> list[InputBlob]:
    """Return the inputs of tasks that a request is about."""
    asked = decode_body(files.InputsIn, body)
    return [
        InputBlob(_check_blob(one, f"$.{name}[{index}]"), is_tree=name == "trees")
        for name, some in (("trees", asked.trees), ("files", asked.files))
        for index, one in enumerate(some)
    ]


def parse_blob(body: bytes) -> BlobRef:
    """Return the blob that a request names."""
    return _check_blob(decode_body(files.BlobIn, body), "$")


def _check_blob(blob: files.BlobIn, place: str) -> BlobRef:
    try:
        return files.check_blob(blob, place)
    except InvalidField as wrong:
        raise Problem(400, INVALID_VALUE, hint=str(wrong), field=place) from None


def parse_token(body: bytes) -> TokenIn:
    """Return a request for a token."""
    asked = decode_body(TokenIn, body)
    if asked.role not in PERMISSIONS:
        _raise_invalid("$.role", f"`{asked.role}` is not a role")
    if asked.subject is not None and not (
        1 <= len(asked.subject) <= SUBJECT_MAX and asked.subject.isprintable()
    ):
        _raise_invalid("$.subject", "invalid subject")
    if asked.name is not None and not _ID.fullmatch(asked.name):
        # FIELD_HINTS describes the name of a task, which allows more characters.
        hint = f"a token's name must be {FIELD_HINTS['id']}"
        raise Problem(400, INVALID_VALUE, hint=hint, field="$.name")
    return asked


def clean_path(path: str, *, has_placeholders: bool = False) -> str:
    """Return the normal form of a path below the worker directory.

    Args:
        path: The path in a request.
        has_placeholders: Whether `{//}` in it is a placeholder.

    Raises:
        ValueError: the path is absolute, leaves the directory, or is not a valid
            file name; the message says which.
    """
    if not path:
        raise ValueError("a path is empty")
    if "\0" in path:
        raise ValueError("a path contains a NUL character")
    try:
        size_bytes = len(path.encode())
    except UnicodeEncodeError:
        raise ValueError("a path contains a lone surrogate") from None
    if size_bytes > PATH_BYTES_MAX:
        raise ValueError(f"a path is longer than {PATH_BYTES_MAX} bytes")
    if path.startswith("/"):
        raise ValueError("a path is absolute; give it relative to the worker directory")
    parts = arrays.path_parts(path) if has_placeholders else path.split("/")
    if ".." in parts:
        raise ValueError("a path contains `..`; it must stay in the worker directory")
    if any(len(part.encode()) > placeholders.NAME_BYTES_MAX for part in parts):
        raise ValueError(
            f"a part of a path is longer than {placeholders.NAME_BYTES_MAX} bytes"
        )
    named = [part for part in parts if part not in ("", ".")]
    if not named:
        raise ValueError("a path names the worker directory itself")
    return "/".join(named)


def _parse_task(task: TaskIn, index: int | None) -> TaskDraft:
    wrong = _wrong_command(task.command)
    if wrong:
        field = f"{_json_path(index)}.command"
        raise Problem(400, INVALID_COMMAND, hint=wrong, field=field)
    chosen = None
    if task.id is not msgspec.UNSET:
        if not _ID.fullmatch(task.id) or task.id in (".", ".."):
            _raise_invalid(f"{_json_path(index)}.id", "invalid id")
        # It could be the id of a retry, or of a key that somebody else will use.
        if _KEYED_ID.match(task.id):
            _raise_invalid(
                f"{_json_path(index)}.id",
                "ids like this are made from an `Idempotency-Key`",
                "another id",
            )
        chosen = TaskId(task.id)
    return TaskDraft(
        task.command,
        None if task.timeout == "none" else task.timeout,
        _paths(task, index, "inputs") if task.inputs else (),
        _paths(task, index, "outputs") if task.outputs else (),
        chosen,
        task.priority,
        _options(task, index),
        task.fail_fast,
    )


def _options(task: TaskIn, index: int | None) -> TaskOptions | None:
    try:
        limit_s = None if task.timeout == "none" else task.timeout
        options = parse_options(task, limit_s)
        if task.array is None:
            return options
        arrays.check_id(task.id)
        array = arrays.parse_array(task.array, task.command, COMMAND_BYTES_MAX)
        arrays.check_paths(array, (*task.inputs, *task.outputs))
        return replace(options or NO_OPTIONS, array=array)
    except InvalidField as wrong:
        path = f"{_json_path(index)}.{wrong.field}"
        _raise_invalid(path, str(wrong), wrong.expected)


def _json_path(index: int | None) -> str:
    return "$" if index is None else f"$[{index}]"


def _wrong_command(command: str) -> str | None:
    """Return the error of a command, None if it is valid."""
    if not command or command.isspace():
        return "the command is empty"
    if "\0" in command:
        return "the command contains a NUL character"
    if len(command) * 4 > COMMAND_BYTES_MAX:
        size_bytes = len(command.encode())
        if size_bytes > COMMAND_BYTES_MAX:
            allowed = f"at most {COMMAND_BYTES_MAX} are allowed"
            return f"the command has {size_bytes} bytes; {allowed}"
    return None


def _paths(
    task: TaskIn, position: int | None, name: Literal["inputs", "outputs"]
) -> tuple[str, ...]:
    cleaned: dict[str, None] = {}
    has_placeholders = task.array is not None
    for index, path in enumerate(task.inputs if name == "inputs" else task.outputs):
        try:
            clean = _clean_output if name == "outputs" else clean_path
            cleaned[clean(path, has_placeholders=has_placeholders)] = None
        except ValueError as error:
            shown = ascii(path[:80])
            raise Problem(
                400,
                INVALID_VALUE,
                hint=f"{error}: {shown}",
                field=f"{_json_path(position)}.{name}[{index}]",
            ) from None
    size_bytes = sum(len(path.encode()) for path in cleaned)
    if size_bytes > LIST_BYTES_MAX:
        allowed = f"at most {LIST_BYTES_MAX} are allowed"
        hint = f"the paths have {size_bytes} bytes; {allowed}"
        field = f"{_json_path(position)}.{name}"
        raise Problem(400, INVALID_VALUE, hint=hint, field=field)
    return tuple(cleaned)


def _clean_output(path: str, *, has_placeholders: bool) -> str:
    clean = clean_path(path, has_placeholders=has_placeholders)
    if is_in_git(clean):
        raise ValueError("`.git` is never kept as an output")
    return clean


def _reject_large_tasks(
    body: bytes, drafts: Sequence[TaskDraft], *, is_array: bool
) -> None:
    """Refuse tasks that no frame between nodes would hold."""
    if len(body) <= TASK_BYTES_MAX:
        return
    for index, draft in enumerate(drafts):
        size_bytes = len(msgspec.msgpack.encode(draft))
        if size_bytes > TASK_BYTES_MAX:
            raise Problem(
                400,
                INVALID_VALUE,
                hint=f"the task takes {size_bytes} bytes in all;"
                f" at most {TASK_BYTES_MAX} are allowed",
                field=_json_path(index if is_array else None),
            )


def _reject_repeated_ids(drafts: Iterable[TaskDraft]) -> None:
    seen: set[TaskId] = set()
    for index, draft in enumerate(drafts):
        if draft.id is None:
            continue
        if draft.id in seen:
            raise Problem(
                409,
                "Duplicate task ID",
                hint=f"`{draft.id}` appears twice in the array",
                field=f"$[{index}].id",
            )
        seen.add(draft.id)


def _reject_many_parents(tasks: Iterable[TaskIn]) -> None:
    """Refuse tasks whose dependencies would occupy the disk for seconds."""
    count = sum(len(task.after) + len(task.outputs_of) for task in tasks)
    if count > BATCH_PARENTS_MAX:
        raise Problem(
            400,
            INVALID_VALUE,
            hint=f"the tasks depend on {count} others in total; at most "
            f"{BATCH_PARENTS_MAX} are allowed in one request",
            field="$",
        )


def _raise_invalid(json_path: str, message: str, expected: str = "") -> NoReturn:
    name = _field_name(json_path)
    error = INVALID_COMMAND if name == "command" else INVALID_VALUE
    hint = f"{message}; expected {expected or FIELD_HINTS[name]}"
    raise Problem(400, error, hint=hint, field=json_path)


def _field_name(place: str) -> str:
    """Return `inputs` for `$[3].inputs[1]`."""
    return place.rpartition(".")[2].partition("[")[0]


def require_empty_body(body: bytes) -> None:
    """Raise `Problem` for a body other than an empty object."""
    decode_body(EmptyIn, body)


def decode_body(kind: type[_T], body: bytes) -> _T:
    """Return a body as a value of `kind`; raise `Problem` if it is none."""
    value: _T = _decode(_decoder_of(kind), kind, body)
    return value


@cache
def _decoder_of(kind: type[_T]) -> msgspec.json.Decoder[_T]:
    return msgspec.json.Decoder(kind)


def _decode(
    decoder: msgspec.json.Decoder[_U], kind: type[msgspec.Struct], body: bytes
) -> _U:
    """Return what `decoder` finds; `kind` has the fields of its errors."""
    if not body:
        raise Problem(400, MALFORMED_JSON, hint="invalid JSON: the body is empty")
    _require_few_values(body)
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        message = _without_middle(str(error))
        raise _problem_of_message(message, kind) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        place = _find_surrogate(body)
        if place is not None:
            _raise_invalid(place, "the text contains a lone surrogate")
        raise Problem(400, MALFORMED_JSON, hint=f"invalid JSON: {error}") from None


def _require_few_values(body: bytes) -> None:
    """Refuse a body with too many values, which take much more memory than the body.

    They are counted before the body is decoded. A backslash before a closing quote may
    hide half of the texts.
    """
    quotes = body.count(b'"')
    is_over = (
        quotes > 2 * VALUES_MAX and quotes - body.count(b'\\"') > 2 * VALUES_MAX
    ) or (
        body.count(b",") > VALUES_MAX and _TEXT.sub(b"", body).count(b",") > VALUES_MAX
    )
    if is_over:
        raise Problem(
            400,
            INVALID_VALUE,
            hint=f"the body has more than {VALUES_MAX} values, keys included; send"
            " fewer tasks at a time",
            field="$",
        )


def _without_middle(message: str) -> str:
    """Return an error message with the beginning of a long text that it quotes."""
    if len(message) <= 2 * MESSAGE_CHARS_MAX:
        return message
    return message[:MESSAGE_CHARS_MAX] + message[-MESSAGE_CHARS_MAX:]


def _problem_of_message(message: str, kind: type[msgspec.Struct]) -> Problem:
    """Return the problem for an error message of msgspec."""
    place = _MSGSPEC_MESSAGE.match(message)
    what, path = (place["what"], place["path"] or "$") if place else (message, "$")
    if unknown := _UNKNOWN.fullmatch(what):
        name = unknown["name"]
        near = difflib.get_close_matches(name, kind.__struct_fields__, n=1)
        also = f"; did you mean `{near[0]}`?" if near else ""
        return Problem(
            400,
            UNKNOWN_FIELD,
            hint=f"unknown field `{name[:80]}`{also}",
            field=f"{path}.{name[:80]}",
        )
    if missing := _MISSING.fullmatch(what):
        name = missing["name"]
        what = f": {FIELD_HINTS[name]}" if name in FIELD_HINTS else ""
        return Problem(
            400,
            MISSING_FIELD,
            hint=f"`{name}` is required{what}",
            field=f"{path}.{name}",
        )
    name = _field_name(path)
    if name in FIELD_HINTS:
        # Our hint is more precise than the library's message.
        bound = _BOUND.fullmatch(what)
        got = f"got {bound['got']}" if bound and bound["got"] else "" if bound else what
        what = f"{got}; expected {FIELD_HINTS[name]}".removeprefix("; ")
    error = INVALID_COMMAND if name == "command" else INVALID_VALUE
    return Problem(400, error, hint=what, field=path)


def _find_surrogate(body: bytes) -> str | None:
    """Return the path of the first text with a lone surrogate, which msgspec refuses.

    It runs only for a body that failed to decode, and only up to 1 MiB.
    """
    if len(body) > RESCAN_BYTES_MAX or b"\\ud" not in body.lower():
        return None
    try:
        # The standard library accepts lone surrogates; msgspec cannot locate one.
        value = json.loads(body)
    except (ValueError, RecursionError):
        return None
    for place, text in _walk_strings(value, "$"):
        if _field_name(place) in FIELD_HINTS and _SURROGATE.search(text):
            return place
    return None


def _walk_strings(value: object, place: str) -> Iterator[tuple[str, str]]:
    """Yield path and text of each string, as deep as a valid body can be."""
    stack: list[tuple[str, object, int]] = [(place, value, 0)]
    deepest = 4
    while stack:
        where, item, depth = stack.pop()
        if isinstance(item, str):
            yield where, item
        elif depth < deepest and isinstance(item, Mapping):
            stack += [(f"{where}.{key}", part, depth + 1) for key, part in item.items()]
        elif depth < deepest and isinstance(item, list):
            stack += [
                (f"{where}[{index}]", part, depth + 1)
                for index, part in enumerate(item)
            ]
