"""Settings that limit the resources of a node for strangers, clients and peers."""

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
    """Return the dataclass field of one setting.

    Args:
        flag: Flag of `octaskly agent`. The key in files and the variable follow it.
        value_type: Syntax and bounds of values.
        summary: Effect of the setting, in one sentence without a full stop.
        default: Default value.
        unset: The default in words, if it depends on the machine.
        details: More text for the reference page, in Markdown.
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
    """The fields of `AgentOptions` that are limits."""

    connections_max: int = setting(
        "--connections-max",
        Amount(minimum=4, maximum=defaults.COUNT_MAX),
        "number of open API connections",
        default=defaults.CONNECTIONS_MAX,
        details="fewer if the process may open fewer files; the local socket has 64 "
        "more; LAN clients together get at most three quarters",
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
        details="this is also the idle timeout of a connection",
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
        details="with at most 128 fields, on all routes; more is answered with 400 or "
        "431",
    )
    body_s: int = setting(
        "--body-timeout",
        _TIME,
        "time for the body of a request",
        default=defaults.BODY_S,
    )
    bodies_bytes: int = setting(
        "--bodies-max",
        Amount("SIZE", BYTES, minimum=defaults.BODIES_BYTES_MIN),
        "memory for request bodies, beyond 64 KiB of each",
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
        details="those of this machine have a separate limit of 96; a new connection "
        "replaces the oldest one of the address that has the most",
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
        details="a new one replaces the oldest, as at the peer port",
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
        details="twice that at the peer port for agents of the same machine",
    )
