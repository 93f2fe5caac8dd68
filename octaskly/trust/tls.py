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
from cryptography.x509 import Certificate, load_der_x509_certificate

from octaskly.core.model.ids import NodeId
from octaskly.errors import ConfigError, TrustError
from octaskly.trust.certificates import CertificateAuthority, node_id_of_certificate
from octaskly.trust.mesh_secret import MeshSecret
from octaskly.trust.node_key import NodeKey

ALPN: Final = "octaskly/1"
ALPN_HTTP: Final = "http/1.1"
_SERVER_NAME_PREFIX: Final = (
    "generation-"  #: begins what a dialler asks for in the clear
)
_GENERATION_DIGITS_MAX: Final = 10


class MeshTls:
    """What a member of the mesh needs to prove itself and to know others.

    All contexts speak TLS 1.3 only, and accept certificates that any generation of
    the secret signed; the one in force signs this node's. Who listens shows an older
    one to a dialler that says that it knows no newer one. `use_secret` puts another secret
    in force for connections that come; those that are there stay.
    """

    def __init__(self, secret: MeshSecret, key: NodeKey) -> None:
        self._key = key
        self.mesh_id: Final = secret.mesh_id
        self.node_id: Final = key.node_id
        self._lan_names: tuple[tuple[str, ...], tuple[str, ...]] | None = None
        self.use_secret(secret)

    def use_secret(self, secret: MeshSecret) -> None:
        """Use these generations from now on."""
        self._force, self._newest = secret.generation, secret.newest
        self._denied = frozenset(secret.revoked)
        self._authorities = {
            generation: CertificateAuthority(
                secret.authority_seed(generation),
                secret.lan_authority_seed(generation),
                secret.mesh_id,
            )
            for generation in secret.accepted
        }
        self._servers = {
            generation: self._peer_context(ssl.PROTOCOL_TLS_SERVER, generation)
            for generation in secret.accepted
        }
        self._clients = tuple(
            self._peer_context(ssl.PROTOCOL_TLS_CLIENT, generation)
            for generation in reversed(secret.accepted)
            if generation <= self._force
        )
        if self._lan_names is not None:
            self._lan_server = self._lan_context(*self._lan_names)

    def ca_pem(self) -> str:
        """Return the certificates of the mesh authority, newest first.

        Of each generation that for HTTPS comes first: some programs import one alone.
        """
        newest_first = reversed(self._authorities.values())
        return "".join(_pem(one) for each in newest_first for one in each.certificates)

    @property
    def server_name(self) -> str:
        """What a dialler asks for, so that it is shown a certificate that it knows."""
        return f"{_SERVER_NAME_PREFIX}{self._newest}"

    def server_context(self) -> ssl.SSLContext:
        """Return the context of the peer port: only nodes of this mesh get in."""
        front = self._peer_context(ssl.PROTOCOL_TLS_SERVER, self._force)

        def choose(
            connection: ssl.SSLObject, name: str | None, _front: ssl.SSLContext
        ) -> None:
            connection.context = self._servers[self._generation_for(name)]

        front.sni_callback = choose
        return front

    def client_context(self) -> ssl.SSLContext:
        """Return the context for dialling a peer port, as it is at this moment."""
        return self._clients[0]

    def client_contexts(self) -> tuple[ssl.SSLContext, ...]:
        """Return the same, then those for peers that know older generations only."""
        return self._clients

    def lan_server_context(
        self, hostnames: Sequence[str], addresses: Iterable[str]
    ) -> ssl.SSLContext:
        """Return the context of the HTTPS listener.

        A client certificate is optional; one that is shown must be a node's of this
        mesh. The key is new each time and kept nowhere. The oldest generation signs, so
        that people have time to fetch the newer authority.

        Args:
            hostnames: Names that clients use for this machine; the node id is added.
            addresses: IP addresses of this machine; scopes are left out.

        Raises:
            ConfigError: a name or an address is none.
        """
        self._lan_names = (*hostnames, self.node_id), tuple(addresses)
        front = self._lan_server = self._lan_context(*self._lan_names)

        def choose(
            connection: ssl.SSLObject, _name: str | None, _front: ssl.SSLContext
        ) -> None:
            connection.context = self._lan_server

        front.sni_callback = choose
        return front

    def lan_client_context(self) -> ssl.SSLContext:
        """Return the context for forwarding, as it is at this moment."""
        context = self._context(ssl.PROTOCOL_TLS_CLIENT, ssl.CERT_REQUIRED, ALPN_HTTP)
        self._load_node_certificate(context, self._force)
        return context

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
        return node_id_of_certificate(peer)

    def authorized_node_id(self, peer: bytes | ssl.SSLObject | ssl.SSLSocket) -> NodeId:
        """As `peer_node_id`, for one that may act for others.

        Raises:
            TrustError: the same, or the node is revoked.
        """
        node = self.peer_node_id(peer)
        if node in self._denied:
            raise TrustError(f"node {node} is revoked")
        return node

    def is_generation_accepted(self, peer: ssl.SSLObject) -> bool:
        """Whether the generation that let a peer in is accepted at this moment, too."""
        certificate = peer.getpeercert(binary_form=True)
        assert certificate is not None  # As `peer_node_id` has found.
        parsed = load_der_x509_certificate(certificate)
        return any(one.has_signed(parsed) for one in self._authorities.values())

    def _generation_for(self, name: str | None) -> int:
        """Return the generation to show to a dialler that says what it knows."""
        number = (name or "").removeprefix(_SERVER_NAME_PREFIX)
        # As little as a number is believed: what is shown must be accepted anyway.
        newest = (
            int(number)
            if number.isdecimal() and len(number) < _GENERATION_DIGITS_MAX
            else 0
        )
        known = [n for n in self._authorities if n <= min(newest, self._force)]
        return max(known, default=self._force)

    def _peer_context(self, protocol: int, generation: int) -> ssl.SSLContext:
        context = self._context(protocol, ssl.CERT_REQUIRED, ALPN)
        self._load_node_certificate(context, generation)
        return context

    def _lan_context(
        self, names: Sequence[str], addresses: Sequence[str]
    ) -> ssl.SSLContext:
        private = generate_private_key(SECP256R1())
        oldest = next(iter(self._authorities.values()))
        try:
            certificate = oldest.lan_certificate(names, addresses, private.public_key())
        except ValueError as error:
            raise ConfigError(
                f"no certificate can be made for {', '.join(names[:-1])}: {error}",
                hint="host names have letters, digits, dots and hyphens",
            ) from error
        context = self._context(ssl.PROTOCOL_TLS_SERVER, ssl.CERT_OPTIONAL, ALPN_HTTP)
        pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        _load_chain(context, certificate, pem)
        return context

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

    def _load_node_certificate(self, context: ssl.SSLContext, generation: int) -> None:
        """Let a context show this node's certificate of a generation."""
        certificate = self._authorities[generation].node_certificate(
            self.node_id, self._key.private.public_key()
        )
        _load_chain(context, certificate, self._key.pem())


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
