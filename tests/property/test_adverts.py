"""Any mDNS record is a harmless sighting, or malformed."""

from __future__ import annotations

import contextlib
import ipaddress

from hypothesis import given
from hypothesis import strategies as st

from octaskly.core.model.ids import NodeId
from octaskly.mesh.discovery.adverts import (
    DISCOVERED_NODES_MAX,
    NODES_PER_ENDPOINT_MAX,
    NODES_PER_HOST_MAX,
    SERVICE,
    DiscoveredNodes,
    MalformedAdvert,
    ServiceRecord,
    node_id_of_name,
    parse_service_record,
    printable,
)
from octaskly.mesh.discovery.interfaces import LocalAddress
from octaskly.mesh.discovery.mdns import reachable_addresses
from tests.property.fuzzing import fuzz

NODES = st.text("abcdefghijklmnopqrstuvwxyz234567", min_size=16, max_size=16)
VALUES = st.one_of(
    st.none(),
    st.binary(max_size=40),
    st.sampled_from([b"n", b"d", b"u", b"mesh-1", b"boot-1", b"9" * 19, b"-1", b"7"]),
)
TXT = st.dictionaries(
    st.one_of(st.sampled_from([b"v", b"b", b"a", b"r", b"m", b"t"]), st.binary()),
    VALUES,
    max_size=8,
)
HOSTS = st.one_of(
    st.ip_addresses().map(str),
    st.sampled_from(["10.77.1.9", "fe80::5", "fe80::5%eth0", "8.8.8.8", "0.0.0.0"]),
    st.text(max_size=20),
)
LOCAL = (
    LocalAddress("10.77.1.1", 24, "eth0", 2),
    LocalAddress("fe80::1%eth0", 64, "eth0", 2),
)


@st.composite
def sightings(draw: st.DrawFn) -> ServiceRecord | None:
    """Return a record as a sighting; None: it is malformed."""
    with contextlib.suppress(MalformedAdvert):
        return parse_service_record(
            NodeId(draw(NODES)),
            txt=draw(TXT),
            txt_bytes=draw(st.integers(0, 500)),
            port=draw(st.one_of(st.none(), st.integers(-5, 70_000))),
            hosts=draw(st.lists(HOSTS, max_size=6)),
        )
    return None


@fuzz(sightings())
def test_any_record_is_a_harmless_sighting_or_malformed(
    sighting: ServiceRecord | None,
) -> None:
    """Its words are printable, and its addresses lie in our own networks."""
    if sighting is None:
        return
    words = f"{sighting.mesh}{sighting.boot}{sighting.node}"
    assert words.isascii()
    assert words.isprintable()
    assert 0 < sighting.port < 1 << 16
    assert 0 <= sighting.term < 10**18
    for address in reachable_addresses(sighting, LOCAL):
        ip = ipaddress.ip_address(address.host.partition("%")[0])
        assert any(ip in one.network for one in LOCAL)


@given(st.lists(sightings(), max_size=40))
def test_any_flood_is_bounded(flood: list[ServiceRecord | None]) -> None:
    """The table and each address in it have a bounded number of entries."""
    candidates = DiscoveredNodes()

    kept = [
        candidates.update_node(one)
        for one in flood
        if one is not None and candidates.has_room(one.node)
    ]

    assert len(candidates) <= DISCOVERED_NODES_MAX
    places = {(host, one.port) for one in kept for host in one.hosts}
    for host, port in places:
        naming = {one.node for one in kept if host in one.hosts}
        assert len(naming) <= NODES_PER_HOST_MAX
        there = {one.node: one for one in kept}
        claims = [o for o in there.values() if o.port == port and host in o.hosts]
        assert len(claims) <= NODES_PER_ENDPOINT_MAX


@fuzz(st.text(max_size=80), st.booleans(), share=0.2)
def test_any_name_is_shown_safely(text: str, is_ours: bool) -> None:
    """A name belongs to a node only if it has the form of our names."""
    name = f"{text}.{SERVICE}" if is_ours else text

    node = node_id_of_name(name)

    assert node is None or (is_ours and node == text and text.isalnum())
    assert printable(text).isprintable()
    assert len(printable(text)) <= len(text)
