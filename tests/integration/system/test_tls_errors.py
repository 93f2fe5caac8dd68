"""One connection's errors must not end another, as they do in CPython itself."""

from __future__ import annotations

import select
import socket
import ssl
import struct
import threading

import pytest

from octaskly.system.tls_errors import call_tls, clear_tls_errors
from octaskly.trust import MeshTls, NodeKey, generate_secret
from tests.support.agents import WAIT_S_MAX

TLS = MeshTls(generate_secret(), NodeKey.generate())


def pair() -> tuple[ssl.SSLSocket, ssl.SSLSocket]:
    """Return both ends of a connection; the server's does not block."""
    context = TLS.lan_server_contexts(["node.test"], ["127.0.0.1"])("127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        plain = socket.create_connection(listener.getsockname())
        accepted, _ = listener.accept()
    ends: list[ssl.SSLSocket] = []

    def connect() -> None:
        ends.append(TLS.lan_probe_context().wrap_socket(plain))

    thread = threading.Thread(target=connect)
    thread.start()
    server = context.wrap_socket(accepted, server_side=True)
    thread.join()
    server.setblocking(False)
    return server, ends[0]


def reset() -> None:
    """Have a connection that is reset leave its error in this thread."""
    server, client = pair()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    socket.socket.close(client)
    with server, pytest.raises(ConnectionResetError):
        server.recv(1)


def test_an_error_of_another_connection_is_cleared() -> None:
    """Without that, the thread could use no TLS any more."""
    server, client = pair()
    with server, client:
        reset()
        clear_tls_errors()
        with pytest.raises(ssl.SSLWantReadError):
            server.recv(1)


def test_an_operation_ignores_the_error_of_another_connection() -> None:
    """Whoever left it: another module may."""
    server, client = pair()
    with server, client:
        reset()
        with pytest.raises(ssl.SSLWantReadError):
            call_tls(server.recv, 1)
        client.sendall(b"x")
        assert select.select([server], [], [], WAIT_S_MAX)[0]
        reset()
        assert call_tls(server.recv, 1) == b"x"


def test_an_operation_leaves_no_error_to_others() -> None:
    """Other modules do not know of the fault."""
    server, client = pair()
    other, other_client = pair()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    socket.socket.close(client)
    with server, other, other_client:
        with pytest.raises(OSError, match=r"reset|EOF|Broken"):
            call_tls(server.send, b"x")
        with pytest.raises(ssl.SSLWantReadError):
            other.recv(1)
