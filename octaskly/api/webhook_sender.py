"""Webhook sender: one signed message when a task has ended.

The format is Standard Webhooks, for which libraries exist. The signature covers id,
time and body, so that a receiver can verify the sender and reject old messages.
`agent.webhooks` retries.

Source: https://www.standardwebhooks.com.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import socket
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http import HTTPStatus

import aiohttp
import msgspec
from aiohttp.abc import AbstractResolver, ResolveResult

from octaskly.api.schemas import task_response
from octaskly.core.change_feed import TaskEvent
from octaskly.core.model.ids import NodeId
from octaskly.rest.tasks import Webhook

RESPONSE_S_MAX = 10.0  #: from the DNS lookup to the status line
LOOKUPS_MAX = 16  #: at once; twice the messages in transit


class _Resolver(AbstractResolver):
    """Looks up names of receivers in threads of its own.

    A lookup occupies its thread until the name server answers, also after its message
    was given up. In the threads of the event loop, slow lookups would stop all other
    work there, such as the renewal of the mesh secret.
    """

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(LOOKUPS_MAX, "webhook-lookup")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        look_up = partial(
            socket.getaddrinfo,
            host,
            port,
            family=family,
            type=socket.SOCK_STREAM,
            flags=socket.AI_ADDRCONFIG,
        )
        loop = asyncio.get_running_loop()
        return [
            ResolveResult(
                hostname=host,
                host=str(address[0]),
                port=port,
                family=found,
                proto=protocol,
                flags=socket.AI_NUMERICHOST,
            )
            for found, _, protocol, _, address in await loop.run_in_executor(
                self._threads, look_up
            )
        ]

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


class WebhookSender:
    """Sends webhook messages; reads only the status of a response."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._session: aiohttp.ClientSession | None = None

    def set_key(self, key: bytes) -> None:
        """Sign later messages with this key."""
        self._key = key

    async def send(
        self,
        url: str,
        event: TaskEvent,
        names: Mapping[NodeId, str],
        wall_ms: int,
    ) -> str | None:
        """Send the end of a task to a receiver; return the reason if that failed."""
        body = encode_body(event, names)
        try:
            response = await self._open_session().post(
                url,
                data=body,
                headers=signature_headers(
                    self._key, event.record.id, wall_ms // 1000, body
                ),
                allow_redirects=False,
            )
        except (aiohttp.ClientError, OSError, ValueError, TimeoutError) as error:
            return str(error) or f"no answer within {RESPONSE_S_MAX:g} s"
        response.close()  # The body may be endless, so it is not read.
        if HTTPStatus(200) <= response.status < HTTPStatus.MULTIPLE_CHOICES:
            return None
        return f"the receiver answered {response.status}"

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                # The receiver may have another address at the next attempt.
                connector=aiohttp.TCPConnector(
                    use_dns_cache=False, resolver=_Resolver()
                ),
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"User-Agent": "octaskly"},
                timeout=aiohttp.ClientTimeout(total=RESPONSE_S_MAX),
            )
        return self._session


def encode_body(event: TaskEvent, names: Mapping[NodeId, str]) -> bytes:
    """Return the message body, which omits the task's command and output."""
    change = task_response.task_change(event, names)
    return task_response.encode(
        Webhook(
            type=f"task.{event.state}",
            timestamp=task_response.at(event.at_ms),
            data=msgspec.structs.replace(change, at=msgspec.UNSET),
        )
    )


def signature_headers(
    key: bytes, message_id: str, at_s: int, body: bytes
) -> dict[str, str]:
    """Return the headers that let a receiver verify a message."""
    text = b"%s.%d.%s" % (message_id.encode(), at_s, body)
    mac = hmac.new(key, text, hashlib.sha256).digest()
    return {
        "Content-Type": "application/json",
        "webhook-id": message_id,
        "webhook-timestamp": str(at_s),
        "webhook-signature": f"v1,{base64.b64encode(mac).decode()}",
    }
