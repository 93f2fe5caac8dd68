"""Visitor's side of an invite: its text, and the exchange with the member."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from typing import Final, Self

from octaskly.config.defaults import PAIRING_PORT
from octaskly.config.value_types import HostAndPort, InvalidValue
from octaskly.core.model.ids import Address
from octaskly.errors import PairingFailed
from octaskly.joining.join_by_code import (
    JoinClient,
    JoinTarget,
    discover_targets,
    parse_received_grant,
)
from octaskly.joining.key_exchange import InviteCode
from octaskly.ports.store import Clock
from octaskly.trust.tls import VisitGrant

SCHEME: Final = "octaskly://"
PLACES_MAX: Final = 32


@dataclass(frozen=True, slots=True)
class VisitorCode:
    """The text of an invite for a visitor: a code, with or without addresses."""

    code: InviteCode = field(repr=False)
    places: tuple[tuple[str, int], ...] = ()  #: of the member; empty: discover it

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `octaskly://HOST:PORT,.../CODE` or a plain code.

        Raises:
            PairingFailed: It is malformed, or for a member. The error has none of it.
        """
        text = text.strip()
        hosts, is_url = "", text.startswith(SCHEME)
        if is_url:
            hosts, _, text = text.removeprefix(SCHEME).rpartition("/")
        code = InviteCode.parse(text)
        if not code.is_for_visitor:
            raise PairingFailed(
                "this code is for a member, not for a visitor",
                hint="octaskly invite --visitor    on a member creates one",
            )
        named = hosts.split(",") if hosts else []
        try:
            kind = HostAndPort(PAIRING_PORT)
            places = tuple(kind.parse_text(each) for each in named[:PLACES_MAX])
        except InvalidValue as error:
            raise PairingFailed("the invite has no valid address") from error
        return cls(code, places)


async def join_as_visitor(
    name: str,
    key: bytes,
    invite: VisitorCode,
    clock: Clock,
    report: Callable[[str], None] = lambda _: None,
) -> tuple[VisitGrant, tuple[Address, ...]]:
    """Return what the member grants, and the addresses of its peer port.

    Raises:
        PairingFailed: No member accepted the code.
    """
    targets = _resolve(invite.places) if invite.places else discover_targets((), None)
    joiner = JoinClient(name, key, clock, report)
    admitted = await joiner.join_by_code(invite.code, targets)
    host, port = HostAndPort(0).parse_text(admitted.seed)
    return parse_received_grant(admitted.secret_text), (Address(host, port),)


async def _resolve(
    places: tuple[tuple[str, int], ...],
) -> AsyncGenerator[JoinTarget]:
    """Yield the places; those that cannot be resolved are left out.

    Raises:
        PairingFailed: None can be resolved.
    """
    loop, is_any = asyncio.get_running_loop(), False
    for host, port in places:
        try:
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError:
            continue
        is_any = True
        addresses = tuple(Address(str(entry[4][0]), port) for entry in found)
        yield JoinTarget(None, addresses)
    if not is_any:
        raise PairingFailed("no host name in the invite can be resolved")
