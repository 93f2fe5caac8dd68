"""Settings that bound what strangers, clients and peers may take of a node."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from octaskly.config import defaults
from octaskly.config.units import BYTES, SECONDS
from octaskly.config.value_types import Amount, ValueType

_TIME = Amount("T", SECONDS, minimum=1, maximum=defaults.DEADLINE_S_MAX)
_COUNT = Amount(minimum=1, maximum=defaults.COUNT_MAX)


def setting(
    flag: str,
    value_type: ValueType,
    summary: str,
    *,
    default: object = None,
    unset: str = "",
    details: str = "",
) -> Any:
    """Return the field of one row.

    Args:
        flag: Of `octaskly agent`; the key in files and the variable follow from it.
        value_type: How a value is written, with its bounds.
        summary: What the setting does, in one sentence without a full stop.
        default: What holds where nobody says anything.
        unset: The same in words, where it depends on the machine.
        details: What the reference page adds, in Markdown.
    """
    shown = {
        "flag": flag,
        "value_type": value_type,
        "summary": summary,
        "unset": unset,
        "details": details,
    }
    return field(default=default, metadata=shown)


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitOptions:
    """The rows of `AgentOptions` that are bounds."""

    connections_max: int = setting(
        "--connections-max",
        Amount(minimum=4, maximum=defaults.COUNT_MAX),
        "so many connections to the API at once",
        default=defaults.CONNECTIONS_MAX,
        details="fewer where the process may open fewer files; the local socket has 64 "
        "more; strangers of the LAN together get three quarters",
    )
    connections_per_address: int = setting(
        "--connections-per-address",
        _COUNT,
        "so many of them from one address of the LAN",
        default=defaults.CONNECTIONS_PER_ADDRESS,
        details="this machine and nodes of the mesh are exempt",
    )
    streams_max: int = setting(
        "--streams-max",
        _COUNT,
        "so many of them may be streams of events",
        default=defaults.STREAMS_MAX,
    )
    header_s: int = setting(
        "--header-timeout",
        _TIME,
        "for the header of a request, from the connection or the last answer",
        default=defaults.HEADER_S,
        details="so it is also how long a connection may be idle",
    )
    header_bytes: int = setting(
        "--header-max",
        Amount(
            "SIZE",
            BYTES,
            minimum=defaults.HEADER_BYTES_MIN,
            maximum=defaults.HEADER_BYTES_MAX,
        ),
        "for the first line of a request, and for each field of its header",
        default=defaults.HEADER_BYTES,
        details="of at most 128 fields, on all routes; beyond it 400 or 431",
    )
    body_s: int = setting(
        "--body-timeout",
        _TIME,
        "for the body of a request",
        default=defaults.BODY_S,
    )
    bodies_bytes: int = setting(
        "--bodies-max",
        Amount("SIZE", BYTES, minimum=defaults.BODIES_BYTES_MIN),
        "so much of bodies beyond 64 KiB each may lie in memory",
        default=defaults.BODIES_BYTES,
    )
    stall_s: int = setting(
        "--stall-timeout",
        _TIME,
        "until a client that reads nothing of an answer is cut",
        default=defaults.STALL_S,
    )
    handshakes_max: int = setting(
        "--handshakes-max",
        _COUNT,
        "so many strangers at once at the peer port",
        default=defaults.HANDSHAKES_MAX,
        details="those of this machine have 96 places of their own; "
        "for one more, who has waited longest of the address that has most makes room",
    )
    handshakes_per_address: int = setting(
        "--handshakes-per-address",
        _COUNT,
        "so many of them from one address",
        default=defaults.HANDSHAKES_PER_ADDRESS,
    )
    lan_handshakes_max: int = setting(
        "--lan-handshakes-max",
        _COUNT,
        "so many TLS handshakes at once at the LAN port",
        default=defaults.LAN_HANDSHAKES_MAX,
        details="for one more, room is made as at the peer port",
    )
    lan_handshakes_per_address: int = setting(
        "--lan-handshakes-per-address",
        _COUNT,
        "so many of them from one address",
        default=defaults.LAN_HANDSHAKES_PER_ADDRESS,
    )
    handshake_s: int = setting(
        "--handshake-timeout",
        _TIME,
        "for a certificate, at the peer port and at the LAN port",
        default=defaults.HANDSHAKE_S,
        details="twice as long at the peer port for agents of the same machine",
    )
