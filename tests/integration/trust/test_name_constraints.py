"""S7: who trusts the mesh authority trusts it for nothing outside the LAN."""

from __future__ import annotations

import base64
import hashlib
import shutil
import ssl
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
)

from octaskly.trust import MeshTls, NodeKey, generate_secret
from octaskly.trust.certificates import Decade
from octaskly.trust.name_constraints import is_local
from octaskly.trust.tls import https_pin, member_node_id
from tests.integration.trust.test_certificates import people, shake
from tests.support.agents import WAIT_S_MAX
from tests.support.forged_sites import BODY, authority, forged, serving

SECRET = generate_secret()
OUTSIDE = (
    "bank.example",
    "box",
    "box.local.example",
    "8.8.8.8",
    "2001:db8::1",
)


def curl(host: str, port: int, *options: str) -> subprocess.CompletedProcess[str]:
    """Ask a name, all of which are this machine here."""
    url = f"https://{f'[{host}]' if ':' in host else host}:{port}/"
    return subprocess.run(
        ("curl", "-sS", "--connect-to", f"::127.0.0.1:{port}", *options, url),
        capture_output=True,
        text=True,
        check=False,
        timeout=WAIT_S_MAX,
    )


needs_curl = pytest.mark.skipif(not shutil.which("curl"), reason="apt install curl")


@pytest.mark.parametrize("place", OUTSIDE)
def test_a_stolen_authority_cannot_sign_for_other_sites(
    tmp_path: Path, place: str
) -> None:
    """Clients that trust the mesh accept no such certificate."""
    trust = MeshTls(SECRET, NodeKey.generate())

    with pytest.raises(ssl.SSLCertVerificationError, match="permitted subtree"):
        shake(forged(SECRET, tmp_path, place), people(trust), place)


def test_one_name_outside_invalidates_the_whole_certificate(tmp_path: Path) -> None:
    """Therefore the listener's certificate must have none."""
    trust = MeshTls(SECRET, NodeKey.generate())

    with pytest.raises(ssl.SSLCertVerificationError, match="permitted subtree"):
        shake(forged(SECRET, tmp_path, "a.local", "box"), people(trust), "a.local")


def test_the_root_of_nodes_signs_for_nodes_only(tmp_path: Path) -> None:
    """It is not printed; who has it all the same trusts it for no local name."""
    trust = MeshTls(SECRET, NodeKey.generate())
    context = ssl.create_default_context(cadata=trust.node_ca_pem())
    for place in ("bank.example", "box.local", "10.0.0.5", "::1"):
        with pytest.raises(ssl.SSLCertVerificationError, match="subtree"):
            shake(forged(SECRET, tmp_path, place, root="_nodes"), context, place)
    assert trust.node_ca_pem() not in trust.ca_pem()


def test_both_roots_are_constrained_and_valid_for_ten_years() -> None:
    """The constraints are critical, so programs that lack them reject the root."""
    roots = authority(SECRET).https_root, authority(SECRET).node_root
    for root in roots:
        found = root.extensions.get_extension_for_class(x509.NameConstraints)
        assert found.critical
        begins, ends = root.not_valid_before_utc, root.not_valid_after_utc
        assert ends == begins.replace(year=begins.year + 10)


@pytest.mark.parametrize(
    ("year", "first_year"),
    [(1970, 2025), (2025, 2025), (2029, 2025), (2030, 2030), (2119, 2115)],
)
def test_a_new_decade_starts_every_five_years(year: int, first_year: int) -> None:
    """A root from today is good for five years more; a reset clock harms nothing."""
    assert Decade.at(year) == Decade(first_year)


def test_nodes_of_two_decades_accept_each_other() -> None:
    """One has a wrong clock, or was started before the turn."""
    old, new = (
        MeshTls(SECRET, NodeKey.generate(), Decade(year)) for year in (1990, 2115)
    )
    for a, b in ((old, new), (new, old)):
        served, dialled = shake(a.server_context(), b.client_contexts()[0])
        with served, dialled:
            assert member_node_id(dialled) == a.node_id
        contexts = a.lan_server_contexts([], ["10.0.0.5"])
        served, dialled = shake(contexts("10.0.0.5"), b.lan_client_context())
        with served, dialled:
            assert member_node_id(served) == b.node_id


def test_a_root_of_this_decade_accepts_certificates_of_the_next() -> None:
    """Nobody has to install a root twice in five years."""
    this = MeshTls(SECRET, NodeKey.generate(), Decade.current())
    following = Decade(Decade.current().first_year + 5)
    contexts = MeshTls(SECRET, NodeKey.generate(), following).lan_server_contexts(
        ["box.local"], []
    )

    served, dialled = shake(contexts("10.0.0.5"), people(this), "box.local")

    served.close()
    dialled.close()


@pytest.mark.parametrize("place", ["box", "node.example", "203.0.113.5", "2001:db8::1"])
def test_a_name_outside_gets_a_certificate_with_the_node_s_pin(place: str) -> None:
    """It contains the name; no authority has signed it; its key is always the same."""
    key = NodeKey.generate()
    trust = MeshTls(SECRET, key)
    shown = []
    for again in (trust, MeshTls(SECRET, key)):
        contexts = again.lan_server_contexts(["box.local", place], ["10.0.0.5"])
        with pytest.raises(ssl.SSLCertVerificationError, match="self-signed"):
            shake(contexts(place), people(trust), place)
        anyone = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        anyone.check_hostname, anyone.verify_mode = False, ssl.CERT_NONE
        served, dialled = shake(contexts(place), anyone, place)
        with served, dialled:
            shown.append(dialled.getpeercert(binary_form=True) or b"")

    assert shown[0] == shown[1]
    certificate = x509.load_der_x509_certificate(shown[0])
    key_der = certificate.public_key().public_bytes(
        Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    )
    pin = base64.b64encode(hashlib.sha256(key_der).digest()).decode()
    assert https_pin(key) == f"sha256//{pin}"
    # A program that takes this certificate as its CA file finds the name in it.
    contexts = trust.lan_server_contexts(["box.local", place], ["10.0.0.5"])
    only = ssl.create_default_context(cadata=ssl.DER_cert_to_PEM_cert(shown[0]))
    only.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    served, dialled = shake(contexts(place), only, place)
    served.close()
    dialled.close()


@pytest.mark.parametrize("at", ["203.0.113.5", "2001:db8::1", "10.0.0.5"])
def test_nodes_get_the_signed_certificate_at_every_address(at: str) -> None:
    """Requests are forwarded to global addresses, too."""
    a, b = MeshTls(SECRET, NodeKey.generate()), MeshTls(SECRET, NodeKey.generate())
    contexts = a.lan_server_contexts(["box", "box.local"], [at])

    served, dialled = shake(contexts(at), b.lan_client_context(), at)

    with served, dialled:
        assert member_node_id(served) == b.node_id


def test_a_renewed_secret_signs_for_names_inside_and_changes_no_pin() -> None:
    """The contexts of a running listener follow the secret."""
    trust = MeshTls(SECRET, NodeKey.generate())
    contexts = trust.lan_server_contexts(["box", "box.local"], [])
    newer = generate_secret()
    trust.use_secret(newer)

    served, dialled = shake(
        contexts("10.0.0.5"),
        people(MeshTls(newer, NodeKey.generate())),
        "box.local",
    )
    served.close()
    dialled.close()
    with pytest.raises(ssl.SSLCertVerificationError, match="self-signed"):
        shake(contexts("10.0.0.5"), people(trust), "box")


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("box.local", True),
        ("BOX.Local.", True),
        ("a.b.home.arpa", True),
        ("box.lan", True),
        ("x.internal", True),
        ("127.0.0.1", True),
        ("172.31.255.255", True),
        ("169.254.1.1", True),
        ("fe80::1%eth0", True),
        ("fd00::1", True),
        ("::ffff:10.0.0.1", True),
        ("172.32.0.1", False),
        ("::ffff:8.8.8.8", False),
        ("fec0::1", False),
        ("evillocal", False),
        ("home.arpa", False),
        ("box.local\0.example", False),
        ("", False),
        (".", False),
        ("\udcff", False),
    ],
)
def test_what_a_certificate_of_the_mesh_may_contain(place: str, expected: bool) -> None:
    """Any text is decided without an error: strangers send it."""
    assert is_local(place) is expected


@needs_curl
@pytest.mark.parametrize(
    ("place", "is_accepted"),
    [("box.local", True), ("10.0.0.5", True), ("bank.example", False), ("box", False)],
)
def test_curl_keeps_to_the_constraints(
    tmp_path: Path, place: str, *, is_accepted: bool
) -> None:
    """It trusts the mesh for local names, and for no other site."""
    root = tmp_path / "ca.pem"
    root.write_text(MeshTls(SECRET, NodeKey.generate()).ca_pem())

    with serving(forged(SECRET, tmp_path, place)) as port:
        done = curl(place, port, "--cacert", str(root))

    assert (done.stdout == BODY) is is_accepted, done.stderr
    if not is_accepted:
        assert "subtree" in done.stderr


@needs_curl
@pytest.mark.parametrize("place", ["box", "203.0.113.5"])
def test_curl_checks_the_pin_of_a_node(place: str) -> None:
    """The command of the reference accepts this node, and no other."""
    key = NodeKey.generate()
    trust = MeshTls(SECRET, key)
    contexts = trust.lan_server_contexts(["box", "203.0.113.5"], [])

    with serving(contexts(place)) as port:
        right, wrong = (
            curl(place, port, "-k", "--pinnedpubkey", pin)
            for pin in (https_pin(key), https_pin(NodeKey.generate()))
        )

    assert right.stdout == BODY, right.stderr
    assert not wrong.stdout
    assert "pinned" in wrong.stderr
