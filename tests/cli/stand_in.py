"""A node's API as the reference says it, small, real HTTP, on a real socket.

Commands are really run, by /bin/sh, each in a thread. It lets the tests of the
command line hold answers back, refuse, and break connections.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import signal
import socketserver
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

STREAMS = ("stdout", "stderr")
FINAL = ("completed", "failed", "cancelled")
TOKEN = "a-token"

Answer = tuple[int, dict[str, Any] | list[Any]]
Refusal = Callable[[str, str], tuple[int, dict[str, str]] | None]


@dataclass
class Api:
    """The state of the stand-in; tests may set its fields."""

    name: str = "here"
    needs_token: bool = False
    refuse: Refusal = lambda _method, _path: None
    gives_ids: bool = True  #: otherwise it is an older node
    awaits_end: bool = False  #: of a task, if its submission wants to wait
    named: int = 0  #: reserved ids
    refusal: str = "Refused"  #: the text of the error
    refusal_hint: str = "the test said so"
    refusal_field: str | None = None
    forced: dict[str, Any] = field(default_factory=dict)
    answers: dict[str, Any] = field(default_factory=dict)
    """By path; a function makes one of the body of the request."""
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    stall: str = ""  #: the obstacles in every explanation
    left: int = 0  #: times that a drained node still shows tasks
    steered: str = "draining"
    logs: bytes = b""  #: of every task, instead of its output
    logs_break: int = 0  #: streams that end after their first event
    bodies: list[Any] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    ended: threading.Condition = field(default_factory=threading.Condition)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def drafts(self) -> list[dict[str, Any]]:
        """All tasks that were submitted, also if they were refused."""
        bodies = (b if isinstance(b, list) else [b] for b in self.bodies)
        return [draft for body in bodies for draft in body if "command" in draft]

    def new_ids(self, count: int) -> list[str]:
        last = max(self.named, len(self.tasks))
        self.named = last + count
        numbers = range(last + 1, self.named + 1)
        return [f"task-{number:03}-{number:08x}" for number in numbers]

    def submit(self, body: dict[str, Any]) -> dict[str, Any]:
        number, limit = len(self.tasks) + 1, body.get("timeout", 3600)
        task = {
            "id": body.get("id") or f"task-{number:03}-{number:08x}",
            "command": body["command"],
            "status": "running",
            "worker_id": self.name,
            "timeout": None if limit == "none" else limit,
            "inputs": body.get("inputs", []),
            "outputs": [
                {"path": path, "bytes": None} for path in body.get("outputs", [])
            ],
            "created_at": "2026-02-06T12:00:00Z",
        }
        self.processes[task["id"]] = subprocess.Popen(
            ["/bin/sh", "-c", task["command"]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self.tasks[task["id"]] = task
        answer = dict(task)  # Before the thread adds to it.
        threading.Thread(target=self.run, args=(task,), daemon=True).start()
        return answer

    def run(self, task: dict[str, Any]) -> None:
        process = self.processes[task["id"]]
        reason = "exit"
        try:
            stdout, stderr = process.communicate(timeout=task["timeout"])
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            stdout, stderr = process.communicate()
            reason = "timeout"
        code = process.returncode
        if code < 0:
            reason = "signal" if reason == "exit" else reason
            task["signal"], code = -code, 128 - code
        with self.ended:
            if task["status"] != "cancelled":
                task["status"] = "completed" if code == 0 else "failed"
                task["reason"] = reason
                task["exit_code"] = 124 if reason == "timeout" else code
            task |= {"raw": (stdout, stderr), "duration_ms": 12}
            self.ended.notify_all()

    def find(self, ref: str) -> dict[str, Any] | None:
        if ref in self.tasks:
            return self.tasks[ref]
        found = [task for key, task in self.tasks.items() if key.startswith(f"{ref}-")]
        return found[0] if len(found) == 1 else None

    def show(self, task: dict[str, Any], *, exact: bool) -> dict[str, Any]:
        shown = {key: value for key, value in task.items() if key != "raw"}
        raw = task.get("raw", (b"", b""))
        for name, data in zip(("stdout", "stderr"), raw, strict=True):
            text = data.decode("utf-8", "replace")
            shown[name] = base64.b64encode(data).decode() if exact else text
            shown[f"{name}_bytes"] = len(data)
            shown[f"{name}_truncated"] = False
        shown |= self.forced
        return shown | ({"encoding": "base64"} if exact else {})

    def close(self) -> None:
        for process in self.processes.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def short_id(task: str) -> dict[str, str]:
    """Return the number of an id, or the first of its digits if it is derived."""
    match = re.fullmatch(r"task-0*(\d+)-(\w{8})", task)
    if match is None:
        return {}
    return {"short_id": match[1] if len(match[1]) < 12 else match[2][:4]}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    api: Api

    def log_message(self, *_: object) -> None:
        pass

    def address_string(self) -> str:
        return "local"

    def answer(
        self, status: int, body: Any, headers: dict[str, str] | None = None
    ) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(data)

    def handle_any(self) -> None:
        split = urlsplit(self.path)
        api, method = self.api, self.command
        length = int(self.headers.get("Content-Length") or 0)
        data = self.rfile.read(length)
        is_json = "json" in self.headers.get("Content-Type", "")
        body = json.loads(data) if data and is_json else None
        api.requests.append(f"{method} {self.path}")
        api.headers.append(dict(self.headers))
        if body is not None:
            api.bodies.append(body)
        refused = api.refuse(method, split.path)
        if refused is not None:
            status, headers = refused
            if status == 0:
                self.close_connection = True
                return
            said = {"error": api.refusal, "status": status, "hint": api.refusal_hint}
            self.answer(status, said | {"field": api.refusal_field}, headers)
            return
        if api.needs_token and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.answer(401, {"error": "Missing or invalid authentication token"})
            return
        query = {key: values[0] for key, values in parse_qs(split.query).items()}
        if split.path in api.answers:
            known = api.answers[split.path]
            self.answer(200, known(body) if callable(known) else known)
            return
        status, answer = self.route(method, split.path, query, body)
        self.answer(status, answer)

    def route(
        self, method: str, path: str, query: dict[str, str], body: Any
    ) -> tuple[int, Any]:
        api = self.api
        match method, path.strip("/").split("/"):
            case "POST", ["api", "v1", "tasks"]:
                if isinstance(body, list):
                    return 201, [api.submit(item) for item in body]
                accepted = api.submit(body)
                if api.awaits_end and "wait" in query:
                    accepted = self.ended(accepted["id"], query)
                return 201, accepted
            case "GET", ["api", "v1", "tasks"]:
                return 200, self.page(query)
            case "GET", ["api", "v1", "tasks", ref]:
                return self.one(unquote(ref), query)
            case "DELETE", ["api", "v1", "tasks", ref]:
                return self.delete(unquote(ref), query)
            case "GET", ["api", "v1", "nodes" | "stats" as kind]:
                return 200, STATS if kind == "stats" else NODES
            case "POST", ["api", "v1", "tokens"]:
                text = f"{body['role']}.{body['expires_s']}"
                return 201, {"token": text, "id": "0f" * 16, "name": body.get("name")}
            case _:
                return self.other(path, query)

    def other(self, path: str, query: dict[str, str]) -> tuple[int, Any]:
        match path.strip("/").split("/"):
            case ["api", "v1", "ids"] if self.api.gives_ids:
                return 200, {"ids": self.api.new_ids(int(query["count"]))}
            case ["api", "v1", "tasks", ref, "logs"]:
                return self.logs(unquote(ref), query)
            case ["api", "v1", "tasks", ref, "explain"]:
                # A client that has waited for long asks, as on a slow machine.
                state = "queued" if self.api.stall else "running"
                explanation = {"status": state, "summary": self.api.stall, "nodes": []}
                return 200, {"id": ref} | explanation
            case ["api", "v1", "attempts"]:
                return 200, {"running": [], "now": "2026-02-06T12:00:00.000Z"}
            case ["api", "v1", "tokens"]:
                return 200, {"tokens": []}
            case ["api", "v1", "nodes", name, *order]:
                return 200, self.node(unquote(name), order)
            case _:
                return 404, {"error": "Not found", "status": 404}

    def node(self, name: str, order: list[str]) -> dict[str, Any]:
        if order:
            state = {"drain": "draining", "pause": "paused"}.get(order[0], "ready")
            return NODE | {"name": name, "id": name, "state": state}
        self.api.left -= 1
        news = {"running": self.api.left + 1, "state": self.api.steered}
        return NODE | {"name": name, "id": name} | news

    def page(self, query: dict[str, str]) -> dict[str, Any]:
        api = self.api
        found = [
            api.show(task, exact=False) | short_id(task["id"])
            for task in api.tasks.values()
            if query.get("status") in (None, task["status"])
            and query.get("worker_id") in (None, task["worker_id"])
            and query.get("name") in (None, task.get("name"))
            and task["id"][-8:].startswith(query.get("ref", ""))
        ]
        if query.get("newest") == "true":
            found.reverse()
        start, limit = int(query.get("offset", 0)), int(query.get("limit", 100))
        if "after" in query:
            ids = [task["id"] for task in found]
            start = ids.index(query["after"]) + 1
        part = found[start : start + limit]
        return {"tasks": part, "total": len(found), "returned": len(part)}

    def one(self, ref: str, query: dict[str, str]) -> Answer:
        api = self.api
        exact = query.get("encoding") == "base64"
        if not re.fullmatch(r"[\w.~-]{1,64}", ref, re.ASCII):
            return 400, {"error": "Invalid parameter value", "status": 400}
        task = api.find(ref)
        if task is None:
            return _no_task(ref)
        with api.ended:
            api.ended.wait_for(lambda: "raw" in task, float(query.get("wait", 0)))
        return 200, api.show(task, exact=exact)

    def ended(self, task: str, query: dict[str, str]) -> dict[str, Any]:
        """Return a task with its end, however short the wait that is wanted."""
        api = self.api
        with api.ended:
            api.ended.wait_for(lambda: "raw" in api.tasks[task])
        return api.show(api.tasks[task], exact=query.get("encoding") == "base64")

    def logs(self, ref: str, query: dict[str, str]) -> tuple[int, Any]:
        """Return a stream of events, all of it at once."""
        api = self.api
        task = api.find(ref)
        if task is None:
            return _no_task(ref)
        if api.logs:
            return 200, api.logs
        if query["follow"] == "true":
            with api.ended:
                api.ended.wait_for(lambda: "raw" in task)
        events = []
        ids = [0, 0]
        for n, (name, data) in enumerate(
            zip(STREAMS, task.get("raw", (b"", b"")), strict=True)
        ):
            if data and query["stream"] in (name, "both"):
                ids[n] = len(data)
                text = {"data": base64.b64encode(data).decode(), "encoding": "base64"}
                events.append((name, f"1-1-1:{ids[0]}:{ids[1]}", {"offset": 0} | text))
        shown = api.show(task, exact=False)
        events.append(("end", f"1-1-1:{ids[0]}:{ids[1]}", shown))
        lines = [
            f"event: {kind}\nid: {event_id}\ndata: {json.dumps(data)}\n\n"
            for kind, event_id, data in events
            if event_id != self.headers.get("Last-Event-ID") or kind == "end"
        ]
        if api.logs_break:
            api.logs_break -= 1
            del lines[1:]
        return 200, "".join(lines).encode()

    def delete(self, ref: str, query: dict[str, str]) -> Answer:
        task = self.api.find(ref)
        if task is None or task["status"] in ("completed", "failed"):
            return 404, {"error": "Task not found", "status": 404}
        if query.get("force") != "true":
            return 409, {"error": "Cannot cancel running task", "status": 409}
        task["status"] = task["reason"] = "cancelled"
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.api.processes[task["id"]].pid, signal.SIGKILL)
        return 200, {"id": task["id"], "status": "cancelled"}

    do_GET = do_POST = do_DELETE = handle_any  # noqa: N815 - the library's names


NODE = {
    "name": "here",
    "id": "0011",
    "role": "dispatcher",
    "state": "ready",
    "addresses": ["127.0.0.1:7878"],
    "slots": 2,
    "running": 1,
    "load": {"cpu_percent": 12.4, "memory_used_mb": 1024, "disk_free_mb": 40_000},
    "memory_mb": 4096,
    "labels": {"room": "attic"},
    "version": "0.1.0",
    "last_seen": "2026-02-06T12:00:00Z",
}
NODES = {"nodes": [NODE], "total": 1}
STATS = {
    "workers": {"total": 3, "active": 2, "idle": 1},
    "tasks": {
        "queued": 5,
        "running": 2,
        "completed": 150,
        "failed": 3,
        "cancelled": 0,
    },
    "system": {"uptime_seconds": 90, "memory_usage_mb": 512, "cpu_usage_percent": 25.5},
    "database": {"total_tasks": 160, "disk_size_mb": 15},
}


class Threading(socketserver.ThreadingMixIn):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that left, because some tests cause that."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[misc]


class UnixServer(Threading, socketserver.UnixStreamServer):
    pass


class TcpServer(Threading, socketserver.TCPServer):
    pass


@contextlib.contextmanager
def serving(api: Api, path: Path | None = None) -> Iterator[str]:
    """Serve on a UNIX socket, or on a free loopback port; yield the address."""
    handler = type("ApiHandler", (Handler,), {"api": api})
    server: UnixServer | TcpServer = (
        TcpServer(("127.0.0.1", 0), handler)
        if path is None
        else UnixServer(str(path), handler)
    )
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield (
            str(path) if path else f"http://127.0.0.1:{server.socket.getsockname()[1]}"
        )
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        api.close()


def _no_task(ref: str) -> tuple[int, dict[str, Any]]:
    hint = f"no task is called {ref}"
    return 404, {"error": "Task not found", "status": 404, "hint": hint}
