"""Checks of Host, Origin and fetch metadata, and CORS headers.

They stop two attacks by web pages: reaching this node through a name that the page
controls (DNS rebinding), and making a browser send requests on the page's behalf.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache

from octaskly.api.problems import ACCESS_DENIED, Problem
from octaskly.config.defaults import PORT_MAX

_LOCAL_ORIGIN = re.compile(r"https?://(?:localhost|127\.0\.0\.1)(?::([0-9]{1,5}))?")
_AUTHORITY = re.compile(
    r"(?:(?P<name>[A-Za-z0-9._-]{1,255})|\[(?P<v6>[0-9A-Fa-f:.]{2,45})(?:%25?[\w.-]+)?\])"
    r"(?::(?P<port>[0-9]{1,5}))?",
    re.ASCII,
)
_HOST_CACHE_MAX = 256

METHODS = "GET, POST, DELETE, OPTIONS"
REQUEST_HEADERS = (
    "Content-Type, Authorization, X-Custom-Header, Idempotency-Key, Last-Event-ID"
)
RESPONSE_HEADERS = "X-Request-ID, X-Response-Time-ms"
PREFLIGHT_MAX_AGE_S = 600


class AllowList:
    """The allow lists of one node for Host and Origin."""

    def __init__(self, *, names: Collection[str], origins: Collection[str]) -> None:
        self._host_names = {name.lower().removesuffix(".") for name in names}
        self._origins = frozenset(origins)
        # Nearly all requests have one of a few hosts.
        self._is_own_host = lru_cache(_HOST_CACHE_MAX)(self._match_own_host)

    def check_host(
        self, hosts: Sequence[str], uri_host: str | None, own: frozenset[str]
    ) -> None:
        """Raise `Problem` for a request that is addressed to another host.

        Args:
            hosts: Values of all Host headers.
            uri_host: Authority of a request target in absolute form.
            own: Further names and addresses of this listener.
        """
        if len(hosts) != 1 or not hosts[0]:
            raise Problem(
                400,
                "Bad request",
                hint="exactly one Host header is needed",
                closes_connection=True,
            )
        for host in (hosts[0], uri_host):
            if host is not None and not self._is_own_host(host, own):
                raise Problem(
                    403,
                    ACCESS_DENIED,
                    hint=f"host not allowed: {host[:80]!a}; "
                    "use localhost, or start the agent with --allow-host",
                    field="Host",
                )

    def allowed_origin(self, headers: Mapping[str, str], scheme: str) -> str | None:
        """Return the Origin to reflect; raise `Problem` for a foreign one."""
        origin = headers.get("Origin")
        if origin is None:
            site = headers.get("Sec-Fetch-Site")
            if site and site.strip().lower() == "cross-site":
                raise _foreign_origin_problem(
                    "Sec-Fetch-Site", "the request comes from a page of another site"
                )
            return None
        if self._is_local_origin(origin) or origin in self._origins:
            return origin
        # This listener served the page itself; its Host header is already verified.
        if origin == f"{scheme}://{headers.get('Host', '')}".lower():
            return origin
        raise _foreign_origin_problem(
            "Origin",
            f"origin not allowed: {origin[:80]!a}; "
            "start the agent with --cors-origin to allow it",
        )

    def _match_own_host(self, host: str, own: frozenset[str]) -> bool:
        match = _AUTHORITY.fullmatch(host)
        if match is None or int(match["port"] or 0) > PORT_MAX:
            return False
        literal = match["v6"] or match["name"]
        try:
            address = ipaddress.ip_address(literal)
        except ValueError:
            name = literal.lower().removesuffix(".")
            return name == "localhost" or name in self._host_names or name in own
        if isinstance(address, ipaddress.IPv6Address) and not match["v6"]:
            return False
        text = str(address)
        return address.is_loopback or text in own or text in self._host_names

    @staticmethod
    def _is_local_origin(origin: str) -> bool:
        match = _LOCAL_ORIGIN.fullmatch(origin)
        return match is not None and int(match[1] or 0) <= PORT_MAX


def cors_headers(origin: str | None) -> dict[str, str]:
    """Return the headers that let a page of an allowed origin read the response."""
    if origin is None:
        return {}
    return {
        "Access-Control-Allow-Origin": origin,
        "Access-Control-Expose-Headers": RESPONSE_HEADERS,
    }


def preflight_headers(origin: str | None, allow: str) -> dict[str, str]:
    """Return the headers of the response to OPTIONS."""
    headers = {"Allow": allow}
    if origin is not None:
        headers["Access-Control-Allow-Methods"] = METHODS
        headers["Access-Control-Allow-Headers"] = REQUEST_HEADERS
        headers["Access-Control-Max-Age"] = str(PREFLIGHT_MAX_AGE_S)
    return headers


def _foreign_origin_problem(field: str, hint: str) -> Problem:
    return Problem(403, ACCESS_DENIED, hint=hint, field=field)
