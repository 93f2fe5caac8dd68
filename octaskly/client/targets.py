"""Which node a client talks to: a URL with a token, or an agent of this machine."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from octaskly.client.places import local_socket
from octaskly.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One node, as the caller named it; `url` None: an agent of this machine."""

    url: str | None = None
    token: str | None = field(default=None, repr=False)
    ca: Path | None = None
    node: str | None = None
    state_dir: Path | None = None
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ, repr=False)

    @property
    def name(self) -> str:
        """What errors call it."""
        if self.url is not None:
            return self.url
        if self.state_dir is not None:
            return f"the agent of {self.state_dir}"
        return f"the agent {self.node}" if self.node else "the agent of this machine"

    def socket(self) -> Path:
        """Return the socket of the agent; as `local_socket`."""
        return local_socket(self.environ, node=self.node, state_dir=self.state_dir)


def target(
    url: str | None = None,
    *,
    token: str | None = None,
    ca: str | Path | None = None,
    node: str | None = None,
    state_dir: str | Path | None = None,
    environ: Mapping[str, str] | None = None,
) -> Target:
    """Return the node that is meant, by what is given, then by the environment.

    Raises:
        ConfigError: it contradicts itself, or is no such URL.
    """
    environ = os.environ if environ is None else environ
    is_local = node is not None or state_dir is not None
    if is_local and (url or token or ca):
        raise ConfigError(
            "a URL, token or CA goes with no `node` or `state_dir`",
            hint="octaskly.Client(url, token=...), or octaskly.Client(node=...)",
        )
    if not is_local:
        url = url or environ.get("OCTASKLY_URL") or None
    if url is None:
        if token or ca:
            raise ConfigError(
                "a token or CA without a URL leads nowhere",
                hint='octaskly.Client("https://NODE:3443", token=..., ca=...)',
            )
        folder = state_dir if is_local else environ.get("OCTASKLY_STATE_DIR")
        return Target(
            node=node, state_dir=Path(folder) if folder else None, environ=environ
        )
    ca = ca or environ.get("OCTASKLY_CA_FILE")
    return Target(
        url=_checked(url),
        token=_token(token or environ.get("OCTASKLY_TOKEN")),
        ca=Path(ca) if ca else None,
    )


def _checked(url: str) -> str:
    """Return a URL without what follows the port."""
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"the port of {url!r} is not a number") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(
            f"{url!r} is not an http:// or https:// URL",
            hint='octaskly.Client("https://NODE:3443", token=...)',
        )
    if parts.username or parts.path.strip("/") or parts.query or parts.fragment:
        raise ConfigError(
            f"{_bare(url)!r} has more than a host and a port",
            hint='octaskly.Client("https://NODE:3443", token=...)',
        )
    if parts.scheme == "http" and not _is_loopback(parts.hostname):
        raise ConfigError(
            f"{url!r} would carry the token in the clear",
            hint=f'octaskly.Client("https://{parts.hostname}:3443", token=..., ca=...)',
        )
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}" + ("" if port is None else f":{port}")


def _bare(url: str) -> str:
    """Return a URL that may be printed: without a password."""
    return url.rpartition("@")[2]


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _token(token: str | None) -> str | None:
    """Return a token as a header can carry it."""
    token = (token or "").strip()
    if not token.isascii() or not token.isprintable():
        raise ConfigError(
            "the token holds what no token has",
            hint="octaskly token create --role client    prints one",
        )
    return token or None
