"""Settings that limit the resources of a node that others may use."""

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
<<<<<<< HEAD
        value_type: How a value is written, with its bounds.
        summary: What the setting does, in one sentence without a full stop.
        default: What holds where nobody says anything.
        unset: The same in words, where it depends on the machine.
        details: What the reference page adds, in Markdown.
=======
        kind: The format and bounds of a value.
        says: The meaning, in one sentence without a full stop.
        default: The value if no source sets one.
        unset: The default in words, if it depends on the machine.
        more: Details for the reference page, in Markdown.
>>>>>>> fa2a07f (Rewrite the page on configuration and the meanings of settings)
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
    """The rows of `AgentOptions` that are limits."""

    connections_max: int = setting(
        "--connections-max",
<<<<<<< HEAD
        Amount(minimum=4, maximum=defaults.COUNT_MAX),
        "so many connections to the API at once",
        default=defaults.CONNECTIONS_MAX,
        details="fewer where the process may open fewer files; the local socket has 64 "
        "more; strangers of the LAN together get three quarters",
=======
        Amount(least=4, most=defaults.COUNT_MAX),
        "number of open API connections",
        default=defaults.CONNECTIONS_MAX,
        more="fewer if the process may open fewer files; the local socket has 64 more; "
        "LAN clients together get at most three quarters",
>>>>>>> fa2a07f (Rewrite the page on configuration and the meanings of settings)
    )
    connections_per_address: int = setting(
        "--connections-per-address",
        _COUNT,
        "number of API connections from one LAN address",
        default=defaults.CONNECTIONS_PER_ADDRESS,
        details="this machine and nodes of the mesh are exempt",
    )
    streams_max: int = setting(
        "--streams-max",
        _COUNT,
        "number of event streams among the API connections",
        default=defaults.STREAMS_MAX,
    )
    header_s: int = setting(
        "--header-timeout",
        _TIME,
        "time for a request header, from the connection or the last response",
        default=defaults.HEADER_S,
<<<<<<< HEAD
        details="so it is also how long a connection may be idle",
=======
        more="this is also the idle timeout of a connection",
>>>>>>> fa2a07f (Rewrite the page on configuration and the meanings of settings)
    )
    header_bytes: int = setting(
        "--header-max",
        Amount(
            "SIZE",
            BYTES,
            minimum=defaults.HEADER_BYTES_MIN,
            maximum=defaults.HEADER_BYTES_MAX,
        ),
        "size of the first line of a request, and of each header field",
        default=defaults.HEADER_BYTES,
<<<<<<< HEAD
        details="of at most 128 fields, on all routes; beyond it 400 or 431",
=======
        more="with at most 128 fields, on all routes; more is answered with 400 or 431",
>>>>>>> fa2a07f (Rewrite the page on configuration and the meanings of settings)
    )
    body_s: int = setting(
        "--body-timeout",
        _TIME,
        "time for the body of a request",
        default=defaults.BODY_S,
    )
    bodies_bytes: int = setting(
        "--bodies-max",
<<<<<<< HEAD
        Amount("SIZE", BYTES, minimum=defaults.BODIES_BYTES_MIN),
        "so much of bodies beyond 64 KiB each may lie in memory",
=======
        Amount("SIZE", BYTES, least=defaults.BODIES_BYTES_MIN),
        "memory for request bodies, beyond 64 KiB of each",
>>>>>>> fa2a07f (Rewrite the page on configuration and the meanings of settings)
        default=defaults.BODIES_BYTES,
    )
    stall_s: int = setting(
        "--stall-timeout",
        _TIME,
        "time until a client that reads nothing of a response is disconnected",
        default=defaults.STALL_S,
    )
    handshakes_max: int = setting(
        "--handshakes-max",
        _COUNT,
        "number of unauthenticated connections at the peer port",
        default=defaults.HANDSHAKES_MAX,
<<<<<<< HEAD
        details="those of this machine have 96 places of their own; "
        "for one more, who has waited longest of the address that has most makes room",
=======
        more="those of this machine have a separate limit of 96; a new connection "
        "replaces the oldest one of the address that has the most",
>>>>>>> fa2a07f (Rewrite the page on configuration and the meanings of settings)
    )
    handshakes_per_address: int = setting(
        "--handshakes-per-address",
        _COUNT,
        "number of unauthenticated connections from one address at the peer port",
        default=defaults.HANDSHAKES_PER_ADDRESS,
    )
    lan_handshakes_max: int = setting(
        "--lan-handshakes-max",
        _COUNT,
        "number of TLS handshakes in progress at the LAN port",
        default=defaults.LAN_HANDSHAKES_MAX,
<<<<<<< HEAD
        details="for one more, room is made as at the peer port",
=======
        more="a new one replaces the oldest, as at the peer port",
>>>>>>> fa2a07f (Rewrite the page on configuration and the meanings of settings)
    )
    lan_handshakes_per_address: int = setting(
        "--lan-handshakes-per-address",
        _COUNT,
        "number of TLS handshakes from one address at the LAN port",
        default=defaults.LAN_HANDSHAKES_PER_ADDRESS,
    )
    handshake_s: int = setting(
        "--handshake-timeout",
        _TIME,
        "time for a certificate, at the peer port and the LAN port",
        default=defaults.HANDSHAKE_S,
<<<<<<< HEAD
        details="twice as long at the peer port for agents of the same machine",
=======
        more="twice that at the peer port for agents of the same machine",
>>>>>>> fa2a07f (Rewrite the page on configuration and the meanings of settings)
    )
