"""Joiner's side of a pairing without a code: wait for a member and compare words.

`octaskly join` runs this in its own process. It listens only while it waits, and for
one member. Each command shows words only once. Whoever receives the share of this
machine can compute the words, and break off unless they match those that a member
shows. So each share that is sent is a try, and a command sends at most
`COMPARISONS_MAX`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from octaskly import __version__
from octaskly.config.defaults import PAIRING_PORT
from octaskly.config.units import host_and_port
from octaskly.core.model.nodes import NodeInfo
from octaskly.errors import PairingFailed
from octaskly.joining.conversation import Conversation, serve_connections
from octaskly.joining.fingerprint import (
    COMMITMENT_BYTES,
    KEY_SHARE_BYTES,
    KeyShare,
    fingerprint,
    verify_commitment,
)
from octaskly.joining.greeting import GREETING_BYTES, Greeting
from octaskly.joining.join_by_code import JoinGrant
from octaskly.joining.key_exchange import (
    NO_PROOF,
    PROOF_BYTES,
    SEALED_BYTES,
    PairingKeys,
    is_proof_valid,
    unseal_secret,
)
from octaskly.mesh.discovery.interfaces import local_addresses
from octaskly.mesh.discovery.mdns_scan import advertise_pairing
from octaskly.system.clock import SystemClock
from octaskly.system.listening_sockets import WILDCARD_ADDRESSES, bind_port, port_of
from octaskly.trust import node_id_of

MEMBER_WAIT_S: Final = 600.0  #: to wait for the connection of a member
COMPARISONS_MAX: Final = 8  #: shares sent while this machine waits
APPROVAL_WAIT_S: Final = 300.0  #: to wait for a person to approve on the member


@dataclass(frozen=True, slots=True)
class PendingComparison:
    """A connection to a member before people have compared the words."""

    member: Greeting
    words: str
    conversation: Conversation
    keys: PairingKeys


async def wait_for_member(
    name: str, key: bytes, interfaces: Sequence[str]
) -> PendingComparison:
    """Advertise this machine, and wait for the first member that connects.

    Args:
        name: Name of this node.
        key: Its public key.
        interfaces: Names of the interfaces to use; empty for the default choice.

    Raises:
        PairingFailed: No member connected within `MEMBER_WAIT_S`, or
            `COMPARISONS_MAX` connections ended before the words were shown.
        ConfigError: No port is free, or an interface does not exist.
    """
    clock = SystemClock()
    local = [one.host for one in local_addresses(interfaces)]
    sockets = bind_port(
        "--pairing-port",
        requested=None,
        default=PAIRING_PORT,
        addresses=local if interfaces else WILDCARD_ADDRESSES,
    )
    first = _FirstComparison(name, key, clock)
    async with asyncio.TaskGroup() as tasks:
        listening = tasks.create_task(serve_connections(sockets, first.welcome))
        try:
            node = _beacon_info(name, key, port_of(sockets), clock)
            async with advertise_pairing(node, mesh_id=None, interfaces=interfaces):
                await asyncio.wait([first.reached], timeout=MEMBER_WAIT_S)
        finally:
            listening.cancel()
    if not first.reached.done():
        raise PairingFailed(
            f"no member connected within {MEMBER_WAIT_S / 60:.0f} minutes",
            hint=f"octaskly approve {name}    on a member, while this command waits",
        )
    return first.reached.result()


class _FirstComparison:
    """The comparison with the first member that goes through with it."""

    def __init__(self, name: str, key: bytes, clock: SystemClock) -> None:
        self._name, self._key, self._clock = name, key, clock
        self._shares_sent = 0
        self.reached: asyncio.Future[PendingComparison] = (
            asyncio.get_running_loop().create_future()
        )

    async def welcome(self, conversation: Conversation) -> None:
        """Exchange shares with a machine that connects."""
        opening = await conversation.receive(GREETING_BYTES + COMMITMENT_BYTES)
        now_ms = self._clock.now().wall_ms
        member = Greeting.unpack(opening[:GREETING_BYTES])
        member.require_compatible(now_ms)
        if self.reached.done():
            return
        if self._shares_sent == COMPARISONS_MAX:
            self.reached.set_exception(_broken_off_error(conversation.host))
            return
        self._shares_sent += 1
        own = Greeting(name=self._name, key=self._key, wall_ms=now_ms)
        comparison = await _exchange_fingerprints(conversation, opening, member, own)
        if not self.reached.done():
            conversation.detach()
            self.reached.set_result(comparison)


def _beacon_info(name: str, key: bytes, port: int, clock: SystemClock) -> NodeInfo:
    """Return the node that `advertise_pairing` advertises."""
    return NodeInfo(
        id=node_id_of(key),
        boot=clock.hex_digits(16),
        name=name,
        slots=1,
        version=__version__,
        peer_port=port,
        lan_port=0,
    )


async def receive_approval(meeting: PendingComparison) -> JoinGrant:
    """Wait for approval on the member, and return the received grant.

    Raises:
        PairingFailed: It was refused or timed out, or the proof is not the member's.
    """
    name = meeting.member.name
    conversation = meeting.conversation
    try:
        async with asyncio.timeout(APPROVAL_WAIT_S):
            proof = await conversation.receive(PROOF_BYTES)
            is_no = is_proof_valid(proof, NO_PROOF)
            sealed = b"" if is_no else await conversation.receive(SEALED_BYTES)
    except OSError as error:
        raise PairingFailed(
            f"{name} did not admit this machine",
            cause="nobody approved in time" if not str(error) else str(error),
            hint="octaskly join    tries again",
        ) from None
    finally:
        conversation.close()
    if is_no:
        raise PairingFailed(
            f"{name} refused, because the words differ",
            cause="another machine may intercept the connection",
            hint="octaskly join    tries again; if the words differ again, use a "
            "code from `octaskly invite`",
        )
    if not is_proof_valid(proof, meeting.keys.member_proof()):
        raise PairingFailed(f"the answer of {name} has a wrong proof of identity")
    return JoinGrant(
        secret_text=unseal_secret(meeting.keys, sealed),
        member=name,
        seed=host_and_port(conversation.host, meeting.member.slot_or_port),
    )


async def _exchange_fingerprints(
    conversation: Conversation, first: bytes, member: Greeting, own: Greeting
) -> PendingComparison:
    """Answer a member's first message, up to the words; see `joining.fingerprint`."""
    greeting, committed = first[:GREETING_BYTES], first[GREETING_BYTES:]
    share = KeyShare.generate()
    second = own.pack() + share.public()
    await conversation.send(second)
    theirs = await conversation.receive(KEY_SHARE_BYTES)
    verify_commitment(committed, greeting, theirs)
    keys = share.derive_keys(theirs, first, second, theirs)
    return PendingComparison(member, fingerprint(keys), conversation, keys)


def _broken_off_error(host: str) -> PairingFailed:
    return PairingFailed(
        f"{COMPARISONS_MAX} connections ended before the words could be compared",
        cause=f"another machine may try to imitate a member; {host} connected last",
        hint="octaskly invite    on a member shows a code for `octaskly join CODE`",
    )
