"""The least relay in Python between two TLS connections, a bound for that of a node.

One thread and sockets that block: it decrypts what a server sends, and encrypts it for
a client. It reads no HTTP, so each connection is for one request.

Usage: python -m benchmarks.relay SERVER PORT CERTIFICATE KEY
"""

import socket
import ssl
import sys
from typing import Final

from octaskly.system.long_bodies import LONG_READ_BYTES, widen_window

REQUEST_BYTES_MAX: Final = 4096


def main() -> None:
    """Print the port, then serve until killed."""
    server, port, certificate, key = sys.argv[1:]
    to_clients = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    to_clients.load_cert_chain(certificate, key)
    to_server = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    to_server.check_hostname = False
    to_server.load_verify_locations(certificate)
    with socket.create_server(("", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        while True:
            accepted, _ = listener.accept()
            connected = socket.create_connection((server, int(port)))
            with (
                to_clients.wrap_socket(accepted, server_side=True) as receiver,
                to_server.wrap_socket(connected) as source,
            ):
                relay(source, receiver)


def relay(source: ssl.SSLSocket, receiver: ssl.SSLSocket) -> None:
    """Send a request of the receiver to the source, and all that follows back."""
    for end in (source, receiver):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    widen_window(source)
    source.sendall(receiver.recv(REQUEST_BYTES_MAX))
    buffer, filled = memoryview(bytearray(LONG_READ_BYTES)), 0
    while count := source.recv_into(buffer[filled:], LONG_READ_BYTES - filled):
        filled += count
        if filled == LONG_READ_BYTES:
            receiver.sendall(buffer)
            filled = 0
    receiver.sendall(buffer[:filled])


if __name__ == "__main__":
    main()
