"""Certificates of the mesh in real TLS, over sockets."""

from __future__ import annotations

import hashlib
import socket
import ssl
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding

from octaskly.errors import ConfigError, TrustError
from octaskly.trust import MeshTls, NodeKey, generate_secret
from octaskly.trust.certificates import (
    CertificateAuthority,
    Decade,
    identity_of_certificate,
)
from octaskly.trust.mesh_secret import MeshSecret, generate_generation
from octaskly.trust.tls import ALPN, VisitorTls, member_node_id
from tests.support.agents import WAIT_S_MAX

SECRET = generate_secret()
NOW_MS = 1_800_000_000_000


def member(secret: MeshSecret = SECRET) -> MeshTls:
    return MeshTls(secret, NodeKey.generate())


def authority_of(secret: MeshSecret) -> CertificateAuthority:
    return CertificateAuthority(
        secret.authority_seed(1),
        secret.lan_authority_seed(1),
        secret.mesh_id,
        Decade(2025),
    )


def listener(trust: MeshTls, *names: str, at: str = "127.0.0.1") -> ssl.SSLContext:
    """Return the context of an HTTPS listener for connections to its address `at`."""
    return trust.lan_server_contexts(names, ["127.0.0.1"])(at)


def shake(
    server: ssl.SSLContext, client: ssl.SSLContext, name: str | None = None
) -> tuple[ssl.SSLSocket, ssl.SSLSocket]:
    """Return both ends after a handshake and one byte from the server.

    With TLS 1.3 only that byte tells a client that its certificate was accepted.
    """
    left, right = socket.socketpair()
    ends: dict[str, ssl.SSLSocket] = {}

    def serve() -> None:
        left.settimeout(WAIT_S_MAX)
        with suppress(OSError):
            ends["served"] = server.wrap_socket(left, server_side=True)
            ends["served"].send(b"!")
        left.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        right.settimeout(WAIT_S_MAX)
        ends["dialled"] = client.wrap_socket(right, server_hostname=name)
        if ends["dialled"].recv(1) != b"!":
            raise ConnectionResetError
    except OSError:
        right.close()
        thread.join()
        for end in ends.values():
            end.close()
        raise
    thread.join()
    return ends["served"], ends["dialled"]


def test_two_members_connect_and_each_knows_the_other_s_id() -> None:
    """Mutual TLS 1.3, with the negotiated protocol."""
    a, b = member(), member()

    served, dialled = shake(a.server_context(), b.client_contexts()[0])

    with served, dialled:
        assert member_node_id(served) == b.node_id
        assert member_node_id(dialled) == a.node_id
        assert dialled.version() == "TLSv1.3"
        assert dialled.selected_alpn_protocol() == ALPN


def test_the_authority_is_the_same_bytes_on_all_nodes() -> None:
    """So any node's copy can be imported into a browser."""
    assert member().ca_pem() == member().ca_pem()
    assert member().ca_pem() != member(generate_secret()).ca_pem()


def test_the_authority_of_a_known_secret_never_changes() -> None:
    """Nodes of all versions, and all importers of it, must agree on it."""
    secret = MeshSecret((bytes(range(20)),))
    known = MeshTls(secret, NodeKey.generate(), Decade(2025))

    digests = [
        hashlib.sha256(root.encode()).hexdigest()[:16]
        for root in (known.ca_pem(), known.node_ca_pem())
    ]

    assert digests == ["15648fcc62ae1ecf", "ea71eb4e98c40060"]


def test_members_with_an_older_generation_are_still_accepted() -> None:
    """While a new secret spreads, the mesh stays connected."""
    newer = MeshSecret((*SECRET.generations, *generate_secret().generations))
    a = member(newer)

    served, dialled = shake(
        a.server_context(), MeshTls(newer, NodeKey.generate()).client_contexts()[0]
    )

    with served, dialled:
        assert a.ca_pem().count("BEGIN CERTIFICATE") == 2


def stranger(kind: str) -> ssl.SSLContext:
    """Return the client context of a stranger to the mesh."""
    if kind == "other mesh":
        context = member(generate_secret()).client_contexts()[0]
    else:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if kind == "self-signed":
        trustme.CA().issue_cert("node.test").configure_cert(context)
    if kind == "TLS 1.2":
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context


@pytest.mark.parametrize("kind", ["other mesh", "self-signed", "none", "TLS 1.2"])
@pytest.mark.filterwarnings("ignore:.*TLSv1_2.*:DeprecationWarning")
def test_a_stranger_is_refused(kind: str) -> None:
    """With any certificate: another mesh's, its own, or none."""
    with pytest.raises(OSError):
        shake(member().server_context(), stranger(kind))


def test_a_node_does_not_talk_to_a_stranger_that_listens() -> None:
    """A false node on the LAN learns nothing."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("node.test").configure_cert(context)

    with pytest.raises(ssl.SSLCertVerificationError):
        shake(context, member().client_contexts()[0])


def test_a_member_cannot_use_the_id_of_another() -> None:
    """It can sign any certificate, but the id must be that of its key."""
    authority = authority_of(SECRET)
    victim, thief = NodeKey.generate(), NodeKey.generate()
    forged = authority.node_certificate(victim.node_id, thief.private.public_key())

    with pytest.raises(TrustError, match="another node's id"):
        identity_of_certificate(forged.public_bytes(Encoding.DER))


@pytest.mark.parametrize("junk", [b"", b"\x30\x00", b"x" * 100], ids=len)
def test_an_invalid_certificate_is_refused(junk: bytes) -> None:
    """The parser's own errors never leak out."""
    with pytest.raises(TrustError):
        identity_of_certificate(junk)


def test_the_certificate_of_a_listener_is_no_node_certificate() -> None:
    """It is for HTTPS; a thief of its key cannot pose as a peer."""
    authority = authority_of(SECRET)
    public = generate_private_key(SECP256R1()).public_key()
    certificate = authority.lan_certificate(["a.local"], public)

    with pytest.raises(TrustError, match="not a node certificate"):
        identity_of_certificate(certificate.public_bytes(Encoding.DER))


def people(trust: MeshTls) -> ssl.SSLContext:
    """Return the context of a program with the mesh authority."""
    return ssl.create_default_context(cadata=trust.ca_pem())


@pytest.mark.parametrize(
    "name", ["box.local", "box.lan", "10.0.0.5", "10.0.0.6", "fe80::1", "::1"]
)
def test_clients_reach_https_by_every_local_name_of_the_machine(name: str) -> None:
    """`.local` name, `.lan` name and addresses are in the certificate."""
    trust = member()
    contexts = trust.lan_server_contexts(
        ["box", "box.local", "box.lan", "10.0.0.6"],
        ["10.0.0.5", "fe80::1%eth0", "::1", "203.0.113.5"],
    )

    served, dialled = shake(contexts("10.0.0.5"), people(trust), name)

    with served, dialled:
        assert served.getpeercert(binary_form=True) is None
        certificate = dialled.getpeercert(binary_form=True)
        assert certificate
        assert x509.load_der_x509_certificate(certificate).public_key().key_size == 256  # type: ignore[union-attr]


def test_the_certificate_has_the_addresses_of_a_machine_that_has_moved() -> None:
    """The listener is the same as before."""
    trust = member()
    contexts = trust.lan_server_contexts(["box.local"], ["127.0.0.1"])

    trust.set_lan_addresses(["10.0.0.5"])

    for name in ("10.0.0.5", "box.local"):
        for end in shake(contexts("10.0.0.5"), people(trust), name):
            end.close()


def test_apple_systems_accept_the_certificate_of_an_https_listener() -> None:
    """Since July 2019 they accept at most 825 days."""
    trust = member()

    served, dialled = shake(listener(trust, "box.local"), people(trust), "box.local")

    with served, dialled:
        shown = dialled.getpeercert()
        assert shown is not None
        begins_s = ssl.cert_time_to_seconds(str(shown["notBefore"]))
        assert begins_s < ssl.cert_time_to_seconds("Jul  1 00:00:00 2019 GMT")


def test_clients_notice_a_name_of_another_machine() -> None:
    """A certificate is for one machine, not for the whole mesh."""
    trust = member()

    with pytest.raises(ssl.SSLCertVerificationError):
        shake(listener(trust, "box.local"), people(trust), "other.local")


def test_a_revoked_node_is_refused_despite_its_valid_certificate() -> None:
    """F33: until the old generation ends, its certificate is still one of ours."""
    a, b = member(), member()
    served, dialled = shake(listener(a, "box.local"), b.lan_client_context())

    with served, dialled:
        assert a.authorized_identity(served).node == b.node_id
        a.use_secret(SECRET.with_revoked([b.node_id]))
        with pytest.raises(TrustError, match="revoked"):
            a.authorized_identity(served)


def test_the_https_listener_identifies_a_forwarding_node() -> None:
    """It authenticates the hop; the principal is stated beside it."""
    a, b = member(), member()

    served, dialled = shake(listener(a, "box.local"), b.lan_client_context())

    with served, dialled:
        assert member_node_id(served) == b.node_id


def test_a_foreign_client_certificate_is_refused_by_https_too() -> None:
    """Optional means: none, or a valid one."""
    with pytest.raises(OSError):
        shake(listener(member(), "box.local"), stranger("other mesh"))


def test_a_client_without_certificate_has_no_node_id() -> None:
    """A request for it is an error, not an empty answer."""
    trust = member()

    served, dialled = shake(listener(trust, "box.local"), people(trust), "box.local")

    with (
        served,
        dialled,
        pytest.raises(TrustError, match="no certificate"),
    ):
        member_node_id(served)


@pytest.mark.parametrize(
    ("names", "addresses"), [(["x" * 300], []), (["a..b"], []), (["10.0.0.500"], [])]
)
def test_names_that_a_certificate_cannot_contain_are_settings_errors(
    names: list[str], addresses: list[str]
) -> None:
    """The operator gets a sentence, not a traceback."""
    with pytest.raises(ConfigError, match="cannot create a certificate"):
        member().lan_server_contexts(names, addresses)


def test_creating_contexts_leaves_no_key_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys reach the TLS library through memory."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    key = NodeKey.load_or_create(tmp_path)

    trust = MeshTls(SECRET, key)
    trust.server_context()
    trust.lan_server_contexts(["box"], ["127.0.0.1"])

    assert [path.name for path in tmp_path.iterdir()] == ["node.key"]


def test_no_context_of_a_visitor_writes_its_key_to_a_disk() -> None:
    """OpenSSL reads a certificate from a file; that one is in memory."""
    key = NodeKey.generate()
    visitor = VisitorTls(member().grant_visit(key.public_bytes(), NOW_MS, 600), key)
    opened: list[str] = []
    is_watched = True

    def watch(event: str, values: tuple[object, ...]) -> None:
        if is_watched and event == "open":
            opened.append(str(values[0]))

    sys.addaudithook(watch)  # It cannot be removed, but does nothing afterwards.
    visitor.client_contexts()
    visitor.lan_client_context()
    is_watched = False

    assert all(place.isdecimal() for place in opened)  # Descriptors of memory.


def test_certificates_of_a_new_secret_are_in_use_once_they_are_adopted() -> None:
    """They are made in a thread, while the old ones are in use."""
    newer = SECRET.with_new_generation(generate_generation(), 1).with_newest_only(2)
    trust, other = member(), member(newer)
    serve = trust.lan_server_contexts([], ["127.0.0.1"])

    prepared = trust.prepare(newer)
    with pytest.raises(OSError):
        shake(trust.server_context(), other.client_contexts()[0], other.server_name)
    trust.adopt(prepared)

    peers = shake(trust.server_context(), other.client_contexts()[0], other.server_name)
    https = shake(serve("127.0.0.1"), other.lan_client_context(), "127.0.0.1")
    for end in (*peers, *https):
        end.close()
