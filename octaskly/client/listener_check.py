"""Check of the listener of a loopback port before a token is sent to it.

Plain HTTP does not prove who answers, and any user of a machine may listen on a port
that is free. The kernel's tables name the user of each listener.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection
from pathlib import Path
from typing import Final

from octaskly.client.errors import Unreachable
from octaskly.config.users import user_name
from octaskly.errors import ConfigError
from octaskly.system.tcp_table import Listener, listeners_on

RUN_FOLDER: Final = Path("/run/octaskly")  #: of the system service; made by root
HINT: Final = (
    "without a URL, the agent of this machine is used through its own socket\n"
    "https://HOST:3443    with the CA of `octaskly ca` proves that a node answers"
)


def require_trusted_listener(
    before: Collection[Listener], address: str, port: int
) -> None:
    """Check who listens where a connection was just made.

    The same listener must have been there before the connection was made. Otherwise
    the connection could be to another one, which has gone since.

    Args:
        before: What `listeners_on` returned before the connection was made.
        address: The address of the other end.
        port: The port of the other end.

    Raises:
        ConfigError: the listener belongs neither to root, nor to the user of the
            system service, nor to this user.
        Unreachable: the listener has changed meanwhile.
    """
    found = {each for each in before if each.accepts(address)}
    now = {each for each in listeners_on(port) if each.accepts(address)}
    trusted = _trusted_uids()
    strangers = sorted({each.uid for each in found | now} - trusted)
    if strangers:
        users = ", ".join(f"user {user_name(uid)}" for uid in strangers)
        raise ConfigError(
            f"port {port} of this machine belongs to {users}; no token was sent there",
            hint=HINT,
        )
    if found != now:
        raise Unreachable(
            f"the listener on port {port} of this machine was replaced just now"
        )
    if not now:
        raise ConfigError(
            f"the user that listens on port {port} of this machine is unknown; no "
            "token was sent there",
            hint=HINT,
        )


def _trusted_uids() -> frozenset[int]:
    """Return root, this user, and the user of the system service if it runs."""
    uids = {0, os.geteuid()}
    with contextlib.suppress(OSError):
        uids.add(RUN_FOLDER.lstat().st_uid)
    return frozenset(uids)
