"""X.509 certificates: the mesh authority, its nodes, and their HTTPS listeners.

The authority's keys are derived from the mesh secret, so every member can sign. Its
certificates are byte-for-byte equal on all nodes: signatures are deterministic, and
serial number, dates and names are fixed. The validity period is long, because machines
on a LAN may start with a wrong clock.

Nodes use Ed25519 keys. Browsers reject certificates with Ed25519 signatures, so HTTPS
listeners have a second root with a P-256 key.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Final

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
from octaskly.trust.node_key import node_id_of

NOT_BEFORE: Final = datetime(2020, 1, 1, tzinfo=UTC)
LAN_NOT_BEFORE: Final = datetime(2019, 6, 1, tzinfo=UTC)
"""Apple rejects server certificates from July 2019 on if valid for over 825 days."""
NOT_AFTER: Final = datetime(2119, 12, 31, tzinfo=UTC)
SERIAL_BYTES: Final = 16
_COMMON_NAME_MAX: Final = 64
_P256_ORDER: Final = (
    0xFFFFFFFF_00000000_FFFFFFFF_FFFFFFFF_BCE6FAAD_A7179E84_F3B9CAC2_FC632551
)


class CertificateAuthority:
    """The certificate authority of one generation of the mesh secret.

    Args:
        seed: The 32 bytes of the Ed25519 key that signs node certificates.
        lan_seed: 48 bytes, from which the key for HTTPS listeners is derived.
        mesh_id: Public name of the mesh.
    """

    def __init__(self, seed: bytes, lan_seed: bytes, mesh_id: str) -> None:
        name = f"octaskly mesh {mesh_id}"
        self._nodes = _SigningKey(Ed25519PrivateKey.from_private_bytes(seed), name)
        # The seed is 128 bits longer than the order, so the modulo has no real bias.
        number = int.from_bytes(lan_seed) % (_P256_ORDER - 1) + 1
        self._lan = _SigningKey(
            derive_private_key(number, SECP256R1()), f"{name} HTTPS"
        )
        self.certificates = (self._lan.certificate, self._nodes.certificate)

    def node_certificate(
        self, node_id: NodeId, public: Ed25519PublicKey
    ) -> x509.Certificate:
        """Return the certificate of a node for peer links, as client and as server."""
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        names = [x509.DNSName(node_id)]
        return self._nodes.issue_certificate(node_id, public, names, usages, NOT_BEFORE)

    def has_signed(self, certificate: x509.Certificate) -> bool:
        """Return True if this authority has signed a node's certificate."""
        try:
            certificate.verify_directly_issued_by(self.certificates[-1])
        except (InvalidSignature, TypeError, ValueError):
            return False
        return True

    def lan_certificate(
        self,
        names: Sequence[str],
        addresses: Iterable[str],
        public: EllipticCurvePublicKey,
    ) -> x509.Certificate:
        """Return the certificate of a node's HTTPS listener.

        Raises:
            ValueError: A host name or an IP address is invalid.
        """
        places = (*names, *(address.partition("%")[0] for address in addresses))
        alternatives = [_subject_alternative(place) for place in dict.fromkeys(places)]
        usages = [ExtendedKeyUsageOID.SERVER_AUTH]
        return self._lan.issue_certificate(
            names[0], public, alternatives, usages, LAN_NOT_BEFORE
        )


class _SigningKey:
    """A signing key with its self-signed certificate."""

    def __init__(
        self, key: Ed25519PrivateKey | EllipticCurvePrivateKey, common_name: str
    ) -> None:
        self._key = key
        self._name = _name(common_name)
        public = key.public_key()
        builder = (
            _builder(self._name, self._name, 1, NOT_BEFORE)
            .public_key(public)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(is_authority=True), critical=True)
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
        begins: datetime,
    ) -> x509.Certificate:
        """Return a certificate for another key."""
        serial = int.from_bytes(secrets.token_bytes(SERIAL_BYTES), "big") >> 1 | 1
        builder = (
            _builder(_name(common_name[:_COMMON_NAME_MAX]), self._name, serial, begins)
            .public_key(public)
            .add_extension(
                x509.BasicConstraints(ca=False, path_length=None), critical=True
            )
            .add_extension(_key_usage(is_authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(public), critical=False
            )
            .add_extension(self._issuer_key(), critical=False)
        )
        return self._sign(builder)

    def _sign(self, builder: x509.CertificateBuilder) -> x509.Certificate:
        if isinstance(self._key, Ed25519PrivateKey):
            return builder.sign(self._key, None)
        return builder.sign(self._key, SHA256(), ecdsa_deterministic=True)

    def _issuer_key(self) -> x509.AuthorityKeyIdentifier:
        public = self._key.public_key()
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(public)


def node_id_of_certificate(certificate: bytes) -> NodeId:
    """Return the node id in a DER certificate that TLS has verified.

    The id must match the key: a member can sign certificates, but must not be able to
    use another node's id.

    Raises:
        TrustError: The certificate is not one of a node.
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
    if claimed != [node_id]:
        raise TrustError(f"node {node_id} shows a certificate with another node's id")
    return node_id


def _subject_alternative(place: str) -> x509.GeneralName:
    """Return the subject alternative name of a host name or an IP address."""
    if ":" in place or place.replace(".", "").isdecimal():
        return x509.IPAddress(ip_address(place))
    return x509.DNSName(place.encode("idna").decode())


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _builder(
    subject: x509.Name, issuer: x509.Name, serial: int, begins: datetime
) -> x509.CertificateBuilder:
    return x509.CertificateBuilder(
        issuer_name=issuer,
        subject_name=subject,
        serial_number=serial,
        not_valid_before=begins,
        not_valid_after=NOT_AFTER,
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
