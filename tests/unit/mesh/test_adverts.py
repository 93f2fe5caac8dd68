"""mDNS records are parsed as hostile input."""

import pytest

from octaskly.core.model.ids import NodeId
from octaskly.core.model.nodes import NodeInfo
from octaskly.mesh.discovery.adverts import (
    DISCOVERED_NODES_MAX,
    SERVICE,
    DiscoveredNodes,
    MalformedAdvert,
    ServiceRecord,
    build_txt,
    node_id_of_name,
    parse_service_record,
    printable,
)

NODE = NodeId("abcdefghijklmnop")
INFO = NodeInfo(
    id=NODE,
    boot="0123456789abcdef",
    name="pi",
    slots=4,
    version="1.0",
    peer_port=7878,
    lan_port=3443,
)


def encoded(txt: dict[str, str | bytes | None]) -> dict[bytes, bytes | None]:
    """Return properties as they come from the network."""
    return {key.encode(): str(value).encode() for key, value in txt.items()}


def read(
    txt: dict[bytes, bytes | None], *, txt_bytes: int = 90, port: int | None = 7878
) -> ServiceRecord:
    return parse_service_record(
        NODE, txt=txt, txt_bytes=txt_bytes, port=port, hosts=["10.0.0.1"]
    )


def sighting(
    node: str, mesh: str | None = "m1", *, port: int = 1, hosts: tuple[str, ...] = ()
) -> ServiceRecord:
    return ServiceRecord(node=NodeId(node), mesh=mesh, boot="b", port=port, hosts=hosts)


@pytest.mark.parametrize(
    ("mesh", "is_dispatcher", "term", "expected"),
    [
        ("m1", True, 7, ("m1", True, 7)),
        ("m1", False, 7, ("m1", False, 0)),
        (None, False, 0, (None, False, 0)),
    ],
)
def test_one_node_reads_the_advert_of_another(
    mesh: str | None,
    is_dispatcher: bool,
    term: int,
    expected: tuple[str | None, bool, int],
) -> None:
    """Only a dispatcher includes the term, and only a paired node the mesh."""
    txt = build_txt(INFO, mesh_id=mesh, is_dispatcher=is_dispatcher, term=term)

    seen = read(encoded(txt))

    assert (seen.mesh, seen.is_dispatcher, seen.term) == expected
    assert (seen.boot, seen.port, seen.hosts) == (INFO.boot, 7878, ("10.0.0.1",))


def test_our_txt_is_small_and_carries_no_stats() -> None:
    """A TXT record that changes with the load is a multicast storm."""
    txt = build_txt(INFO, mesh_id="m" * 26, is_dispatcher=True, term=2**53)

    assert set(txt) == {"v", "b", "a", "r", "m", "t"}
    assert sum(len(key) + len(str(value)) + 2 for key, value in txt.items()) < 200


@pytest.mark.parametrize(
    "txt",
    [
        {},
        {b"r": None},
        {b"r": b"x", b"m": b"m1", b"b": b"1"},
        {b"r": b"n", b"m": b"", b"b": b"1"},
        {b"r": b"n", b"m": b"m\x1b[2J", b"b": b"1"},
        {b"r": b"n", b"m": b"\xff\xfe", b"b": b"1"},
        {b"r": b"n", b"m": b"m" * 65, b"b": b"1"},
        {b"r": b"n", b"m": b"m1", b"b": b"1\n"},
        {b"r": b"u"},
    ],
)
def test_a_malformed_record_is_refused(txt: dict[bytes, bytes | None]) -> None:
    """Nothing of it is used, and its text never reaches a terminal."""
    with pytest.raises(MalformedAdvert):
        read(txt)


@pytest.mark.parametrize("port", [None, 0, -1, 65536])
def test_an_unusable_port_is_malformed(port: int | None) -> None:
    """SRV records carry any 16 bits, and a record may be missing."""
    with pytest.raises(MalformedAdvert):
        read({b"r": b"n", b"m": b"m1", b"b": b"1"}, port=port)


def test_a_long_txt_is_malformed() -> None:
    """Ours has less than 200 bytes; 400 leave room for later versions."""
    txt: dict[bytes, bytes | None] = {b"r": b"n", b"m": b"m1", b"b": b"1"}

    assert read(txt, txt_bytes=400).mesh == "m1"
    with pytest.raises(MalformedAdvert):
        read(txt, txt_bytes=401)


@pytest.mark.parametrize("term", [b"", b"-1", b"1e9", b"9" * 19, b"\xd9\xa1"])
def test_a_dispatcher_without_a_valid_term_counts_as_a_node(term: bytes) -> None:
    """It is still worth a dial, whose HELLO has the real term."""
    seen = read({b"r": b"d", b"m": b"m1", b"b": b"1", b"t": term})

    assert (seen.is_dispatcher, seen.term) == (False, 0)


@pytest.mark.parametrize(
    ("name", "node"),
    [
        (f"{NODE}.{SERVICE}", NODE),
        (f"short.{SERVICE}", None),
        (f"abcdefghijklmno\x1b.{SERVICE}", None),
        (f"{NODE}.x.{SERVICE}", None),
        (f"{NODE}._http._tcp.local.", None),
        (NODE, None),
    ],
)
def test_only_instance_names_of_our_form_are_node_ids(
    name: str, node: NodeId | None
) -> None:
    """So a node id can be printed anywhere."""
    assert node_id_of_name(name) == node


def test_control_characters_of_foreign_names_are_removed() -> None:
    """A name on the LAN must not control a terminal."""
    assert printable("a\x1b[2J\u202eb\n" + "x" * 99) == "a?[2J?b?" + "x" * 56


def test_only_the_newest_sighting_of_a_node_is_kept() -> None:
    """Forgotten nodes leave nothing behind."""
    nodes = DiscoveredNodes()
    for node in "abc":
        nodes.update_node(sighting(node, "m1"))
    nodes.update_node(sighting("b", None))
    nodes.remove_node(NodeId("c"))

    assert len(nodes) == 2
    assert nodes.remove_node(NodeId("b")) == sighting("b", None)
    nodes.clear()
    assert (len(nodes), nodes._endpoint_counts, nodes._host_counts) == (0, {}, {})


def test_the_view_holds_at_most_1024_nodes() -> None:
    """A flood of adverts must not grow memory; known nodes may still change."""
    nodes = DiscoveredNodes()
    for number in range(DISCOVERED_NODES_MAX):
        nodes.update_node(sighting(f"n{number}"))

    assert not nodes.has_room(NodeId("one-more"))
    assert nodes.has_room(NodeId("n7"))


def test_an_address_in_many_adverts_is_dropped() -> None:
    """Forged adverts must not make the mesh dial a victim a thousand times."""
    nodes = DiscoveredNodes()
    kept = [
        nodes.update_node(
            sighting(f"n{number}", hosts=("10.0.0.7", f"10.0.1.{number}"))
        )
        for number in range(6)
    ]

    assert [len(each.hosts) for each in kept] == [2, 2, 2, 2, 1, 1]
    nodes.remove_node(NodeId("n0"))
    assert nodes.update_node(sighting("n4", hosts=("10.0.0.7",))).hosts == ("10.0.0.7",)


def test_one_address_may_have_64_agents_and_loopback_any_number() -> None:
    """Other ports of a victim do not evade the limit."""
    nodes = DiscoveredNodes()
    kept = [
        nodes.update_node(
            sighting(f"n{port}", port=port, hosts=("10.0.0.7", "127.0.0.1"))
        )
        for port in range(1, 101)
    ]

    assert sum("10.0.0.7" in each.hosts for each in kept) == 64
    assert all("127.0.0.1" in each.hosts for each in kept)


def test_a_node_that_is_seen_again_keeps_its_addresses() -> None:
    """Its own earlier advert does not count against it."""
    nodes = DiscoveredNodes()
    for _ in range(20):
        kept = nodes.update_node(sighting("n1", hosts=("10.0.0.7",)))
        assert kept.hosts == ("10.0.0.7",)
    nodes.remove_node(NodeId("n1"))
    assert not nodes._endpoint_counts
    assert not nodes._host_counts
