"""The requests of the REST API as values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple, Protocol, TypeAlias, TypeVar
from urllib.parse import quote, unquote, urlencode

import msgspec

from octaskly.client.errors import Invalid, NotOctaskly

IDS: Final = "/api/v1/ids"
TASKS: Final = "/api/v1/tasks"
ARRAYS: Final = "/api/v1/arrays"
NODES: Final = "/api/v1/nodes"
ATTEMPTS: Final = "/api/v1/attempts"
EVENTS: Final = "/api/v1/events"
STATS: Final = "/api/v1/stats"
CHECKUP: Final = "/api/v1/doctor"
MEMBERSHIP: Final = "/api/v1/membership"
TOKENS: Final = "/api/v1/tokens"

_T = TypeVar("_T")


class BodyParts(Protocol):
    """A request body that is read in parts, from its start for each try."""

    def __len__(self) -> int:
        """Return its size in bytes."""

    def __iter__(self) -> Iterator[bytes | memoryview]:
        """Yield its parts; may block, and raise OSError."""


Body: TypeAlias = bytes | memoryview | BodyParts


class Response(NamedTuple):
    """A response of any status; the names of `headers` are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Call(NamedTuple):
    """One request, idempotent by its method or key unless `is_unrepeatable`."""

    method: str
    path: str
    query: Mapping[str, object] = {}
    body: Body | None = None
    headers: Mapping[str, str] = {}
    extra_wait_s: float = 0.0  #: added to the timeout, for long polls and uploads
    is_unrepeatable: bool = False  #: a second request would have a second effect

    @property
    def task(self) -> str | None:
        """The task or array that its path names, as the caller wrote it."""
        for collection in (TASKS, ARRAYS):
            if self.path.startswith(f"{collection}/"):
                name = self.path.removeprefix(f"{collection}/").partition("/")[0]
                return unquote(name)
        return None

    @property
    def target(self) -> str:
        """Path and query, without parameters that are None."""
        given = {key: value for key, value in self.query.items() if value is not None}
        return f"{self.path}?{urlencode(given, doseq=True)}" if given else self.path


def resource_path(collection: str, name: str, *more: str) -> str:
    """Return the path of one task, array or node."""
    return "/".join([collection, quoted(name), *more])


def quoted(text: str) -> str:
    """Return a percent-encoded path segment; a lone surrogate becomes `?`."""
    return quote(text, safe="", errors="replace")


def _header(name: str, value: str) -> Mapping[str, str]:
    """Return a header; raise Invalid for a value that HTTP does not have."""
    if value.isascii() and value.isprintable():
        return {name: value}
    raise Invalid(
        f"{value[:80]!a} has a character that is not visible ASCII",
        status=400,
        field=name,
    )


def submission(
    body: bytes,
    *,
    key: str | None,
    durability: str | None,
    wait_s: float | None = None,
) -> Call:
    """Submit tasks, at most once per key; without a key, each call submits new ones.

    With `wait_s`, the response to a single task is like that to `task`.
    """
    headers = {} if key is None else _header("Idempotency-Key", key)
    query = {
        "durability": durability,
        "encoding": None if wait_s is None else "base64",
        "wait": None if wait_s is None else f"{wait_s:.3f}",
    }
    return Call("POST", TASKS, query, body, headers, is_unrepeatable=key is None)


def new_ids(count: int) -> Call:
    """Get ids for tasks that will be submitted."""
    return Call("GET", IDS, {"count": count})


def task(ref: str, *, wait_s: float = 0.0, is_exact: bool = True) -> Call:
    """Get a task with its output, once it has ended or `wait_s` has passed.

    The output is text, or base64 of the exact bytes with `is_exact`.
    """
    query = {
        "encoding": "base64" if is_exact else None,
        "wait": f"{wait_s:.3f}" if wait_s else None,
    }
    return Call("GET", resource_path(TASKS, ref), query, extra_wait_s=wait_s)


def newest(limit: int) -> Call:
    """List the newest tasks, newest first."""
    return Call("GET", TASKS, {"newest": "true", "limit": limit})


def candidates(short_id: str) -> Call:
    """List the tasks that a short id may mean."""
    return Call("GET", TASKS, {"ref": short_id})


def open_stream(path: str, query: Mapping[str, object], last_id: str = "") -> Call:
    """Open an event stream after the event `last_id`."""
    headers = _header("Last-Event-ID", last_id) if last_id else {}
    return Call("GET", path, query, headers=headers)


def cancel(ref: str, *, force: bool) -> Call:
    """Cancel a task."""
    query = {"force": "true"} if force else {}
    return Call("DELETE", resource_path(TASKS, ref), query)


def reprioritize(ref: str, priority: int) -> Call:
    """Change the priority of a task; repeating the call does no harm."""
    body = msgspec.json.encode({"priority": priority})
    return Call("POST", resource_path(TASKS, ref, "reprioritize"), body=body)


def retry(ref: str) -> Call:
    """Rerun an ended task as a new task; repeating the call returns the same one."""
    return Call("POST", resource_path(TASKS, ref, "retry"))


def found_retry(ref: str) -> Call:
    """Get the task that a retry of an ended task has made."""
    return Call("GET", resource_path(TASKS, ref, "retry"))


def retry_array(ref: str) -> Call:
    """Rerun the members that did not succeed, as a new array."""
    return Call("POST", resource_path(ARRAYS, ref, "retry"))


def explain(ref: str) -> Call:
    """Get the reason for a task's state."""
    return Call("GET", resource_path(TASKS, ref, "explain"))


def post_once(path: str, fields: object = None) -> Call:
    """Post a request that must not be repeated."""
    body = None if fields is None else msgspec.json.encode(fields)
    return Call("POST", path, body=body, is_unrepeatable=True)


def decode_body(reply: Response, kind: type[_T], node_label: str) -> _T:
    """Return the decoded body of a response.

    Raises:
        NotOctaskly: the body is not of this type.
    """
    try:
        return msgspec.json.decode(reply.body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise NotOctaskly(
            f"{node_label} answered with something that is not Octaskly's API",
            hint="octaskly --version    compare it with that of the agent",
        ) from error
