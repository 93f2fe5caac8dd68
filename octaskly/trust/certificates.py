"""X.509 certificates: the mesh authority, its nodes, and their HTTPS listeners.

The authority's keys are derived from the mesh secret, so every member can sign. Its
certificates are byte-for-byte equal on all nodes: signatures are deterministic, and
serial number, dates, names and name constraints follow from the secret and the decade.

A decade starts every five years, so a root that is installed today is valid for at
least five years. Keys and names of the roots never change, so certificates that are
signed in the next decade are accepted by whoever has the root of this one.

Nodes use Ed25519 keys. Browsers reject certificates with Ed25519 signatures, so HTTPS
listeners have a second root with a P-256 key. For names outside the name constraints of
that root, a listener has a self-signed certificate.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
    derive_private_key,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from octaskly.core.model.ids import NodeId
from octaskly.errors import TrustError
from octaskly.trust.name_constraints import (
    https_constraints,
    is_local,
    node_constraints,
    node_name,
    subject_alternative,
)
from octaskly.trust.node_key import node_id_of, visitor_id_of

LAN_NOT_BEFORE: Final = datetime(2019, 6, 1, tzinfo=UTC)
"""Apple rejects server certificates from July 2019 on if valid for over 825 days."""
VALID_YEARS: Final = 10
DECADE_STEP_YEARS: Final = 5
FIRST_DECADE: Final = 2025  #: a machine whose clock was reset is in this one
SERIAL_BYTES: Final = 16
_COMMON_NAME_MAX: Final = 64
_UNIT: Final = NameOID.ORGANIZATIONAL_UNIT_NAME
_UNIT_CHARS_MAX: Final = 64
_P256_ORDER: Final = (
    0xFFFFFFFF_00000000_FFFFFFFF_FFFFFFFF_BCE6FAAD_A7179E84_F3B9CAC2_FC632551
)


@dataclass(frozen=True, slots=True)
class Decade:
    """The ten years in which certificates are valid."""

    first_year: int

    @classmethod
    def at(cls, year: int) -> Decade:
        """Return the latest decade that has begun in a year."""
        begun = year - year % DECADE_STEP_YEARS
        return cls(max(FIRST_DECADE, begun))

    @classmethod
    def current(cls) -> Decade:
        """Return the latest decade that has begun by this machine's clock."""
        return cls.at(datetime.now(UTC).year)  # noqa: TID251  it is no rule of the mesh

    @property
    def begins(self) -> datetime:
        """The first instant."""
        return datetime(self.first_year, 1, 1, tzinfo=UTC)

    @property
    def ends(self) -> datetime:
        """The first instant after it."""
        return datetime(self.first_year + VALID_YEARS, 1, 1, tzinfo=UTC)


class CertificateAuthority:
    """The certificate authority of one generation of the mesh secret.

    Args:
        seed: The 32 bytes of the Ed25519 key that signs node certificates.
        lan_seed: 48 bytes, from which the key for HTTPS listeners is derived.
        mesh_id: Public name of the mesh.
        decade: When its certificates are valid.
    """

    def __init__(
        self, seed: bytes, lan_seed: bytes, mesh_id: str, decade: Decade
    ) -> None:
        name = f"octaskly mesh {mesh_id}"
        self._nodes = _SigningKey(
            Ed25519PrivateKey.from_private_bytes(seed), name, node_constraints(), decade
        )
        self._lan = _SigningKey(
            p256_key(lan_seed), f"{name} HTTPS", https_constraints(), decade
        )

    @property
    def https_root(self) -> x509.Certificate:
        """The root of HTTPS listeners, which people install in their programs."""
        return self._lan.certificate

    @property
    def node_root(self) -> x509.Certificate:
        """The root of node certificates, which only nodes use."""
        return self._nodes.certificate

    def node_certificate(
        self, node_id: NodeId, public: Ed25519PublicKey
    ) -> x509.Certificate:
        """Return the certificate of a node for peer links, as client and as server."""
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        names = [x509.DNSName(node_name(node_id))]
        return self._nodes.issue_certificate(node_id, public, names, usages)

    def visitor_certificate(
        self,
        public: Ed25519PublicKey,
        begins: datetime,
        ends: datetime,
        invited_by: str,
    ) -> x509.Certificate:
        """Return the certificate of a visitor, with which it can only dial members.

        Members check its end, and what a visitor may do. It names who invited it, so
        that all members know.
        """
        visitor = visitor_id_of(public.public_bytes_raw())
        names = [x509.DNSName(node_name(visitor))]
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH]
        return self._nodes.issue_certificate(
            *(visitor, public, names, usages, begins, ends),
            unit=invited_by[:_UNIT_CHARS_MAX],
        )

    def has_signed(self, certificate: x509.Certificate) -> bool:
        """Return True if this authority has signed a node's certificate."""
        try:
            certificate.verify_directly_issued_by(self.node_root)
        except (InvalidSignature, TypeError, ValueError):
            return False
        return True

    def lan_certificate(
        self, places: Sequence[str], public: EllipticCurvePublicKey
    ) -> x509.Certificate:
        """Return the certificate of a node's HTTPS listener.

        Args:
            places: Host names and IP addresses of the node, at least one.
            public: The key of the listener.

        Raises:
            ValueError: A host name or an IP address is invalid, or outside the name
                constraints.
        """
        for place in places:
            if not is_local(place):
                raise ValueError(f"{place} is outside the name constraints")
        usages = [ExtendedKeyUsageOID.SERVER_AUTH]
        return self._lan.issue_certificate(
            places[0], public, _alternatives(places), usages, LAN_NOT_BEFORE
        )


def self_signed_certificate(
    places: Sequence[str], key: EllipticCurvePrivateKey, decade: Decade
) -> x509.Certificate:
    """Return the certificate of an HTTPS listener that no authority has signed.

    It is equal for equal arguments, so that browsers recognize it after a restart.

    Args:
        places: Host names and IP addresses of the node, at least one.
        key: The key of the listener.
        decade: When it is valid.

    Raises:
        ValueError: A host name or an IP address is invalid.
    """
    name = _name(f"octaskly node {places[0]}"[:_COMMON_NAME_MAX])
    digest = hashlib.sha256(repr((places, decade)).encode()).digest()
    serial = _serial(digest[:SERIAL_BYTES])
    public = key.public_key()
    usages = [ExtendedKeyUsageOID.SERVER_AUTH]
    builder = _builder(name, name, serial, LAN_NOT_BEFORE, decade.ends)
    builder = _with_leaf_extensions(builder, public, _alternatives(places), usages)
    return builder.sign(key, SHA256(), ecdsa_deterministic=True)


def p256_key(seed: bytes) -> EllipticCurvePrivateKey:
    """Return the P-256 key that is derived from a secret seed of 48 bytes."""
    # The seed is 128 bits longer than the order, so the modulo has no real bias.
    number = int.from_bytes(seed) % (_P256_ORDER - 1) + 1
    return derive_private_key(number, SECP256R1())


class _SigningKey:
    """A signing key with its self-signed certificate."""

    def __init__(
        self,
        key: Ed25519PrivateKey | EllipticCurvePrivateKey,
        common_name: str,
        constraints: x509.NameConstraints,
        decade: Decade,
    ) -> None:
        self._key = key
        self._name = _name(common_name)
        self._decade = decade
        public = key.public_key()
        # Firefox rejects two certificates of one issuer with the same serial number.
        serial = decade.first_year
        builder = (
            _builder(self._name, self._name, serial, decade.begins, decade.ends)
            .public_key(public)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(is_authority=True), critical=True)
            .add_extension(constraints, critical=True)
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(public), critical=False
            )
            .add_extension(self._issuer_key(), critical=False)
        )
        self.certificate = self._sign(builder)

    def issue_certificate(
        self,
        common_name: str,
        public: Ed25519PublicKey | EllipticCurvePublicKey,
        alternatives: Sequence[x509.GeneralName],
        usages: Sequence[ObjectIdentifier],
        begins: datetime | None = None,
        ends: datetime | None = None,
        *,
        unit: str = "",
    ) -> x509.Certificate:
        """Return a certificate for another key, valid in the decade by default."""
        name = _name(common_name[:_COMMON_NAME_MAX], unit)
        serial = _serial(secrets.token_bytes(SERIAL_BYTES))
        decade = self._decade
        builder = _builder(
            name, self._name, serial, begins or decade.begins, ends or decade.ends
        )
        builder = _with_leaf_extensions(builder, public, alternatives, usages)
        return self._sign(builder.add_extension(self._issuer_key(), critical=False))

    def _sign(self, builder: x509.CertificateBuilder) -> x509.Certificate:
        if isinstance(self._key, Ed25519PrivateKey):
            return builder.sign(self._key, None)
        return builder.sign(self._key, SHA256(), ecdsa_deterministic=True)

    def _issuer_key(self) -> x509.AuthorityKeyIdentifier:
        public = self._key.public_key()
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(public)


class PeerIdentity(NamedTuple):
    """Who a verified certificate belongs to."""

    node: NodeId
    visit_ends_ms: int | None = None  #: wall clock; None: it is a member
    invited_by: str = ""  #: subject, if it is a visitor


def identity_of_certificate(certificate: bytes) -> PeerIdentity:
    """Return the owner of a DER certificate that TLS has verified.

    The id must match the key: a member can sign certificates, but must not be able to
    use another node's id.

    Raises:
        TrustError: The certificate belongs neither to a node nor to a visitor.
    """
    try:
        parsed = x509.load_der_x509_certificate(certificate)
        public = parsed.public_key()
        names = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        claimed = names.value.get_values_for_type(x509.DNSName)
    except (ValueError, x509.ExtensionNotFound) as error:
        raise TrustError("the peer's certificate is not a node certificate") from error
    if not isinstance(public, Ed25519PublicKey):
        raise TrustError("the peer's certificate is not a node certificate")
    node_id = node_id_of(public.public_bytes_raw())
    if claimed == [node_name(node_id)]:
        return PeerIdentity(node_id)
    visitor_id = visitor_id_of(public.public_bytes_raw())
    if claimed == [node_name(visitor_id)]:
        ends_ms = int(parsed.not_valid_after_utc.timestamp() * 1000)
        units = parsed.subject.get_attributes_for_oid(_UNIT)
        return PeerIdentity(visitor_id, ends_ms, str(units[0].value) if units else "")
    raise TrustError(f"node {node_id} shows a certificate with another node's id")


def _alternatives(places: Iterable[str]) -> list[x509.GeneralName]:
    return list(dict.fromkeys(map(subject_alternative, places)))


def _serial(random: bytes) -> int:
    return int.from_bytes(random, "big") >> 1 | 1


def _name(common_name: str, unit: str = "") -> x509.Name:
    parts = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
    if unit:
        parts.append(x509.NameAttribute(_UNIT, unit))
    return x509.Name(parts)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    serial: int,
    begins: datetime,
    ends: datetime,
) -> x509.CertificateBuilder:
    return x509.CertificateBuilder(
        issuer_name=issuer,
        subject_name=subject,
        serial_number=serial,
        not_valid_before=begins,
        not_valid_after=ends,
    )


def _with_leaf_extensions(
    builder: x509.CertificateBuilder,
    public: Ed25519PublicKey | EllipticCurvePublicKey,
    alternatives: Sequence[x509.GeneralName],
    usages: Sequence[ObjectIdentifier],
) -> x509.CertificateBuilder:
    return (
        builder.public_key(public)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(is_authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(
            x509.SubjectKeyIdentifier.from_public_key(public), critical=False
        )
    )


def _key_usage(*, is_authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        encipher_only=False,
        decipher_only=False,
    )
