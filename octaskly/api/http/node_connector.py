"""Connections to other nodes for aiohttp's client, over the API's own TLS transport.

With asyncio's TLS, a file that is forwarded would cost the event loop as much time as
all else together.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from concurrent.futures import Executor

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.tracing import Trace

from octaskly.system.tls_transport import open_tls

ConfigureSocket = Callable[[socket.socket], None]
"""Sets socket options that detect a silent peer."""


class NodeConnector(aiohttp.BaseConnector):
    """Opens connections to the LAN APIs of other nodes, whose hosts are addresses.

    Args:
        tls: The TLS context that authenticates this node to others.
        configure_socket: Called with each socket before it connects, unless None.
        body_threads: They relay long bodies.
        idle_s_max: How long a connection is kept for another request.
    """

    def __init__(
        self,
        tls: ssl.SSLContext,
        configure_socket: ConfigureSocket | None,
        body_threads: Executor,
        *,
        idle_s_max: float,
    ) -> None:
        super().__init__(limit=0, keepalive_timeout=idle_s_max)
        self._tls, self._configure_socket = tls, configure_socket
        self._body_threads = body_threads

    # The method that aiohttp's own connectors define; its timeouts are for both TCP
    # and TLS.
    async def _create_connection(
        self,
        req: aiohttp.ClientRequest,
        traces: list[Trace],  # noqa: ARG002  # there are none
        timeout: aiohttp.ClientTimeout,  # as aiohttp names it
    ) -> ResponseHandler:
        """Return the protocol of a new connection."""
        host, port = req.url.raw_host, req.url.port
        assert host is not None
        assert port is not None
        protocol: ResponseHandler = self._factory()
        try:
            async with asyncio.timeout(timeout.sock_connect):
                connection = await self._open_socket(host, port)
                await open_tls(
                    connection,
                    self._tls,
                    protocol,
                    server_hostname=host,
                    body_threads=self._body_threads,
                )
        except TimeoutError:
            raise
        except OSError as error:
            raise aiohttp.ClientConnectorError(req.connection_key, error) from error
        return protocol

    async def _open_socket(self, host: str, port: int) -> socket.socket:
        # No name is looked up, so this does not wait.
        found = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
        )
        family, kind, number, _, address = found[0]
        connection = socket.socket(family, kind, number)
        try:
            connection.settimeout(0)
            if self._configure_socket is not None:
                self._configure_socket(connection)
            await asyncio.get_running_loop().sock_connect(connection, address)
        except BaseException:
            connection.close()
            raise
        return connection
