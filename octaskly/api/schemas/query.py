"""Query parameters, path parameters and headers as typed values."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Final, Literal

import msgspec

from octaskly.api.problems import INVALID_VALUE, Problem
from octaskly.api.schemas.base import SHA256
from octaskly.api.schemas.request_bodies import BATCH_MAX
from octaskly.config.defaults import DURABILITIES
from octaskly.core.model.ids import (
    ATTEMPT_PATTERN,
    AttemptId,
    NodeId,
    TaskId,
    is_visitor,
    parse_attempt_id,
)
from octaskly.core.model.tasks import TaskState
from octaskly.ports.files import WANTED_PIECES_MAX
from octaskly.ports.store import TaskSearch
from octaskly.rest.base import SINCE_S_MAX

LIMIT_DEFAULT = 100
LIMIT_MAX = 1000
OFFSET_MAX = 2**53
ATTEMPTS_MAX = 10**9
WAIT_S_MAX = 300.0

_REF = re.compile(r"[A-Za-z0-9._-]{1,64}(\.[0-9]{1,9})?(~[0-9]{1,3})?")
_LOGGED = re.compile(r"[A-Za-z0-9._-]{1,64}(\.[0-9]{1,9})?(~[0-9a-f]{14,15})?")
_INTEGER = re.compile(r"[0-9]{1,16}")
_SECONDS = re.compile(r"[0-9]{1,3}(\.[0-9]{1,3})?")
_SHORT_ID = re.compile(r"[0-9]{1,11}|[0-9a-f]{4,8}")
_LABEL = re.compile(r"[A-Za-z0-9._/-]{1,64}")
_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_NAME_MAX = 255
_TEXT_CHARS_MAX = 256
_SHORT_ID_MAX = 11
_LABEL_CHARS_MAX = 64 + 1 + 256
_LABELS_MAX = 32
_REPEATABLE = ("label",)  #: parameters that may be repeated

_PIECES = re.compile(rf"\d{{1,9}}(,\d{{1,9}}){{0,{WANTED_PIECES_MAX - 1}}}", re.ASCII)

_Ref = Annotated[str, msgspec.Meta(pattern=f"^{_REF.pattern}$")]
_Text = Annotated[str, msgspec.Meta(min_length=1, max_length=_TEXT_CHARS_MAX)]
_Start = Annotated[int, msgspec.Meta(ge=0, le=OFFSET_MAX)]

PARAMETERS: Final[Mapping[str, tuple[Any, str]]] = {
    "after": (
        str,
        "only tasks after this one; in a search, the `next` before",
    ),
    "array": (_Ref, "only members of this array; default: tasks that are not members"),
    "attempt": (
        Annotated[int, msgspec.Meta(ge=0, le=ATTEMPTS_MAX)],
        "number of the attempt to read; 0 or absent: the one that counts",
    ),
    "copy": (bool, "true: for a second copy, so that it does not count as a fetch"),
    "count": (
        Annotated[int, msgspec.Meta(ge=1, le=BATCH_MAX)],
        "number of ids; default 1",
    ),
    "durability": (
        Literal["normal", "strict"],
        "strict: refuse with 503 rather than accept with only one copy",
    ),
    "encoding": (Literal["utf-8", "base64"], "encoding of stdout and stderr"),
    "fail_fast": (bool, "true: refuse a task that no node could ever run"),
    "follow": (bool, "true: continue until the task has ended"),
    "force": (bool, "true: also end running tasks"),
    "kept": (bool, "true: include the output bytes in the log"),
    "ended_within_s": (
        Annotated[int, msgspec.Meta(ge=1, le=SINCE_S_MAX)],
        "only tasks that ended in the last N seconds",
    ),
    "known": (str, "version that is already known: answer once it has changed"),
    "label": (
        list[Annotated[str, msgspec.Meta(min_length=1, max_length=_LABEL_CHARS_MAX)]],
        "only tasks with this label, as NAME=VALUE or NAME; several must all match",
    ),
    "lent": (bool, "true: keep it for a minute only, as its lender can send it again"),
    "limit": (
        Annotated[int, msgspec.Meta(ge=1, le=LIMIT_MAX)],
        f"maximum number of items; default {LIMIT_DEFAULT}",
    ),
    "mine": (bool, "true: only tasks that the subject of the request submitted"),
    "name": (_Text, "only tasks with this name, which is not their id"),
    "newest": (bool, "true: latest first"),
    "now": (bool, "true: the old secret becomes invalid within seconds"),
    "order": (
        Literal["end", "number"],
        "order of results: as members end, or by their numbers",
    ),
    "offset": (_Start, "number of items, or of bytes of each stream, to skip"),
    "pieces": (
        Annotated[str, msgspec.Meta(pattern=f"^{_PIECES.pattern}$")],
        "numbers of pieces, from 0; the node sends one of them",
    ),
    "ref": (
        Annotated[str, msgspec.Meta(min_length=1, max_length=_SHORT_ID_MAX)],
        "only tasks with this number, or whose hexadecimal digits begin with it",
    ),
    "required_label": (
        Annotated[str, msgspec.Meta(min_length=1, max_length=_LABEL_CHARS_MAX)],
        "only tasks that require this label of their node, as NAME=VALUE",
    ),
    "since_s": (
        Annotated[int, msgspec.Meta(ge=0, le=SINCE_S_MAX)],
        "only entries of the last N seconds; default: the latest",
    ),
    "status": (TaskState, "only tasks in this state"),
    "stderr": (_Start, "offset in stderr; absent: omit stderr"),
    "stdout": (_Start, "offset in stdout; absent: omit stdout"),
    "stream": (Literal["stdout", "stderr", "both"], "streams to send"),
    "task": (_Ref, "only events of this task"),
    "text": (_Text, "only tasks with this text in command or name, ignoring case"),
    "tree": (
        Annotated[str, msgspec.Meta(pattern=f"^{SHA256.pattern}$")],
        "SHA-256 of the tree that a client lends, and that the file is part of",
    ),
    "types": (
        Annotated[str, msgspec.Meta(pattern="^(task|node)(,(task|node))*$")],
        "types of events to send",
    ),
    "units": (
        Annotated[int, msgspec.Meta(ge=1, le=LIMIT_MAX)],
        "units of the rate limit that a request costs; default 1",
    ),
    "verify": (
        bool,
        "true: nodes read each file before they send it, because one arrived wrong",
    ),
    "visitor": (
        Annotated[str, msgspec.Meta(min_length=1, max_length=_NAME_MAX)],
        "id of the visitor whose output it is",
    ),
    "wait": (
        Annotated[float, msgspec.Meta(ge=0, le=WAIT_S_MAX)],
        "maximum seconds to wait for the end, in steps of 0.001; `POST`: 0.05 at most",
    ),
    "worker_id": (
        Annotated[str, msgspec.Meta(min_length=1, max_length=_NAME_MAX)],
        "only tasks that this node runs or ran, by name or id",
    ),
}
"""Type and meaning of each parameter, for the OpenAPI document."""

PATH_PARTS: Final[Mapping[str, tuple[Any, str]]] = {
    "id": (_Ref, "id of a task"),
    "name": (str, "name or id of a node"),
    "other": (str, "name or id of another node"),
    "path": (str, "path of an output; it may contain slashes"),
    "sha256": (
        Annotated[str, msgspec.Meta(pattern=f"^{SHA256.pattern}$")],
        "SHA-256 of the bytes of a file, in hexadecimal",
    ),
    "task": (
        Annotated[str, msgspec.Meta(pattern=f"^{_LOGGED.pattern}$")],
        "id of a task in the log",
    ),
    "token": (str, "name or id of a token"),
    "attempt": (
        Annotated[str, msgspec.Meta(pattern=f"^{ATTEMPT_PATTERN}$")],
        "id of the attempt: term, stream, sequence number and attempt number",
    ),
}
"""Type and meaning of each path parameter."""


class Query:
    """Query parameters of one request: known names only, and only `label` repeats."""

    def __init__(self, given: Iterable[tuple[str, str]], known: Iterable[str]) -> None:
        self._values: dict[str, str] = {}
        self._labels: list[str] = []
        names = tuple(known)
        for name, value in given:
            if name not in names:
                _refuse_unknown(name, names)
            if name in self._values and name not in _REPEATABLE:
                raise _invalid(name, f"`{name}` is given twice")
            self._values[name] = value
            if name == "label":
                self._labels.append(value)

    def limit(self) -> int:
        """Return the size of a page."""
        return self._integer("limit", LIMIT_DEFAULT, 1, LIMIT_MAX)

    def count(self) -> int:
        """Return the requested number of ids."""
        return self._integer("count", 1, 1, BATCH_MAX)

    def units(self) -> int:
        """Return the units of the rate limit that a request costs."""
        return self._integer("units", 1, 1, LIMIT_MAX)

    def offset(self) -> int:
        """Return the number of items to skip."""
        return self._integer("offset", 0, 0, OFFSET_MAX)

    def since_s(self) -> int | None:
        """Return the age limit in seconds, None if absent."""
        if "since_s" not in self._values:
            return None
        return self._integer("since_s", 0, 0, SINCE_S_MAX)

    def status(self) -> TaskState | None:
        """Return the requested state, None for all."""
        text = self._values.get("status")
        if text is None:
            return None
        try:
            return TaskState(text)
        except ValueError:
            states = ", ".join(state.value for state in TaskState)
            raise _invalid("status", f"`status` must be one of {states}") from None

    def array(self) -> str | None:
        """Return the array whose members to list, None for tasks outside arrays."""
        text = self._values.get("array")
        return None if text is None else task_ref(text)

    def search(self, subject: str, now_ms: int) -> TaskSearch | None:
        """Return a search without its position, None if no condition is given.

        Args:
            subject: Subject of the request, for `mine`.
            now_ms: The wall clock, for `ended_within_s`.
        """
        labels = tuple(map(_label, self._labels))
        if len(labels) > _LABELS_MAX:
            raise _invalid("label", f"at most {_LABELS_MAX} labels are allowed")
        name, text = self._words("name"), self._words("text")
        submitter = subject if self.flag("mine") else None
        ended_after_ms = None
        if "ended_within_s" in self._values:
            within_s = self._integer("ended_within_s", 1, 1, SINCE_S_MAX)
            ended_after_ms = now_ms - 1000 * within_s
        if not (labels or name or text or submitter or ended_after_ms):
            return None
        for field, why in (("offset", "use `after`"), ("array", "it finds no members")):
            if self._values.get(field, "0") != "0":
                raise _invalid(field, f"a search does not accept `{field}`; {why}")
        return TaskSearch(
            name=name,
            labels=labels,
            text=text,
            submitter=submitter,
            ended_after_ms=ended_after_ms,
        )

    def required_label(self) -> tuple[str, str] | None:
        """Return the label that tasks must require of their node, None if absent."""
        text = self._values.get("required_label")
        if text is None:
            return None
        name, value = _label(text, "required_label")
        if value is None:
            raise _invalid("required_label", "`required_label` must be NAME=VALUE")
        return name, value

    def short_id(self) -> str | None:
        """Return the short id whose tasks are requested, None if absent."""
        text = self._values.get("ref")
        if text is None:
            return None
        if not _SHORT_ID.fullmatch(text):
            raise _invalid("ref", "`ref` must be a number, or 4 to 8 digits of 0-9 a-f")
        if len(self._values) > 1:
            raise _invalid("ref", "`ref` cannot be combined with other parameters")
        return text

    def after(self) -> str | None:
        """Return the task after which the list begins, None for its first page."""
        text = self._values.get("after")
        if text is not None and self._values.get("offset", "0") != "0":
            raise _invalid("offset", "`after` replaces `offset`")
        return None if text is None else task_ref(text, "after")

    def _words(self, name: str) -> str | None:
        text = self._values.get(name)
        is_usable = text is None or (1 <= len(text) <= _TEXT_CHARS_MAX)
        if not is_usable or "\0" in (text or ""):
            raise _invalid(
                name, f"`{name}` must have 1 to {_TEXT_CHARS_MAX} characters"
            )
        return text

    def worker_id(self) -> str | None:
        """Return the name or id of the node whose tasks to list, None for all."""
        text = self._values.get("worker_id")
        if text is not None and not 1 <= len(text) <= _NAME_MAX:
            raise _invalid("worker_id", "`worker_id` must be the name or id of a node")
        return text

    def wait_s(self) -> float:
        """Return the seconds to wait for the end of a task."""
        text = self._values.get("wait")
        if text is None:
            return 0.0
        if not _SECONDS.fullmatch(text) or float(text) > WAIT_S_MAX:
            raise _invalid("wait", "`wait` must be 0 to 300 seconds")
        return float(text)

    def submission_wait_s(self, *, is_list: bool) -> float | None:
        """Return the seconds for which a submission waits; None if it does not.

        Args:
            is_list: Whether a list of tasks is submitted, which cannot be awaited.
        """
        name = next((n for n in ("wait", "encoding") if n in self._values), None)
        if name is None:
            return None
        if is_list:
            raise _invalid(
                name, f"`{name}` is for a single task: send an object, not an array"
            )
        if name != "wait":
            raise _invalid(name, "`encoding` is for output: it requires `wait`")
        return self.wait_s()

    def is_base64(self) -> bool:
        """Return True if output is requested as exact bytes, in base64."""
        text = self._values.get("encoding", "utf-8")
        if text not in ("utf-8", "base64"):
            raise _invalid("encoding", "`encoding` must be utf-8 or base64")
        return text == "base64"

    def is_strict(self) -> bool:
        """Return True if a task with only one copy must be refused."""
        text = self._values.get("durability", "normal")
        if text not in DURABILITIES:
            raise _invalid("durability", "`durability` must be normal or strict")
        return text == "strict"

    def force(self) -> bool:
        """Return True if a running task must be ended, too."""
        return self.flag("force")

    def flag(self, name: str) -> bool:
        """Return True if the boolean parameter `name` is true; absent means false."""
        text = self._values.get(name, "false")
        if text not in ("true", "false"):
            raise _invalid(name, f"`{name}` must be true or false")
        return text == "true"

    def pieces(self) -> list[int]:
        """Return the wanted pieces of a file."""
        text = self._values.get("pieces", "0")
        if not _PIECES.fullmatch(text):
            raise _invalid(
                "pieces",
                f"`pieces` must be up to {WANTED_PIECES_MAX} numbers, separated by"
                " commas",
            )
        return [int(number) for number in text.split(",")]

    def text(self, name: str) -> str:
        """Return the text of a parameter, empty if absent."""
        return self._values.get(name, "")

    def is_ordered_by_number(self) -> bool:
        """Return True if results are requested in order of members."""
        text = self._values.get("order", "end")
        if text not in ("end", "number"):
            raise _invalid("order", "`order` must be end or number")
        return text == "number"

    def streams(self) -> tuple[bool, bool]:
        """Return whether stdout and whether stderr is requested."""
        text = self._values.get("stream", "both")
        if text not in ("stdout", "stderr", "both"):
            raise _invalid("stream", "`stream` must be stdout, stderr or both")
        return text != "stderr", text != "stdout"

    def attempt(self) -> int:
        """Return the number of the requested attempt, 0 for none."""
        return self._integer("attempt", 0, 0, ATTEMPTS_MAX)

    def stream_offset(self, name: str) -> int | None:
        """Return the start offset in a stream, None to omit the stream."""
        if name not in self._values:
            return None
        return self._integer(name, 0, 0, OFFSET_MAX)

    def visitor(self) -> NodeId | None:
        """Return the id of a visitor, None if absent."""
        text = self._values.get("visitor")
        if text is None:
            return None
        if not is_visitor(NodeId(text)) or len(text) > _NAME_MAX:
            raise _invalid("visitor", "`visitor` must be the id of a visitor")
        return NodeId(text)

    def types(self, known: tuple[str, ...]) -> tuple[str, ...]:
        """Return the types of events to send; the default is all."""
        text = self._values.get("types")
        if text is None:
            return known
        types = tuple(text.split(","))
        if not set(types) <= set(known):
            raise _invalid("types", f"`types` must be one or more of {','.join(known)}")
        return types

    def task(self) -> str | None:
        """Return the task whose events to send, None for all."""
        text = self._values.get("task")
        return None if text is None else task_ref(text, "task")

    def _integer(self, name: str, default: int, low: int, high: int) -> int:
        text = self._values.get(name)
        if text is None:
            return default
        if not _INTEGER.fullmatch(text) or not low <= int(text) <= high:
            raise _invalid(name, f"`{name}` must be an integer from {low} to {high}")
        return int(text)


def _label(text: str, field: str = "label") -> tuple[str, str | None]:
    name, sign, value = text.partition("=")
    if not _LABEL.fullmatch(name) or len(text) > _LABEL_CHARS_MAX or "\0" in value:
        raise _invalid(field, f"`{field}` must be NAME=VALUE, or NAME for any value")
    return name, value if sign else None


def task_ref(text: str, field: str = "id") -> str:
    """Return a task id from a path; raise `Problem` if it is invalid."""
    if not _REF.fullmatch(text) or text in (".", ".."):
        raise _invalid(field, "a task id is 1 to 64 characters of A-Z a-z 0-9 . _ -")
    return text


def logged_id(text: str) -> str:
    """Return a task id in the log's form; raise `Problem` if it is invalid."""
    if not _LOGGED.fullmatch(text) or text in (".", ".."):
        raise _invalid("id", "this is not an id of a task in the log")
    return text


ATTEMPT_PATH: Final = f"/{{task}}/{{attempt:{ATTEMPT_PATTERN}}}"
"""Path of an attempt of a task, between nodes."""


def attempt_in(path: Mapping[str, str]) -> tuple[TaskId, AttemptId]:
    """Return the task and the attempt in `ATTEMPT_PATH`; `Problem` if invalid."""
    return TaskId(logged_id(path["task"])), parse_attempt_id(path["attempt"])


def idempotency_key(text: str | None) -> str | None:
    """Return the value of `Idempotency-Key`; raise `Problem` if it is invalid."""
    if text is not None and not _KEY.fullmatch(text):
        raise _invalid(
            "Idempotency-Key", "the key is 1 to 255 visible ASCII characters"
        )
    return text


def output_path(clean: Callable[[str], str], text: str) -> str:
    """Return the normal form of an output path from a URL."""
    try:
        return clean(text)
    except ValueError as error:
        raise _invalid("path", str(error)) from None


def sha256(text: str) -> str:
    """Return the SHA-256 of a file from a URL."""
    if not SHA256.fullmatch(text):
        raise _invalid("sha256", "a file is named by its SHA-256: 64 digits of 0-9 a-f")
    return text


def _refuse_unknown(name: str, names: tuple[str, ...]) -> None:
    near = difflib.get_close_matches(name, names, n=1)
    if near:
        also = f"; did you mean `{near[0]}`?"
    elif names:
        also = f"; known parameters: {', '.join(names)}"
    else:
        also = "; this path accepts none"
    shown = name[:80]
    raise _invalid(shown, f"unknown query parameter `{shown}`{also}")


def _invalid(field: str, hint: str) -> Problem:
    return Problem(400, INVALID_VALUE, hint=hint, field=field)
