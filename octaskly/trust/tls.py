"""TLS contexts of the mesh, and the node ids of verified peers."""

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
_SERVER_NAME_PREFIX: Final = "generation-"  #: of the SNI name, which is not encrypted
_GENERATION_DIGITS_MAX: Final = 10


class MeshTls:
    """TLS contexts of one node, for peer links and for HTTPS.

    All contexts speak TLS 1.3 only and accept certificates that any generation of the
    secret has signed. The generation in force signs this node's certificate. A listener
    presents an older one to a dialler whose SNI name asks for it. `use_secret` affects
    new connections only; existing ones continue.
    """

    def __init__(self, secret: MeshSecret, key: NodeKey) -> None:
        self._key = key
        self.mesh_id: Final = secret.mesh_id
        self.node_id: Final = key.node_id
        self._lan_names: tuple[tuple[str, ...], tuple[str, ...]] | None = None
        self.use_secret(secret)

    def use_secret(self, secret: MeshSecret) -> None:
        """Use these generations for new connections."""
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

        The HTTPS root of a generation comes first: some programs import only one.
        """
        newest_first = reversed(self._authorities.values())
        return "".join(_pem(one) for each in newest_first for one in each.certificates)

    @property
    def server_name(self) -> str:
        """The SNI name of a dialler, which names the newest generation it accepts."""
        return f"{_SERVER_NAME_PREFIX}{self._newest}"

    def server_context(self) -> ssl.SSLContext:
        """Return the context of the peer port, which admits only nodes of this mesh."""
        front = self._peer_context(ssl.PROTOCOL_TLS_SERVER, self._force)

        def choose(
            connection: ssl.SSLObject, name: str | None, _front: ssl.SSLContext
        ) -> None:
            connection.context = self._servers[self._generation_for(name)]

        front.sni_callback = choose
        return front

    def client_context(self) -> ssl.SSLContext:
        """Return the current context for dialling a peer port."""
        return self._clients[0]

    def client_contexts(self) -> tuple[ssl.SSLContext, ...]:
        """Return the contexts for dialling, newest generation first.

        All but the first are for peers that know only older generations.
        """
        return self._clients

    def lan_server_context(
        self, hostnames: Sequence[str], addresses: Iterable[str]
    ) -> ssl.SSLContext:
        """Return the context of the HTTPS listener.

        A client certificate is optional, but if present it must be a node's of this
        mesh. The key is new on each call and is never stored. The oldest generation
        signs, so that people have time to install the newer root.

        Args:
            hostnames: Names that clients use for this machine; the node id is added.
            addresses: IP addresses of this machine; scopes are removed.

        Raises:
            ConfigError: A name or an address is invalid.
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
        """Return the current context for forwarding requests to another node."""
        context = self._context(ssl.PROTOCOL_TLS_CLIENT, ssl.CERT_REQUIRED, ALPN_HTTP)
        self._load_node_certificate(context, self._force)
        return context

    def peer_node_id(self, peer: bytes | ssl.SSLObject | ssl.SSLSocket) -> NodeId:
        """Return the node id of the peer.

        Args:
            peer: The connection after its handshake, or the peer's verified
                certificate in DER.

        Raises:
            TrustError: The peer presented no certificate, or not one of a node.
        """
        if not isinstance(peer, bytes):
            certificate = peer.getpeercert(binary_form=True)
            if certificate is None:
                raise TrustError("the peer shows no certificate")
            peer = certificate
        return node_id_of_certificate(peer)

    def authorized_node_id(self, peer: bytes | ssl.SSLObject | ssl.SSLSocket) -> NodeId:
        """Return the node id of the peer, unless it is revoked.

        Raises:
            TrustError: As `peer_node_id`, or the node is revoked.
        """
        node = self.peer_node_id(peer)
        if node in self._denied:
            raise TrustError(f"node {node} is revoked")
        return node

    def is_generation_accepted(self, peer: ssl.SSLObject) -> bool:
        """Return True if the generation that signed the peer's certificate is accepted.

        It may have been retired since the TLS handshake.
        """
        certificate = peer.getpeercert(binary_form=True)
        assert certificate is not None  # `peer_node_id` has checked this.
        parsed = load_der_x509_certificate(certificate)
        return any(one.has_signed(parsed) for one in self._authorities.values())

    def _generation_for(self, name: str | None) -> int:
        """Return the generation of the certificate for a dialler with this SNI name."""
        number = (name or "").removeprefix(_SERVER_NAME_PREFIX)
        # The name is untrusted, but it can only select an accepted generation.
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
                f"cannot create a certificate for {', '.join(names[:-1])}: {error}",
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
        # Peers are dialled by address and identified by key: links check the node id.
        context.check_hostname = False
        context.verify_mode = verify_mode
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        context.load_verify_locations(cadata=self.ca_pem())
        context.set_alpn_protocols([alpn])
        if protocol == ssl.PROTOCOL_TLS_SERVER:
            # A resumed session would remain valid after its generation is retired.
            context.num_tickets = 0
        return context

    def _load_node_certificate(self, context: ssl.SSLContext, generation: int) -> None:
        """Load this node's certificate of a generation into a context."""
        certificate = self._authorities[generation].node_certificate(
            self.node_id, self._key.private.public_key()
        )
        _load_chain(context, certificate, self._key.pem())


def _pem(certificate: Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode()


def _load_chain(context: ssl.SSLContext, certificate: Certificate, key: bytes) -> None:
    """Load a certificate and key into a context; `ssl` reads them only from files.

    An anonymous file in memory is used, so that a crash leaves no key on disk.
    """
    descriptor = os.memfd_create("octaskly", os.MFD_CLOEXEC)
    try:
        os.fchmod(descriptor, 0o600)
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(_pem(certificate).encode() + key)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
