"""Query parameters, path parts and headers as typed values."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Final, Literal

import msgspec

from octaskly.api.problems import INVALID_VALUE, Problem
from octaskly.api.schemas.base import SHA256
from octaskly.api.schemas.task_request import BATCH_MAX
from octaskly.config.defaults import DURABILITIES
from octaskly.core.model.tasks import TaskState
from octaskly.ports import TaskSearch

LIMIT_DEFAULT = 100
LIMIT_MAX = 1000
OFFSET_MAX = 2**53
ATTEMPTS_MAX = 10**9
WAIT_S_MAX = 300.0
SINCE_S_MAX = 90 * 86_400

_REF = re.compile(r"[A-Za-z0-9._-]{1,64}(\.[0-9]{1,9})?(~[0-9]{1,3})?")
_LOGGED = re.compile(r"[A-Za-z0-9._-]{1,64}(\.[0-9]{1,9})?(~[0-9a-f]{14,15})?")
_INTEGER = re.compile(r"[0-9]{1,16}")
_SECONDS = re.compile(r"[0-9]{1,3}(\.[0-9]{1,3})?")
_LABEL = re.compile(r"[A-Za-z0-9._/-]{1,64}")
_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_NAME_MAX = 255
_TEXT_CHARS_MAX = 256
_LABEL_CHARS_MAX = 64 + 1 + 256
_LABELS_MAX = 32
_REPEATABLE = ("label",)  #: parameters that may be given several times

_Ref = Annotated[str, msgspec.Meta(pattern=f"^{_REF.pattern}$")]
_Text = Annotated[str, msgspec.Meta(min_length=1, max_length=_TEXT_CHARS_MAX)]
_Start = Annotated[int, msgspec.Meta(ge=0, le=OFFSET_MAX)]

PARAMETERS: Final[Mapping[str, tuple[Any, str]]] = {
    "after": (str, "`next` of an earlier answer: go on behind it"),
    "array": (_Ref, "only members of this array; else all tasks that are no members"),
    "attempt": (
        Annotated[int, msgspec.Meta(ge=0, le=ATTEMPTS_MAX)],
        "number of the attempt that is read; 0, as none: the one that counts",
    ),
    "count": (
        Annotated[int, msgspec.Meta(ge=1, le=BATCH_MAX)],
        "how many there shall be; 1 unless told",
    ),
    "durability": (
        Literal["normal", "strict"],
        "strict: refused with 503, rather than accepted with one copy only",
    ),
    "encoding": (Literal["utf-8", "base64"], "of stdout and stderr"),
    "fail_fast": (bool, "true: refused where no node could ever run it"),
    "follow": (bool, "true: go on until the task has ended"),
    "force": (bool, "true: end what runs, too"),
    "kept": (bool, "true: with the bytes of output that the log has"),
    "known": (str, "what is known already: answer once that has changed"),
    "label": (
        list[Annotated[str, msgspec.Meta(min_length=1, max_length=_LABEL_CHARS_MAX)]],
        "only tasks with this label, as NAME=VALUE or NAME alone; of several all",
    ),
    "limit": (
        Annotated[int, msgspec.Meta(ge=1, le=LIMIT_MAX)],
        f"how many items at most; {LIMIT_DEFAULT} unless told",
    ),
    "name": (_Text, "only tasks with this name, which is not their id"),
    "newest": (bool, "true: the latest first"),
    "now": (bool, "true: the old secret is over within seconds"),
    "order": (
        Literal["end", "number"],
        "in which results come: as members end, or by their numbers",
    ),
    "offset": (_Start, "how many items, or bytes of each stream, to skip"),
    "since_s": (
        Annotated[int, msgspec.Meta(ge=0, le=SINCE_S_MAX)],
        "only what was not longer ago, in seconds; else the latest",
    ),
    "status": (TaskState, "only tasks in this state"),
    "stderr": (_Start, "offset in stderr; none: leave it out"),
    "stdout": (_Start, "offset in stdout; none: leave it out"),
    "stream": (Literal["stdout", "stderr", "both"], "which of them to send"),
    "task": (_Ref, "the only task to tell of"),
    "text": (_Text, "only tasks with this in their command or name; a for A, too"),
    "types": (
        Annotated[str, msgspec.Meta(pattern="^(task|node)(,(task|node))*$")],
        "which events to send",
    ),
    "wait": (
        Annotated[float, msgspec.Meta(ge=0, le=WAIT_S_MAX)],
        "how many seconds to wait for the end at most, in steps of 0.001",
    ),
    "worker_id": (
        Annotated[str, msgspec.Meta(min_length=1, max_length=_NAME_MAX)],
        "only tasks that this node runs or ran, by name or id",
    ),
}
"""Type of each parameter and what it means, for the OpenAPI document."""

PATH_PARTS: Final[Mapping[str, tuple[Any, str]]] = {
    "id": (_Ref, "id of a task"),
    "name": (str, "name or id of a node"),
    "other": (str, "name or id of another node"),
    "path": (str, "path of an output; it may have slashes"),
    "sha256": (
        Annotated[str, msgspec.Meta(pattern=f"^{SHA256.pattern}$")],
        "SHA-256 of the bytes of a file, in hexadecimal",
    ),
    "task": (
        Annotated[str, msgspec.Meta(pattern=f"^{_LOGGED.pattern}$")],
        "id of a task in the log",
    ),
    "term": (int, "term of the attempt"),
    "token": (str, "name or id of a token"),
    "stream": (int, "stream of the attempt"),
    "n": (int, "number of the attempt"),
}
"""The same of each variable part of a path."""


class Query:
    """The parameters of one request, each given at most once and known by name."""

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
        """Return how many are asked for."""
        return self._integer("count", 1, 1, BATCH_MAX)

    def offset(self) -> int:
        """Return how many items come before the page."""
        return self._integer("offset", 0, 0, OFFSET_MAX)

    def since_s(self) -> int | None:
        """Return how far back to go, None: it was not said."""
        if "since_s" not in self._values:
            return None
        return self._integer("since_s", 0, 0, SINCE_S_MAX)

    def status(self) -> TaskState | None:
        """Return the state to keep, None for all."""
        text = self._values.get("status")
        if text is None:
            return None
        try:
            return TaskState(text)
        except ValueError:
            states = ", ".join(state.value for state in TaskState)
            raise _invalid("status", f"`status` is one of {states}") from None

    def array(self) -> str | None:
        """Return the array whose members to keep, None for all that is no member."""
        text = self._values.get("array")
        return None if text is None else task_ref(text)

    def search(self) -> TaskSearch | None:
        """Return what tasks are to be like, but for the place to go on."""
        labels = tuple(map(_label, self._labels))
        if len(labels) > _LABELS_MAX:
            raise _invalid("label", f"at most {_LABELS_MAX} labels are looked for")
        name, text = self._words("name"), self._words("text")
        if not (labels or name or text):
            if "after" in self._values:
                raise _invalid("after", "`after` goes with `name`, `label` or `text`")
            return None
        for field, why in (("offset", "`after`"), ("array", "the array itself")):
            if self._values.get(field, "0") != "0":
                raise _invalid(field, f"a search takes no `{field}`, but {why}")
        return TaskSearch(name=name, labels=labels, text=text)

    def after(self) -> str | None:
        """Return the task behind which a search goes on."""
        text = self._values.get("after")
        return None if text is None else task_ref(text, "after")

    def _words(self, name: str) -> str | None:
        text = self._values.get(name)
        is_usable = text is None or (1 <= len(text) <= _TEXT_CHARS_MAX)
        if not is_usable or "\0" in (text or ""):
            raise _invalid(name, f"`{name}` is 1 to {_TEXT_CHARS_MAX} characters")
        return text

    def worker_id(self) -> str | None:
        """Return the name of the node whose tasks to keep, None for all."""
        text = self._values.get("worker_id")
        if text is not None and not 1 <= len(text) <= _NAME_MAX:
            raise _invalid("worker_id", "`worker_id` is the name of a node")
        return text

    def wait_s(self) -> float:
        """Return how long to wait for the end of a task."""
        text = self._values.get("wait")
        if text is None:
            return 0.0
        if not _SECONDS.fullmatch(text) or float(text) > WAIT_S_MAX:
            raise _invalid("wait", "`wait` is 0 to 300 seconds")
        return float(text)

    def is_base64(self) -> bool:
        """Return whether output is asked for as exact bytes, in base64."""
        text = self._values.get("encoding", "utf-8")
        if text not in ("utf-8", "base64"):
            raise _invalid("encoding", "`encoding` is utf-8 or base64")
        return text == "base64"

    def is_strict(self) -> bool:
        """Return whether a task with a single copy is to be refused."""
        text = self._values.get("durability", "normal")
        if text not in DURABILITIES:
            raise _invalid("durability", "`durability` is normal or strict")
        return text == "strict"

    def force(self) -> bool:
        """Return whether to end a task that runs."""
        return self.flag("force")

    def flag(self, name: str) -> bool:
        """Return a parameter that is true or false, which is the default."""
        text = self._values.get(name, "false")
        if text not in ("true", "false"):
            raise _invalid(name, f"`{name}` is true or false")
        return text == "true"

    def text(self, name: str) -> str:
        """Return a parameter that another node made up."""
        return self._values.get(name, "")

    def is_ordered_by_number(self) -> bool:
        """Return whether results are wanted in the order of members."""
        text = self._values.get("order", "end")
        if text not in ("end", "number"):
            raise _invalid("order", "`order` is end or number")
        return text == "number"

    def streams(self) -> tuple[bool, bool]:
        """Return whether stdout and stderr are asked for."""
        text = self._values.get("stream", "both")
        if text not in ("stdout", "stderr", "both"):
            raise _invalid("stream", "`stream` is stdout, stderr or both")
        return text != "stderr", text != "stdout"

    def attempt(self) -> int:
        """Return the number of the attempt that is asked for, 0 for none."""
        return self._integer("attempt", 0, 0, ATTEMPTS_MAX)

    def stream_offset(self, name: str) -> int | None:
        """Return where to begin in a stream, None to leave it out."""
        if name not in self._values:
            return None
        return self._integer(name, 0, 0, OFFSET_MAX)

    def types(self, known: tuple[str, ...]) -> tuple[str, ...]:
        """Return which kinds of events to send, all unless told."""
        text = self._values.get("types")
        if text is None:
            return known
        types = tuple(text.split(","))
        if not set(types) <= set(known):
            raise _invalid("types", f"`types` is one or more of {','.join(known)}")
        return types

    def task(self) -> str | None:
        """Return the only task to tell of, None for all."""
        text = self._values.get("task")
        return None if text is None else task_ref(text, "task")

    def _integer(self, name: str, default: int, low: int, high: int) -> int:
        text = self._values.get(name)
        if text is None:
            return default
        if not _INTEGER.fullmatch(text) or not low <= int(text) <= high:
            raise _invalid(name, f"`{name}` is an integer from {low} to {high}")
        return int(text)


def _label(text: str) -> tuple[str, str | None]:
    name, sign, value = text.partition("=")
    if not _LABEL.fullmatch(name) or len(text) > _LABEL_CHARS_MAX or "\0" in value:
        raise _invalid("label", "`label` is NAME=VALUE, or NAME for any value")
    return name, value if sign else None


def task_ref(text: str, field: str = "id") -> str:
    """Return a task id from a path; raise `Problem` unless it can be one."""
    if not _REF.fullmatch(text) or text in (".", ".."):
        raise _invalid(field, "a task id is 1 to 64 characters of A-Z a-z 0-9 . _ -")
    return text


def logged_id(text: str) -> str:
    """Return a task id as nodes know it; raise `Problem` unless it can be one."""
    if not _LOGGED.fullmatch(text) or text in (".", ".."):
        raise _invalid("id", "this is no id of a task in the log")
    return text


def idempotency_key(text: str | None) -> str | None:
    """Return the value of `Idempotency-Key`; raise `Problem` unless it is usable."""
    if text is not None and not _KEY.fullmatch(text):
        raise _invalid(
            "Idempotency-Key", "the key is 1 to 255 visible ASCII characters"
        )
    return text


def output_path(clean: Callable[[str], str], text: str) -> str:
    """Return the path of an output from a URL, in its normal form."""
    try:
        return clean(text)
    except ValueError as error:
        raise _invalid("path", str(error)) from None


def sha256(text: str) -> str:
    """Return the name of a file from a URL."""
    if not SHA256.fullmatch(text):
        raise _invalid("sha256", "64 digits of 0-9 a-f name a file: its SHA-256")
    return text


def _refuse_unknown(name: str, names: tuple[str, ...]) -> None:
    near = difflib.get_close_matches(name, names, n=1)
    if near:
        also = f"; did you mean `{near[0]}`?"
    elif names:
        also = f"; known are {', '.join(names)}"
    else:
        also = "; this path takes none"
    shown = name[:80]
    raise _invalid(shown, f"unknown query parameter `{shown}`{also}")


def _invalid(field: str, hint: str) -> Problem:
    return Problem(400, INVALID_VALUE, hint=hint, field=field)
