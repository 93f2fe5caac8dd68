"""The mDNS messages of agents, as a passive host receives them."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from zeroconf._dns import DNSText
from zeroconf._protocol.incoming import DNSIncoming

from octaskly.mesh.discovery.adverts import SERVICE
from tests.mesh.conftest import MakeLab
from tests.mesh.forming import dispatcher_of, form
from tests.mesh.lab import Host
from tests.mesh.netns import wait_until

pytestmark = [pytest.mark.netns, pytest.mark.timeout(180)]

GROUP, PORT = "224.0.0.251", 5353
TICK_S = 0.2  #: seconds between two checks of the listener whether to go on
QUESTIONS = 3  #: a browser asks at once, after 1 and after 5 s
ASKED_S = 60.0
TXT_BYTES_MAX = 200
TXT_KEYS = {b"v", b"m", b"b", b"a", b"r", b"t"}

Packet = tuple[str, DNSIncoming]  #: the sender and the message


def listener(host: Host) -> socket.socket:
    """Return a socket in a host's namespace that receives all mDNS of the LAN."""

    def open_it() -> socket.socket:
        heard = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        heard.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        heard.bind((GROUP, PORT))
        joined = socket.inet_aton(GROUP) + socket.inet_aton(host.ip)
        heard.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, joined)
        heard.settimeout(TICK_S)
        return heard

    return host.call(open_it)


@contextmanager
def listening(host: Host) -> Iterator[list[Packet]]:
    """Collect messages for the length of a block."""
    packets: list[Packet] = []
    is_over = threading.Event()

    def listen(heard: socket.socket) -> None:
        while not is_over.is_set():
            try:
                data, (sender, _) = heard.recvfrom(9000)
            except TimeoutError:
                continue
            packets.append((sender, DNSIncoming(data)))

    with listener(host) as heard:
        thread = threading.Thread(target=listen, args=(heard,))
        thread.start()
        try:
            yield packets
        finally:
            is_over.set()
            thread.join()


def browsers(packets: list[Packet]) -> list[str]:
    """Return the sender of each browse query."""
    return [
        sender
        for sender, packet in packets
        if packet.is_query() and any(q.name == SERVICE for q in packet.questions)
    ]


def test_agents_send_few_messages_query_by_multicast_and_stop(
    make_lab: MakeLab,
) -> None:
    """No probe, no unicast question, no stats; a follower asks no more."""
    lab = make_lab(4)
    *hosts, ear = lab.hosts
    with listening(ear) as packets:
        form(lab, hosts=hosts)
        dispatcher = dispatcher_of(hosts[0])
        known = len(packets)
        wait_until(
            "all would have asked that still do",
            lambda: len(browsers(packets[known:])) >= QUESTIONS,
            within_s=ASKED_S,
        )
        assert dispatcher == dispatcher_of(hosts[0])

    names = {host.ip: host.name for host in hosts}
    assert {names[sender] for sender in browsers(packets[known:])} == {dispatcher}
    assert not [sender for sender, packet in packets if packet.is_probe()]
    asked = [question for _, packet in packets for question in packet.questions]
    assert not [question for question in asked if question.unicast]
    texts = [
        record.text
        for _, packet in packets
        for record in packet.answers()
        if isinstance(record, DNSText)
    ]
    assert texts
    for text in texts:
        assert len(text) < TXT_BYTES_MAX
        assert {pair.partition(b"=")[0] for pair in pairs(text)} <= TXT_KEYS


def pairs(text: bytes) -> Iterator[bytes]:
    """Return the strings of a TXT record."""
    while text:
        yield text[1 : 1 + text[0]]
        text = text[1 + text[0] :]
