"""Notes what is changed and refused at this node, and hands it to the dispatcher.

Whoever decides writes it down: the node that carries a request out, or refuses it.
The first few of a kind are written one by one, the rest of the minute as one line with
a count; so neither a client that submits a thousand times a second nor somebody who
tries tokens fills the log.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from http import HTTPStatus
from itertools import chain, islice
from typing import Final
from urllib.parse import unquote

import aiohttp
import msgspec
from aiohttp import web

from octaskly.api.http.node_client import HOP_HEADER, SOURCE_HEADER
from octaskly.api.http.request import NOTED_MAX, Access, Call, Parts, Route, Seen
from octaskly.api.problems import MALFORMED_JSON, Problem
from octaskly.core.model.ids import NodeId
from octaskly.errors import MeshError, OctasklyError
from octaskly.ports import Deed, DispatcherView, Principal

PATH: Final = "/internal/v1/audit"
REFUSED: Final = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
READING: Final = ("GET", "HEAD", "OPTIONS", "")
WINDOW_MS: Final = 60_000
SINGLES: Final = 10  #: of one kind in a minute, written one by one,
SINGLES_REFUSED: Final = 1  #: and so many where they were refused
GROUPS_MAX: Final = 64  #: kinds in a minute; the rest is counted as one
STRANGERS_MAX: Final = 16  #: and of those who did not show who asks
WAITING_MAX: Final = 2000  #: lines that wait for a dispatcher; then the oldest go
STRANGERS_WAITING_MAX: Final = 200  #: and of those who did not show who asks
BATCH: Final = 100
FLUSH_S: Final = 0.2
RETRY_S: Final = 1.0
SEND_S: Final = 5.0
TARGET_CHARS_MAX: Final = 160  #: so that a batch fits into a body, whoever chose it
MANY: Final = "many"  #: the source of what is counted as one

_Kind = tuple[object, ...]


@dataclass(slots=True)
class _Group:
    """What was alike since a moment."""

    began_ms: int
    count: int = 0
    held: Deed | None = None  #: beyond those that were written one by one


class Auditor:
    """What one node has to tell; `run` tells it.

    Args:
        parts: Who is dispatcher, and the way to it; the clock.
        prefix: Of their ids, for this process of this node.
    """

    def __init__(self, parts: Parts, prefix: str) -> None:
        self._gateway = parts.gateway
        self._forwarder = parts.forwarder
        self._clock = parts.clock
        self._prefix = prefix
        self._number = 0
        self._groups: dict[_Kind, _Group] = {}
        self._waiting: deque[Deed] = deque(maxlen=WAITING_MAX)
        # Apart, so that nobody is hidden by many who show no token.
        self._strangers: dict[_Kind, _Group] = {}
        self._strangers_waiting: deque[Deed] = deque(maxlen=STRANGERS_WAITING_MAX)
        self._news = asyncio.Event()

    def note(self, seen: Seen, method: str, status: int) -> None:
        """Note a request that was answered, if it is one to be noted."""
        is_refused = status in REFUSED
        is_change = method not in READING and status < HTTPStatus.BAD_REQUEST
        if not (is_refused or (is_change and seen.is_noted)):
            return
        if seen.is_decided_elsewhere or self._gateway.mesh_id is None:
            return
        who, now_ms = seen.principal, self._clock.now().wall_ms
        own = self._gateway.node_id
        self._number += 1
        deed = Deed(
            id=f"{own}-{self._prefix}-{self._number:x}",
            at_ms=now_ms,
            subject=None if who is None else who.subject,
            role=None if who is None else who.role,
            action=seen.action or method,
            target=seen.target,
            source=seen.source,
            asked=seen.asked or own,
            decided=own,
            status=status,
            tasks=tuple(seen.tasks),
            task_count=seen.task_count,
        )
        self._add(deed, is_refused=is_refused)

    def _add(self, deed: Deed, *, is_refused: bool) -> None:
        kind: _Kind = (deed.subject, deed.source, deed.asked, deed.status)
        if not is_refused:
            kind = (*kind, deed.role, deed.action)
        self._close_old(deed.at_ms)
        is_known = deed.subject is not None
        groups = self._groups if is_known else self._strangers
        group = groups.get(kind)
        if group is None and len(groups) >= (GROUPS_MAX if is_known else STRANGERS_MAX):
            kind, deed = (MANY, deed.status), replace(deed, source=MANY, subject=None)
            group = groups.get(kind)
        if group is None:
            group = groups[kind] = _Group(deed.at_ms)
        group.count += 1
        if group.count <= (SINGLES_REFUSED if is_refused else SINGLES):
            self._tell(deed)
        elif group.held is None:
            group.held = replace(deed, until_ms=deed.at_ms)
        else:
            group.held = _joined(group.held, deed)

    def _close_old(self, now_ms: int) -> None:
        """Tell of the groups whose minute is over."""
        for groups in (self._groups, self._strangers):
            over = [
                kind
                for kind, group in groups.items()
                if not 0 <= now_ms - group.began_ms < WINDOW_MS
            ]
            for kind in over:
                if (held := groups.pop(kind).held) is not None:
                    self._tell(held)

    def _tell(self, deed: Deed) -> None:
        is_known = not deed.is_of_strangers
        (self._waiting if is_known else self._strangers_waiting).append(deed)
        self._news.set()

    async def run(self) -> None:
        """Hand over what was noted, until this is cancelled."""
        while True:
            try:
                # What is held back is told by the clock; there may be none of it.
                is_holding = self._groups or self._strangers
                async with asyncio.timeout(RETRY_S if is_holding else None):
                    await self._news.wait()
                await asyncio.sleep(FLUSH_S)
            except TimeoutError:
                self._close_old(self._clock.now().wall_ms)
            self._news.clear()
            while self._waiting or self._strangers_waiting:
                if not await self._hand_over():
                    await asyncio.sleep(RETRY_S)

    async def flush(self) -> None:
        """Hand over once more what waits, before this node stops."""
        for groups in (self._groups, self._strangers):
            for group in groups.values():
                if group.held is not None:
                    self._tell(group.held)
            groups.clear()
        while self._waiting or self._strangers_waiting:
            if not await self._hand_over():
                return

    async def _hand_over(self) -> bool:
        """Hand over the oldest, of strangers last; return whether that went well."""
        queues = self._waiting, self._strangers_waiting
        some = [*islice(chain(*queues), BATCH)]
        try:
            async with asyncio.timeout(SEND_S):
                await self._send(some)
        except (OctasklyError, aiohttp.ClientError, OSError, TimeoutError):
            return False  # They wait for the next dispatcher.
        done = {deed.id for deed in some}
        for queue in queues:  # What came meanwhile may have pushed some out.
            while queue and queue[0].id in done:
                queue.popleft()
        return True

    async def _send(self, deeds: Sequence[Deed]) -> None:
        view = self._gateway.dispatcher()
        if view is not None and view.is_self:
            await self._gateway.audit.keep(deeds)
        elif view is None or not await self._sent_to(view, deeds):
            raise MeshError("no dispatcher takes the audit log")

    async def _sent_to(self, view: DispatcherView, deeds: Sequence[Deed]) -> bool:
        body = msgspec.json.encode(deeds)
        headers = {
            HOP_HEADER: self._gateway.node_id,
            "Content-Type": "application/json",
        }
        for url in view.lan_urls:
            request = self._forwarder.session().post(
                url + PATH, data=body, headers=headers, allow_redirects=False
            )
            async with request as response:
                return bool(response.status == HTTPStatus.NO_CONTENT)
        return False


def _joined(held: Deed, deed: Deed) -> Deed:
    # Field by field: `replace` would look for each of them by its name.
    return Deed(
        id=held.id,
        at_ms=held.at_ms,
        subject=held.subject,
        role=held.role,
        action=held.action if held.action == deed.action else MANY,
        target=held.target if held.target == deed.target else None,
        source=held.source,
        asked=held.asked,
        decided=held.decided,
        status=held.status,
        tasks=(held.tasks + deed.tasks)[:NOTED_MAX],
        task_count=held.task_count + deed.task_count,
        count=held.count + 1,
        until_ms=deed.at_ms,
    )


def note_origin(seen: Seen, request: web.BaseRequest, peer: NodeId | None) -> None:
    """Note from where a request came, by the word of a node that forwarded it."""
    seen.source = request.remote or ""
    if peer is not None and HOP_HEADER in request.headers:
        seen.asked = peer
        seen.source = unquote(request.headers.get(SOURCE_HEADER, ""))


def note_route(seen: Seen, named: Mapping[str, str], route: Route) -> None:
    """Note what is asked for."""
    seen.action = f"{route.method} {route.path}"
    for target in named.values():  # The first.
        seen.target = target[:TARGET_CHARS_MAX]
        break
    seen.is_noted = route.access not in (Access.OPEN, Access.NODE)


def note_principal(seen: Seen, principal: Principal) -> None:
    """Note who asks."""
    seen.principal, seen.subject = principal, principal.subject
    if principal.uid is not None:
        seen.source = f"uid {principal.uid}"


_deeds = msgspec.json.Decoder(list[Deed])


async def take(call: Call) -> web.StreamResponse:
    """Write what another node has noted."""
    try:
        deeds = _deeds.decode(call.body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Problem(400, MALFORMED_JSON, hint=str(error)) from None
    await call.gateway.audit.keep(deeds[:BATCH])
    return web.Response(status=HTTPStatus.NO_CONTENT)


ROUTES = (
    Route(
        method="POST",
        path=PATH,
        perform=take,
        access=Access.NODE,
        takes=list[Deed],
        answers={204: None},
    ),
)
