"""The TLS of the mesh: who may connect, and as whom."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterable, Sequence
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509 import Certificate

from octaskly.core.model import NodeId
from octaskly.errors import ConfigError, TrustError
from octaskly.trust.certificates import Authority, node_id_in
from octaskly.trust.identity import NodeKey
from octaskly.trust.secret import MeshSecret

ALPN: Final = "octaskly/1"
ALPN_HTTP: Final = "http/1.1"


class MeshTrust:
    """What a member of the mesh needs to prove itself and to know others.

    All contexts speak TLS 1.3 only, and accept certificates that any generation of
    the secret signed; the newest one signs this node's.
    """

    def __init__(self, secret: MeshSecret, key: NodeKey) -> None:
        self._authorities = [
            Authority(secret.authority_seed(generation), secret.mesh_id)
            for generation in range(1, secret.generation + 1)
        ]
        self._key = key
        self.mesh_id: Final = secret.mesh_id
        self.node_id: Final = key.node_id
        self._certificate = self._authorities[-1].node_certificate(
            key.node_id, key.private.public_key()
        )

    def ca_pem(self) -> str:
        """Return the certificates of the mesh authority, newest first."""
        newest_first = reversed(self._authorities)
        return "".join(_pem(authority.certificate) for authority in newest_first)

    def server_context(self) -> ssl.SSLContext:
        """Return the context of the peer port: only nodes of this mesh get in."""
        context = self._context(ssl.PROTOCOL_TLS_SERVER, ssl.CERT_REQUIRED, ALPN)
        return self._as_node(context)

    def client_context(self) -> ssl.SSLContext:
        """Return the context for dialling a peer port."""
        context = self._context(ssl.PROTOCOL_TLS_CLIENT, ssl.CERT_REQUIRED, ALPN)
        return self._as_node(context)

    def lan_server_context(
        self, hostnames: Sequence[str], addresses: Iterable[str]
    ) -> ssl.SSLContext:
        """Return the context of the HTTPS listener.

        A client certificate is optional; one that is shown must be a node's of this
        mesh. The key is new each time and kept nowhere.

        Args:
            hostnames: Names that clients use for this machine; the node id is added.
            addresses: IP addresses of this machine; scopes are left out.

        Raises:
            ConfigError: a name or an address is none.
        """
        private = generate_private_key(SECP256R1())
        names = [*hostnames, self.node_id]
        try:
            certificate = self._authorities[-1].lan_certificate(
                names, addresses, private.public_key()
            )
        except ValueError as error:
            raise ConfigError(
                f"no certificate can be made for {', '.join(hostnames)}: {error}",
                hint="host names have letters, digits, dots and hyphens",
            ) from error
        context = self._context(ssl.PROTOCOL_TLS_SERVER, ssl.CERT_OPTIONAL, ALPN_HTTP)
        pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        _load_chain(context, certificate, pem)
        return context

    def lan_client_context(self) -> ssl.SSLContext:
        """Return the context for forwarding to another node's HTTPS listener."""
        context = self._context(ssl.PROTOCOL_TLS_CLIENT, ssl.CERT_REQUIRED, ALPN_HTTP)
        return self._as_node(context)

    def peer_node_id(self, peer: bytes | ssl.SSLObject | ssl.SSLSocket) -> NodeId:
        """Return who is at the other end.

        Args:
            peer: The connection after its handshake, or the peer's certificate in
                DER as the handshake verified it.

        Raises:
            TrustError: the peer showed no certificate, or none of a node.
        """
        if not isinstance(peer, bytes):
            certificate = peer.getpeercert(binary_form=True)
            if certificate is None:
                raise TrustError("the peer shows no certificate")
            peer = certificate
        return node_id_in(peer)

    def _context(
        self, protocol: int, verify_mode: ssl.VerifyMode, alpn: str
    ) -> ssl.SSLContext:
        context = ssl.SSLContext(protocol)
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_3
        # Peers are dialled by address and known by key; the id is checked instead.
        context.check_hostname = False
        context.verify_mode = verify_mode
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        context.load_verify_locations(cadata=self.ca_pem())
        context.set_alpn_protocols([alpn])
        if protocol == ssl.PROTOCOL_TLS_SERVER:
            # A resumed session would outlive the generation that let it in.
            context.num_tickets = 0
        return context

    def _as_node(self, context: ssl.SSLContext) -> ssl.SSLContext:
        _load_chain(context, self._certificate, self._key.pem())
        return context


def _pem(certificate: Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode()


def _load_chain(context: ssl.SSLContext, certificate: Certificate, key: bytes) -> None:
    """Give a context its certificate and key, which `ssl` takes from files only.

    The file lies in memory and has no name, so that a crash leaves no key behind.
    """
    descriptor = os.memfd_create("octaskly", os.MFD_CLOEXEC)
    try:
        os.fchmod(descriptor, 0o600)
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(_pem(certificate).encode() + key)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
