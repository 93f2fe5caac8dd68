"""Sites whose certificates a thief of the mesh secret has signed."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID

from octaskly.trust import MeshSecret
from octaskly.trust.certificates import CertificateAuthority, Decade
from octaskly.trust.name_constraints import subject_alternative
from tests.support.agents import WAIT_S_MAX

BODY = "reached"


def authority(secret: MeshSecret) -> CertificateAuthority:
    """Return what a thief of a backup can make: the signing keys themselves."""
    return CertificateAuthority(
        secret.authority_seed(1),
        secret.lan_authority_seed(1),
        secret.mesh_id,
        Decade.current(),
    )


def forged(
    secret: MeshSecret, folder: Path, *places: str, root: str = "_lan"
) -> ssl.SSLContext:
    """Return a server with a certificate that a thief signed for any names."""
    key = generate_private_key(SECP256R1())
    names = list(map(subject_alternative, places))
    usages = [ExtendedKeyUsageOID.SERVER_AUTH]
    signing = getattr(authority(secret), root)
    certificate = signing.issue_certificate("thief", key.public_key(), names, usages)
    path = folder / "forged.pem"
    path.write_bytes(
        certificate.public_bytes(Encoding.PEM)
        + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context


@contextmanager
def serving(context: ssl.SSLContext, host: str = "127.0.0.1") -> Iterator[int]:
    """Answer each HTTPS request with `BODY`; yield the port."""

    def serve() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            connection.settimeout(WAIT_S_MAX)
            with connection, suppress(OSError):
                tls = context.wrap_socket(connection, server_side=True)
                with tls:
                    tls.recv(65536)
                    tls.sendall(
                        f"HTTP/1.1 200 OK\r\nContent-Length: {len(BODY)}\r\n"
                        f"Connection: close\r\n\r\n{BODY}".encode()
                    )

    with socket.create_server((host, 0)) as listening:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()
