"""The requests of the REST API as methods with types."""

from __future__ import annotations

import http.client
from collections.abc import Generator, Iterator, Sequence
from typing import Any, BinaryIO, TypeVar
from urllib.parse import quote

import msgspec

from octaskly.client.calls import Reply
from octaskly.client.connection import REPLY_S_MAX, Connection, refusal
from octaskly.client.errors import Refused, ReplyLost
from octaskly.client.records import (
    Checkup,
    Draft,
    Membership,
    NodeInfo,
    NodePage,
    Reach,
    Task,
    TaskPage,
)
from octaskly.client.streams import Event, events
from octaskly.errors import MeshError

TASKS = "/api/v1/tasks"
ARRAYS = "/api/v1/arrays"
MEMBERSHIP = "/api/v1/membership"
BATCH_TASKS_MAX = 10_000  #: what one submission may hold
BATCH_BYTES_MAX = 31 << 20  #: the node takes bodies of 32 MiB
WAIT_S_MAX = 300  #: longest long poll that a node grants
CHUNK_BYTES = 1 << 18

_T = TypeVar("_T")


class _Array(msgspec.Struct):
    """What is read of an array."""

    failed_members: list[Task] = []


class Client(Connection):
    """The API of one node; a context manager, not for several threads."""

    # -- tasks ---------------------------------------------------------------------

    def submit(
        self,
        drafts: Sequence[Draft],
        *,
        idempotency_key: str | None = None,
        durability: str | None = None,
    ) -> list[Task]:
        """Submit tasks in as few requests as their number allows, in order.

        Each request is all or nothing. With a key, asking again is harmless. With the
        durability `strict`, tasks of which there would be one copy are refused.
        """
        accepted: list[Task] = []
        for index, batch in enumerate(_batches(drafts)):
            headers = {}
            if idempotency_key is not None:
                suffix = f"-{index}" if index else ""
                headers["Idempotency-Key"] = idempotency_key + suffix
            reply = self.request(
                "POST",
                TASKS,
                query={"durability": durability},
                body=batch,
                headers=headers,
            )
            accepted += self._decode(reply, list[Task])
        return accepted

    def task(self, ref: str, *, wait_s: int = 0, exact: bool = False) -> Task:
        """Return a task, waiting up to `wait_s` seconds for its end.

        With `exact`, the output comes as the exact bytes where the node can do that.
        """
        return self._decode(self.task_reply(ref, wait_s=wait_s, exact=exact), Task)

    def task_reply(self, ref: str, *, wait_s: int = 0, exact: bool = False) -> Reply:
        """As `task`, undecoded."""
        query: dict[str, object] = {"wait": wait_s} if wait_s else {}
        path = f"{TASKS}/{quote(ref, safe='')}"
        if not exact:
            return self.request("GET", path, query=query, wait_s=wait_s)
        try:
            return self.request(
                "GET", path, query={**query, "encoding": "base64"}, wait_s=wait_s
            )
        except Refused as error:
            if error.status != http.HTTPStatus.BAD_REQUEST or error.field == "id":
                raise
            return self.request("GET", path, query=query, wait_s=wait_s)

    def tasks(
        self,
        *,
        status: str | None = None,
        worker_id: str | None = None,
        limit: int = 100,
        offset: int = 0,
    ) -> TaskPage:
        """Return one page of tasks, oldest first."""
        query = {
            "status": status,
            "worker_id": worker_id,
            "limit": limit,
            "offset": offset,
        }
        return self._decode(self.request("GET", TASKS, query=query), TaskPage)

    def newest_tasks(self, limit: int) -> list[Task]:
        """Return at most so many of the newest tasks, the newest first."""
        total = self.tasks(limit=1).total or 0
        found = self.tasks(limit=limit, offset=max(total - limit, 0)).tasks
        return found[::-1]

    def newest(self) -> str | None:
        """Return the id of the newest task, None where there is none."""
        return next((task.id for task in self.newest_tasks(1)), None)

    def cancel(self, ref: str, *, force: bool = False) -> Reply:
        """Cancel a queued task, with `force` also a running one."""
        query = {"force": "true"} if force else {}
        return self.request("DELETE", f"{TASKS}/{quote(ref, safe='')}", query=query)

    def failed_members(self, array: str, *, limit: int = 100) -> list[Task]:
        """Return the first members of an array that failed."""
        path = f"{ARRAYS}/{quote(array, safe='')}"
        reply = self.request("GET", path, query={"limit": limit})
        return self._decode(reply, _Array).failed_members

    def results(
        self, array: str, *, offset: int = 0, is_by_number: bool = False
    ) -> Generator[Event]:
        """Yield how the members of an array end and what they wrote, as events.

        The last one is `end`, with the array. A stream that ends without it is asked
        for again; what comes twice has the same position.

        Args:
            array: Its id.
            offset: How many of the first members are left out.
            is_by_number: Whether they come in their order, not as they end.
        """
        order = "number" if is_by_number else "end"
        response = self.begin(
            "GET",
            f"{ARRAYS}/{quote(array, safe='')}/results",
            query={"order": order, "offset": offset},
        )
        yield from self._events(response)

    def retry(self, ref: str) -> Reply:
        """Run an ended task once more, as another task; who repeats it gets that."""
        return self.request("POST", f"{TASKS}/{quote(ref, safe='')}/retry")

    def forget(self, older_than_s: int) -> Reply:
        """Forget tasks that ended so long ago, on all nodes; only an admin may."""
        body = msgspec.json.encode({"older_than_s": older_than_s})
        return self.request("POST", "/api/v1/forget", body=body)

    def logs(
        self,
        ref: str,
        *,
        stream: str = "both",
        follow: bool = False,
        attempt: int | None = None,
        last_id: str = "",
    ) -> Generator[Event]:
        """Yield what a task writes, and what happens to it, as events.

        With `follow` until it has ended, which the last event says: `end`. A stream
        that ends without it goes on where it was with the id of its last event. With
        an attempt's number it is about that one alone.
        """
        response = self.begin(
            "GET",
            f"{TASKS}/{quote(ref, safe='')}/logs",
            query={
                "stream": stream,
                "follow": "true" if follow else "false",
                "attempt": attempt,
            },
            headers={"Last-Event-ID": last_id} if last_id else {},
        )
        yield from self._events(response)

    def events(
        self, *, types: str, task: str | None = None, last_id: str = ""
    ) -> Generator[Event]:
        """Yield what happens to tasks and nodes, until the stream ends.

        With the id of the last event it goes on there.
        """
        response = self.begin(
            "GET",
            "/api/v1/events",
            query={"types": types, "task": task},
            headers={"Last-Event-ID": last_id} if last_id else {},
        )
        yield from self._events(response)

    def _events(self, response: http.client.HTTPResponse) -> Generator[Event]:
        try:
            yield from events(lambda: self.piece(response, CHUNK_BYTES, REPLY_S_MAX))
        finally:
            self.close()  # Whatever is left of it is nobody's answer.

    def save_output(self, ref: str, path: str, target: BinaryIO) -> int:
        """Write a declared output of a task into `target`; return its bytes."""
        where = f"{TASKS}/{quote(ref, safe='')}/outputs/{quote(path)}"
        response = self.exchange("GET", where, None, {}, REPLY_S_MAX)
        if response.status >= http.HTTPStatus.BAD_REQUEST:
            raise refusal(response, response.read())
        size = 0
        try:
            while chunk := response.read(CHUNK_BYTES):
                size += target.write(chunk)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise ReplyLost(f"{self.place} stopped sending {path!r}") from error
        return size

    # -- the mesh ------------------------------------------------------------------

    def nodes(self) -> NodePage:
        """Return the nodes of the mesh."""
        return self._decode(self.request("GET", "/api/v1/nodes"), NodePage)

    def node(self, name: str) -> NodeInfo:
        """Return one node of the mesh."""
        path = f"/api/v1/nodes/{quote(name, safe='')}"
        return self._decode(self.request("GET", path), NodeInfo)

    def checkup(self) -> Checkup:
        """Return how the node is set up; also where it is in no mesh."""
        return self._decode(self.request("GET", "/api/v1/doctor"), Checkup)

    def reach(self, name: str, other: str) -> Reach:
        """Return whether a node opens connections to another."""
        path = f"/api/v1/nodes/{quote(name, safe='')}/reach/{quote(other, safe='')}"
        return self._decode(self.request("GET", path), Reach)

    def steer(self, name: str, steering: str) -> Reply:
        """Drain, resume, pause or unpause a node; it answers with itself."""
        return self.request("POST", f"/api/v1/nodes/{quote(name, safe='')}/{steering}")

    def rotation(self) -> Reply:
        """Return how far the renewal of the mesh secret is."""
        return self.request("GET", "/api/v1/rotation")

    def rotate(self) -> Reply:
        """Begin to renew the mesh secret; only an admin may."""
        return self.request("POST", "/api/v1/rotation")

    def revoke(self, name: str) -> Reply:
        """Renew the mesh secret at once, without a node."""
        return self.request("POST", f"/api/v1/nodes/{quote(name, safe='')}/revoke")

    def stats(self) -> dict[str, Any]:
        """Return the counts of the whole mesh."""
        return self._decode(self.request("GET", "/api/v1/stats"), dict[str, Any])

    def create_token(
        self, *, role: str, expires_s: int, subject: str | None = None
    ) -> str:
        """Return a new token of the mesh; only an admin may make one."""
        made = self.issue_token(role=role, expires_s=expires_s, subject=subject)
        return str(made["token"])

    def issue_token(
        self,
        *,
        role: str,
        expires_s: int,
        subject: str | None = None,
        name: str | None = None,
    ) -> dict[str, Any]:
        """Return a new token, its id, and the name by which it is listed."""
        wanted = {"role": role, "expires_s": expires_s, "subject": subject}
        wanted["name"] = name
        body = msgspec.json.encode(
            {key: value for key, value in wanted.items() if value is not None}
        )
        reply = self.request("POST", "/api/v1/tokens", body=body)
        return self._decode(reply, dict[str, Any])

    def revoke_token(self, ref: str) -> Reply:
        """Revoke a token by its name or id."""
        return self.request("DELETE", f"/api/v1/tokens/{quote(ref, safe='')}")

    # -- joining -------------------------------------------------------------------

    def membership(self) -> Membership:
        """Return what the local node belongs to, and what it would leave behind."""
        return self._decode(self.request("GET", MEMBERSHIP), Membership)

    def enter(self, keyring: str, *, seeds: Sequence[str], force: bool) -> Reply:
        """Make the local node a member of the mesh with this keyring."""
        wanted = {"keyring": keyring, "seeds": seeds, "force": force}
        return self.request("POST", MEMBERSHIP, body=msgspec.json.encode(wanted))

    def leave(self, *, force: bool) -> Reply:
        """Let the local node leave its mesh for good."""
        body = msgspec.json.encode({"force": force})
        return self.request("POST", f"{MEMBERSHIP}/leave", body=body)

    def invite(self, ttl_s: int) -> Reply:
        """Open an invite at the local node."""
        body = msgspec.json.encode({"ttl_s": ttl_s})
        return self.request("POST", "/api/v1/invites", body=body)

    def requests(self) -> Reply:
        """Look for machines that want in; return those that wait for the local node."""
        return self.request("GET", "/api/v1/requests")

    def approve(self, node: str, fingerprint: str) -> Reply:
        """Let a machine in that waits and shows these words."""
        return self._answer(node, fingerprint, "approve")

    def refuse(self, node: str, fingerprint: str) -> Reply:
        """Send a machine away that waits and shows other words than these."""
        return self._answer(node, fingerprint, "refuse")

    def _answer(self, node: str, fingerprint: str, answer: str) -> Reply:
        path = f"/api/v1/requests/{quote(node, safe='')}/{answer}"
        body = msgspec.json.encode({"fingerprint": fingerprint})
        return self.request("POST", path, body=body)

    def health(self) -> dict[str, Any]:
        """Return whether the node can serve; needs no token."""
        return self._decode(self.request("GET", "/health"), dict[str, Any])

    def _decode(self, reply: Reply, kind: type[_T]) -> _T:
        try:
            return msgspec.json.decode(reply.body, type=kind)
        except msgspec.DecodeError as error:
            raise MeshError(
                f"{self.place} answered with something that is not Octaskly's API",
                hint="octaskly --version    compare it with that of the agent",
            ) from error


def _batches(drafts: Sequence[Draft]) -> Iterator[bytes]:
    """Yield request bodies: JSON arrays within the bounds of the API."""
    items: list[bytes] = []
    size = 0
    for draft in drafts:
        item = msgspec.json.encode(draft)
        if items and (
            len(items) == BATCH_TASKS_MAX or size + len(item) > BATCH_BYTES_MAX
        ):
            yield b"[" + b",".join(items) + b"]"
            items, size = [], 0
        items.append(item)
        size += len(item) + 1
    if items:
        yield b"[" + b",".join(items) + b"]"
