"""Names and addresses that certificates of the mesh authority may contain.

Someone who trusts the authority, for example in a browser, must not thereby trust it
for any site of the internet. Its roots therefore have critical name constraints
(RFC 5280, 4.2.1.10). A single name outside them invalidates a whole certificate.
"""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Final

from cryptography import x509

from octaskly.core.model.ids import NodeId

NODE_SUFFIX: Final = "octaskly.internal"
"""Names of nodes, by their ids. ICANN reserves `.internal` for private use."""

LOCAL_SUFFIXES: Final = ("local", "internal", "home.arpa", "lan")
"""Domains of private networks, which include the names of nodes."""

LOCAL_NETWORKS: Final = tuple(
    map(
        ip_network,
        (
            "10.0.0.0/8",
            "127.0.0.0/8",
            "169.254.0.0/16",
            "172.16.0.0/12",
            "192.168.0.0/16",
            "::1/128",
            "fc00::/7",
            "fe80::/10",
        ),
    )
)
"""Private, loopback and link-local addresses: RFC 1918, 3927, 4193, 4291."""


def node_name(node_id: NodeId) -> str:
    """Return the DNS name of a node in its certificates."""
    return f"{node_id}.{NODE_SUFFIX}"


def is_local(place: str) -> bool:
    """Return True if a certificate of the mesh may contain this host name or address.

    Any text is allowed: the SNI name of a stranger is also checked here.
    """
    try:
        address = ip_address(place.partition("%")[0])
    except ValueError:
        name = place.lower().removesuffix(".")
        return name.endswith(tuple(f".{suffix}" for suffix in LOCAL_SUFFIXES))
    if address.version == 6 and address.ipv4_mapped is not None:  # noqa: PLR2004
        address = address.ipv4_mapped
    return any(address in network for network in LOCAL_NETWORKS)


def https_constraints() -> x509.NameConstraints:
    """Return the constraints of the root for HTTPS."""
    return x509.NameConstraints(
        permitted_subtrees=[
            *map(x509.DNSName, LOCAL_SUFFIXES),
            *map(x509.IPAddress, LOCAL_NETWORKS),
        ],
        excluded_subtrees=None,
    )


def node_constraints() -> x509.NameConstraints:
    """Return the constraints of the root for peer links: names of nodes only."""
    every_address = map(ip_network, ("0.0.0.0/0", "::/0"))
    return x509.NameConstraints(
        permitted_subtrees=[x509.DNSName(NODE_SUFFIX)],
        excluded_subtrees=[x509.IPAddress(network) for network in every_address],
    )


def subject_alternative(place: str) -> x509.GeneralName:
    """Return the subject alternative name of a host name or an IP address.

    Raises:
        ValueError: The name or the address is invalid.
    """
    bare = place.partition("%")[0]
    if ":" in bare or bare.replace(".", "").isdecimal():
        return x509.IPAddress(ip_address(bare))
    return x509.DNSName(bare.encode("idna").decode())
