"""The node that a client uses: a URL with a token, or an agent of this machine."""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from octaskly.client.local_agents import find_agent_socket
from octaskly.config.client_settings_file import read_client_settings
from octaskly.config.units import is_host
from octaskly.errors import ConfigError

_LOOPBACK_NET = 127
_URLS = "https://NODE:3443, or http://localhost:3000 on this machine"


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """One node; without `url`, an agent of this machine."""

    url: str | None = None
    token: str | None = None
    ca: Path | None = None
    node: str | None = None
    state_dir: Path | None = None
    path: Path | None = None  #: socket of the agent, if already known
    environ: Mapping[str, str] = msgspec.field(default_factory=lambda: os.environ)

    def __repr__(self) -> str:
        """Hide the token, and the environment, which may contain one."""
        return f"Endpoint({self.label!r})"

    @property
    def label(self) -> str:
        """Name of the node in error messages."""
        if self.url is not None:
            return self.url
        if self.path is not None:
            return str(self.path)
        if self.state_dir is not None:
            return f"the agent of {self.state_dir}"
        return f"the agent {self.node}" if self.node else "the agent of this machine"

    def socket_path(self) -> Path:
        """Return the socket of the agent; raises as `find_agent_socket` does."""
        if self.path is not None:
            return self.path
        return find_agent_socket(self.environ, node=self.node, state_dir=self.state_dir)


def resolve_endpoint(
    url: str | None = None,
    *,
    token: str | None = None,
    ca: str | Path | None = None,
    node: str | None = None,
    state_dir: str | Path | None = None,
    environ: Mapping[str, str] | None = None,
    is_local: bool = False,
) -> Endpoint:
    """Return the node named by the arguments, the environment or a settings file.

    The first source that names a node decides. Within a source, a URL takes precedence
    over an agent. `is_local` ignores every URL and returns an agent of this machine.

    Raises:
        ConfigError: the arguments contradict each other, or the URL is invalid.
    """
    environ = os.environ if environ is None else environ
    said = {"url": url, "node": node, "state_dir": state_dir}
    if (node or state_dir) and (url or token or ca):
        raise ConfigError(
            "a URL, token or CA cannot be used with an agent of this machine",
            hint="give the URL of a node, or the name or state folder of an agent",
        )
    chosen = _first_source(said, environ, is_local=is_local)
    if chosen.get("url") and not is_local:
        ca = ca or environ.get("OCTASKLY_CA_FILE") or _ca_file(environ)
        return Endpoint(
            url=_normalize_url(chosen["url"]),
            token=_token(token or environ.get("OCTASKLY_TOKEN")),
            ca=Path(ca) if ca else None,
        )
    if token or ca:
        raise ConfigError("a token or CA needs a URL", hint=_URLS)
    folder = chosen.get("state_dir")
    return Endpoint(
        node=None if folder else chosen.get("node"),
        state_dir=Path(folder) if folder else None,
        environ=environ,
    )


def _first_source(
    said: Mapping[str, Any], environ: Mapping[str, str], *, is_local: bool
) -> Mapping[str, Any]:
    """Return the settings of the first source that names a node."""
    keys = ("node", "state_dir") if is_local else ("url", "node", "state_dir")
    variables = {
        "url": environ.get("OCTASKLY_URL"),
        "state_dir": environ.get("OCTASKLY_STATE_DIR"),
    }
    sources = itertools.chain((said, variables), read_client_settings(environ))
    return next((each for each in sources if any(map(each.get, keys))), {})


def _ca_file(environ: Mapping[str, str]) -> str | None:
    files = read_client_settings(environ)
    return next((said["ca_file"] for said in files if "ca_file" in said), None)


def _normalize_url(url: str) -> str:
    """Return scheme, host and port of a URL; reject anything after the port."""
    given, url = url, _without_password(url)
    try:
        parts = urlsplit(given)
    except ValueError as error:
        raise ConfigError(f"{url!r} has no valid host", hint=_URLS) from error
    try:
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"the port of {url!r} is not a number") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(
            f"{url!r} is not an http:// or https:// URL",
            hint=_URLS,
        )
    if not is_host(parts.hostname):
        raise ConfigError(f"{url!r} has no valid host", hint=_URLS)
    if parts.username or parts.path.strip("/") or parts.query or parts.fragment:
        raise ConfigError(
            f"{url!r} contains more than a host and a port",
            hint=_URLS,
        )
    if parts.scheme == "http" and not _is_loopback(parts.hostname):
        raise ConfigError(
            f"{url!r} would send the token unencrypted",
            hint=f"https://{parts.hostname}:3443    with the CA of `octaskly ca`",
        )
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}" + ("" if port is None else f":{port}")


def _without_password(url: str) -> str:
    """Return a URL without its password, safe to print."""
    return url.rpartition("@")[2]


def _is_loopback(host: str) -> bool:
    if host in ("localhost", "::1"):
        return True
    try:
        return socket.inet_pton(socket.AF_INET, host)[0] == _LOOPBACK_NET
    except OSError:
        return False


def _token(token: str | None) -> str | None:
    """Return a token in a form that an HTTP header can carry."""
    token = (token or "").strip()
    if not token.isascii() or not token.isprintable():
        raise ConfigError(
            "the token contains an invalid character",
            hint="octaskly token create --role client    prints one",
        )
    return token or None
