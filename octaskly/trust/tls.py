"""TLS contexts of the mesh, and the node ids of verified peers."""

from __future__ import annotations

import base64
import hashlib
import os
import ssl
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509 import (
    Certificate,
    load_der_x509_certificate,
    load_pem_x509_certificate,
)
from msgspec import MsgspecError, Struct, json

from octaskly.core.model.ids import NodeId
from octaskly.errors import ConfigError, LocalProtocolError, TrustError
from octaskly.trust.certificates import (
    CertificateAuthority,
    Decade,
    PeerIdentity,
    identity_of_certificate,
    p256_key,
    self_signed_certificate,
)
from octaskly.trust.mesh_secret import MeshSecret
from octaskly.trust.name_constraints import NODE_SUFFIX, is_local, node_name
from octaskly.trust.node_key import NodeKey, visitor_id_of

ALPN: Final = "octaskly/1"
ALPN_HTTP: Final = "http/1.1"
_SERVER_NAME_PREFIX: Final = "generation-"  #: of the SNI name, which is not encrypted
_GENERATION_DIGITS_MAX: Final = 10
_MEMBER_SERVER_NAME: Final = f"member.{NODE_SUFFIX}"
"""The SNI name by which nodes ask for the certificate that the mesh has signed."""

_NO_CHECK_TIME: Final = 0x200000
"""`X509_V_FLAG_NO_CHECK_TIME` of OpenSSL, which `ssl` does not name.

A small machine may start with a wrong clock. Between nodes a date protects nothing:
whoever has the secret can sign any date, and the end of a generation ends its use.
"""

ContextForAddress = Callable[[str], ssl.SSLContext]
"""Returns the context for a connection to this address of the machine."""

TlsPeer = bytes | ssl.SSLObject | ssl.SSLSocket
"""A connection after its handshake, or the verified certificate of its peer in DER."""


class MeshTls:
    """TLS contexts of one node, for peer links and for HTTPS.

    All contexts speak TLS 1.3 only and accept certificates that any generation of the
    secret has signed. The generation in force signs this node's certificate. A listener
    presents an older one to a dialler whose SNI name asks for it. `use_secret` affects
    new connections only; existing ones continue.
    """

    def __init__(
        self, secret: MeshSecret, key: NodeKey, decade: Decade | None = None
    ) -> None:
        self._key = key
        self._decade = decade or Decade.current()
        self.mesh_id: Final = secret.mesh_id
        self.node_id: Final = key.node_id
        self._lan_names: tuple[str, ...] = ()
        self._lan_places: tuple[str, ...] = ()  #: these names, and addresses
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
                self._decade,
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
        if self._lan_places:
            self._use_lan_places(self._lan_places)

    def prepare(self, secret: MeshSecret) -> MeshTls:
        """Return the contexts for these generations, which `adopt` puts in use.

        This takes some 50 ms, in any thread.
        """
        prepared = copy(self)
        prepared.use_secret(secret)
        return prepared

    def adopt(self, prepared: MeshTls) -> None:
        """Use what `prepare` returned for new connections."""
        vars(self).update(vars(prepared))

    def ca_pem(self) -> str:
        """Return the authority's roots for HTTPS, newest first.

        Some programs import only the first.
        """
        newest_first = reversed(self._authorities.values())
        return "".join(_pem(each.https_root) for each in newest_first)

    def node_ca_pem(self) -> str:
        """Return the authority's roots for node certificates, newest first."""
        newest_first = reversed(self._authorities.values())
        return "".join(_pem(each.node_root) for each in newest_first)

    @property
    def server_name(self) -> str:
        """The SNI name of a dialler, which names the newest generation it accepts."""
        return f"{_SERVER_NAME_PREFIX}{self._newest}"

    def server_context(self) -> ssl.SSLContext:
        """Return the context of the peer port, which admits only nodes of this mesh."""
        front = self._peer_context(ssl.PROTOCOL_TLS_SERVER, self._force)

        def choose(
            connection: ssl.SSLObject | ssl.SSLSocket,
            name: str | None,
            _front: ssl.SSLContext,
        ) -> None:
            connection.context = self._servers[self._generation_for(name)]

        front.sni_callback = choose
        return front

    def client_contexts(self) -> tuple[ssl.SSLContext, ...]:
        """Return the contexts for dialling, newest generation first.

        All but the first are for peers that know only older generations.
        """
        return self._clients

    def lan_server_contexts(
        self, hostnames: Sequence[str], addresses: Iterable[str]
    ) -> ContextForAddress:
        """Return the contexts of the HTTPS listener, by local address.

        A client certificate is optional, but if present it must be a node's of this
        mesh. A client that connects to a name or address within the name constraints
        of the mesh authority gets a certificate of the authority. Its key is new on
        each call and is never stored. The oldest generation signs, so that people have
        time to install the newer root. Any other client gets a self-signed certificate,
        whose key is derived from the node key. The name of a client is its SNI name,
        which is missing if it uses an address.

        Args:
            hostnames: Names that clients use for this machine.
            addresses: IP addresses of this machine; scopes are removed.

        Raises:
            ConfigError: A name or an address is invalid.
        """
        self._lan_names = (node_name(self.node_id), *hostnames)
        self.set_lan_addresses(addresses)
        fronts = {is_signed: self._lan_front(is_signed) for is_signed in (True, False)}
        return lambda address: fronts[is_local(address)]

    def set_lan_addresses(self, addresses: Iterable[str]) -> None:
        """Name these addresses in the certificates of the HTTPS listener from now on.

        Raises:
            ConfigError: An address is invalid.
        """
        self._use_lan_places(tuple(dict.fromkeys([*self._lan_names, *addresses])))

    def _lan_front(self, is_signed: bool) -> ssl.SSLContext:  # noqa: FBT001
        """Return a context that presents the signed certificate to nameless clients."""
        front = self._lan_contexts[is_signed]

        def choose(
            connection: ssl.SSLObject | ssl.SSLSocket,
            name: str | None,
            _front: ssl.SSLContext,
        ) -> None:
            is_in_scope = is_local(name) if name else is_signed
            connection.context = self._lan_contexts[is_in_scope]

        front.sni_callback = choose
        return front

    def lan_client_context(self) -> ssl.SSLContext:
        """Return the current context for forwarding requests to another node."""
        context = self.lan_probe_context()
        self._load_node_certificate(context, self._force)
        return context

    def lan_probe_context(self) -> ssl.SSLContext:
        """Return a context for HTTPS listeners of members, without a certificate."""
        return _https_client_context(self.ca_pem())

    def peer_identity(self, peer: TlsPeer) -> PeerIdentity:
        """Return who the peer is: a member, or a visitor whose time may be up.

        Args:
            peer: The connection after its handshake, or the peer's verified
                certificate in DER.

        Raises:
            TrustError: The peer presented no certificate, or not one of a node.
        """
        return peer_identity(peer)

    def authorized_identity(self, peer: TlsPeer) -> PeerIdentity:
        """Return who the peer is, unless it is revoked.

        Raises:
            TrustError: As `peer_identity`, or the node is revoked.
        """
        identity = peer_identity(peer)
        if identity.node in self._denied:
            raise TrustError(f"node {identity.node} is revoked")
        return identity

    def grant_visit(
        self, public_key: bytes, now_ms: int, stay_s: int, invited_by: str = ""
    ) -> VisitGrant:
        """Return what a visitor with this key needs to dial members for a time.

        Args:
            public_key: The raw Ed25519 key of the visitor, 32 bytes.
            now_ms: Wall clock.
            stay_s: Seconds until the certificate ends.
            invited_by: The subject who opened the invite; members see it.
        """
        begins = datetime.fromtimestamp(now_ms // 1000, UTC)
        ends = begins + timedelta(seconds=stay_s)
        certificate = self._authorities[self._force].visitor_certificate(
            Ed25519PublicKey.from_public_bytes(public_key), begins, ends, invited_by
        )
        return VisitGrant(
            mesh=self.mesh_id,
            server_name=f"{_SERVER_NAME_PREFIX}{self._force}",
            certificate=_pem(certificate),
            node_roots=self.node_ca_pem(),
            https_roots=self.ca_pem(),
            ends_ms=int(ends.timestamp() * 1000),
        )

    def is_generation_accepted(self, peer: ssl.SSLSocket) -> bool:
        """Return True if the generation that signed the peer's certificate is accepted.

        It may have been retired since the TLS handshake.
        """
        certificate = peer.getpeercert(binary_form=True)
        assert certificate is not None  # `peer_identity` has checked this.
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
        context = _context(protocol, ssl.CERT_REQUIRED, ALPN, self.node_ca_pem())
        self._load_node_certificate(context, generation)
        return context

    def _use_lan_places(self, places: tuple[str, ...]) -> None:
        """Make the two contexts of the HTTPS listener; see `lan_server_contexts`."""
        private = generate_private_key(SECP256R1())
        own = p256_key(self._key.https_seed())
        oldest = next(iter(self._authorities.values()))
        local = [place for place in places if is_local(place)]
        try:
            signed = oldest.lan_certificate(local, private.public_key())
            self_signed = self_signed_certificate(places, own, self._decade)
        except ValueError as error:
            raise ConfigError(
                f"cannot create a certificate for {', '.join(places[1:])}: {error}",
                hint="host names have letters, digits, dots and hyphens",
            ) from error
        self._lan_places = places
        self._lan_contexts = {
            True: self._lan_context(signed, private),
            False: self._lan_context(self_signed, own),
        }

    def _lan_context(
        self, certificate: Certificate, key: EllipticCurvePrivateKey
    ) -> ssl.SSLContext:
        context = _context(
            ssl.PROTOCOL_TLS_SERVER, ssl.CERT_OPTIONAL, ALPN_HTTP, self.node_ca_pem()
        )
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        _load_chain(context, certificate, pem)
        return context

    def _load_node_certificate(self, context: ssl.SSLContext, generation: int) -> None:
        """Load this node's certificate of a generation into a context."""
        certificate = self._authorities[generation].node_certificate(
            self.node_id, self._key.private.public_key()
        )
        _load_chain(context, certificate, self._key.pem())


class VisitGrant(Struct, frozen=True, kw_only=True):
    """What a member gives to a visitor: no secret, and a certificate with an end."""

    mesh: str  #: public name of the mesh
    server_name: str  #: the SNI name with which it dials
    certificate: str  #: PEM, for its own key
    node_roots: str  #: PEM, of the peer ports of members
    https_roots: str  #: PEM, of their HTTPS ports
    ends_ms: int  #: wall clock

    def to_text(self) -> str:
        """Return the text that `parse_visit_grant` reads."""
        return json.encode(self).decode("ascii")


def parse_visit_grant(text: str) -> VisitGrant:
    """Return the grant in a text.

    Raises:
        TrustError: It is malformed.
    """
    try:
        return json.decode(text, type=VisitGrant)
    except MsgspecError:
        raise TrustError("this is not the grant of a visit") from None


class VisitorTls:
    """TLS contexts of a visitor, which dials members and accepts no connection."""

    def __init__(self, grant: VisitGrant, key: NodeKey) -> None:
        self._grant, self._key = grant, key
        self.node_id: Final = visitor_id_of(key.public_bytes())
        self.server_name: Final = grant.server_name
        self._certificate = load_pem_x509_certificate(grant.certificate.encode())

    def client_contexts(self) -> tuple[ssl.SSLContext, ...]:
        """Return the context for dialling the peer port of a member."""
        context = _context(
            ssl.PROTOCOL_TLS_CLIENT, ssl.CERT_REQUIRED, ALPN, self._grant.node_roots
        )
        _load_chain(context, self._certificate, self._key.pem())
        return (context,)

    def lan_client_context(self) -> ssl.SSLContext:
        """Return the context for requests to the HTTPS port of a member."""
        context = _https_client_context(self._grant.https_roots)
        _load_chain(context, self._certificate, self._key.pem())
        return context

    def server_context(self) -> ssl.SSLContext:
        """Raise: a visitor accepts no connection."""
        raise LocalProtocolError("a visitor accepts no connection")

    def peer_identity(self, peer: TlsPeer) -> PeerIdentity:
        """Return who the peer is, which must be a member.

        Raises:
            TrustError: It is not.
        """
        return PeerIdentity(member_node_id(peer))

    def is_generation_accepted(self, peer: ssl.SSLSocket) -> bool:  # noqa: ARG002
        """Return True: a visitor knows only the roots that it was given."""
        return True


def peer_identity(peer: TlsPeer) -> PeerIdentity:
    """Return who a peer is; raise TrustError as `MeshTls.peer_identity`."""
    if not isinstance(peer, bytes):
        certificate = peer.getpeercert(binary_form=True)
        if certificate is None:
            raise TrustError("the peer shows no certificate")
        peer = certificate
    return identity_of_certificate(peer)


def member_node_id(peer: TlsPeer) -> NodeId:
    """Return the id of a peer that is a member; raise TrustError if it is not."""
    identity = peer_identity(peer)
    if identity.visit_ends_ms is not None:
        raise TrustError(f"{identity.node} is a visitor, not a member")
    return identity.node


def https_pin(key: NodeKey) -> str:
    """Return the public key of a node's self-signed certificate, as curl pins it."""
    public = p256_key(key.https_seed()).public_key()
    der = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return f"sha256//{base64.b64encode(hashlib.sha256(der).digest()).decode()}"


class _MemberContext(ssl.SSLContext):
    """A client context that sends the SNI name of members, whatever the URL contains.

    The URL of a node may have an address outside the name constraints.
    """

    def wrap_bio(self, *args: Any, **options: Any) -> ssl.SSLObject:
        """Return a connection over memory buffers."""
        return super().wrap_bio(
            *args, **options | {"server_hostname": _MEMBER_SERVER_NAME}
        )

    def wrap_socket(self, *args: Any, **options: Any) -> ssl.SSLSocket:
        """Return a connection over a socket."""
        return super().wrap_socket(
            *args, **options | {"server_hostname": _MEMBER_SERVER_NAME}
        )


def _https_client_context(roots: str) -> ssl.SSLContext:
    return _context(
        ssl.PROTOCOL_TLS_CLIENT, ssl.CERT_REQUIRED, ALPN_HTTP, roots, _MemberContext
    )


def _context(
    protocol: int,
    verify_mode: ssl.VerifyMode,
    alpn: str,
    roots: str,
    kind: type[ssl.SSLContext] = ssl.SSLContext,
) -> ssl.SSLContext:
    context = kind(protocol)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_3
    # Peers are dialled by address and identified by key: links check the node id.
    context.check_hostname = False
    context.verify_mode = verify_mode
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.verify_flags |= _NO_CHECK_TIME
    context.load_verify_locations(cadata=roots)
    context.set_alpn_protocols([alpn])
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        # A resumed session would remain valid after its generation is retired.
        context.num_tickets = 0
    return context


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
