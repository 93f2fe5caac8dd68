"""A node's API whose every text is hostile: for each route, of the type it declares."""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from msgspec import inspect

from octaskly.api.http.handler_types import Route
from octaskly.api.routes.table import ROUTES
from octaskly.client.flows.rest_calls import TASKS
from octaskly.rest import tasks as rest
from octaskly.rest.base import ErrorBody
from octaskly.rest.client_types import Task
from octaskly.rest.mesh import NodeInfo
from tests.cli.stand_in import UnixServer

HOSTILE: Final = (
    "evil\x1b[2J\x1b]0;title\x07\x1b]52;c;cm0=\x07\x9b31m\x85\u202egnp.exe\r\u2066"
    "\nforged  completed\u2028forged"
)
AT: Final = "2026-02-06T12:00:00Z"

#: Values that a command acts upon, by field; None and 0 make it end.
ACTED_ON: Final[dict[str, Any]] = {
    "next": None,
    "left": 0,
    "running": 0,
    "workers": {"total": 1, "active": 1, "idle": 0},
    "stdout": "",
    "stderr": "",
    "stdout_truncated": False,
    "stderr_truncated": False,
    "exit_code": 3,
    "status": "failed",
    "replicas": 1,
    "array": None,
}
LEFT_OUT: Final = ("encoding", "retry_at")


def hostile(kind: Any, *, is_array: bool = False) -> Any:
    """Return JSON of a type, with hostile text wherever the type has a text."""
    return _fill(inspect.type_info(kind), is_array=is_array)


def _fill(kind: inspect.Type, *, is_array: bool) -> Any:  # noqa: C901, PLR0911  # A table.
    match kind:
        case inspect.Metadata(type=inner, extra_json_schema=schema):
            if schema and "enum" in schema:
                return schema["enum"][0]
            return AT if schema else _fill(inner, is_array=is_array)
        case inspect.StructType(fields=fields):
            return {
                field.encode_name: _field(field, is_array=is_array)
                for field in fields
                if field.encode_name not in LEFT_OUT
            }
        case inspect.UnionType(types=types):
            some = next(one for one in types if not isinstance(one, inspect.NoneType))
            return _fill(some, is_array=is_array)
        case inspect.ListType(item_type=inner):
            return [_fill(inner, is_array=is_array)]
        case inspect.TupleType(item_types=parts):
            return [_fill(part, is_array=is_array) for part in parts]
        case inspect.DictType(value_type=inner):
            return {HOSTILE: _fill(inner, is_array=is_array)}
        case inspect.IntType():
            return 1
        case inspect.FloatType():
            return 1.0
        case inspect.BoolType():
            return False
        case inspect.NoneType():
            return None
        case inspect.StrType() | inspect.AnyType():
            return HOSTILE
        case _:
            raise AssertionError(f"no JSON of {kind}")


def _field(field: inspect.Field, *, is_array: bool) -> Any:
    if field.encode_name in ACTED_ON and not (is_array and field.name == "array"):
        return ACTED_ON[field.encode_name]
    return _fill(field.type, is_array=is_array)


class Handler(BaseHTTPRequestHandler):
    """Answers each request as the route table declares."""

    protocol_version = "HTTP/1.1"
    is_array = False
    is_refusing = False
    streamed: set[str]

    def log_message(self, *_: object) -> None:
        """Log nothing."""

    def address_string(self) -> str:
        """Return a name for a client on a UNIX socket."""
        return "local"

    def handle_any(self) -> None:
        """Answer a request."""
        path = unquote(urlsplit(self.path).path)
        asked = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        route = _route_of(self.command, path)
        is_again = path in self.streamed
        if self.is_refusing or route is None or is_again:
            body = hostile(ErrorBody) | {"status": 400}
            self._answer(400, json.dumps(body, ensure_ascii=False).encode())
        elif route.media_type == "text/event-stream":
            if path.endswith("/events"):  # Ends a command that would go on for ever.
                self.streamed.add(path)
            self._answer(200, self._stream(path), route.media_type)
        else:
            status, kind = next(iter(route.responses.items()))
            if route.path == TASKS and self.command == "POST":
                is_list = asked.startswith(b"[")
                kind = list[rest.Created] if is_list else rest.Submitted
            body = None if kind is None else hostile(kind, is_array=self.is_array)
            self._answer(status, json.dumps(body, ensure_ascii=False).encode())

    def _answer(
        self, status: int, body: bytes, media: str = "application/json"
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", media)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _stream(self, path: str) -> bytes:
        task = hostile(Task, is_array=self.is_array)
        ended = hostile(Task) | {"index": 1, "at": AT}
        gap = {"bytes": 1, "stream": HOSTILE, "reason": HOSTILE}
        attempt = {"attempt": 2, "node": HOSTILE, "previous": HOSTILE}
        events: list[tuple[str, dict[str, Any]]] = [("end", task)]
        if path.endswith("/logs"):
            out = {"data": "eA==", "encoding": "base64", "offset": 0}
            events[:0] = [("stdout", out), ("gap", gap), ("attempt", attempt)]
            events[:0] = [("state", task)]
        elif path.endswith("/results"):
            events[:0] = [("result", ended)]
        else:
            events[:0] = [("task", ended), ("node", hostile(NodeInfo) | {"at": AT})]
        return "".join(
            f"event: {kind}\nid: 1-1:{n}\ndata: {json.dumps(data)}\n\n"
            for n, (kind, data) in enumerate(events, 1)
        ).encode()

    do_GET = do_POST = do_DELETE = handle_any  # noqa: N815 - the library's names


def _route_of(method: str, path: str) -> Route | None:
    for route in ROUTES:
        pattern = re.sub(r"\{\w+\}", "[^/]+", route.path.replace(".", r"\."))
        if route.method == method and re.fullmatch(pattern, path, re.DOTALL):
            return route
    return None


@contextlib.contextmanager
def serving_hostile_text(
    path: Path, *, is_array: bool = False, is_refusing: bool = False
) -> Iterator[None]:
    """Serve on a UNIX socket."""
    fields: dict[str, Any] = {"is_array": is_array, "is_refusing": is_refusing}
    fields["streamed"] = set()
    server = UnixServer(str(path), type("HostileHandler", (Handler,), fields))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        path.unlink()
