"""How much waits in memory for a connection: little, since clients need not read."""

from __future__ import annotations

from asyncio import constants
from asyncio.sslproto import SSLProtocol
from typing import Final

BACKLOG_BYTES: Final = 16 << 10  #: that may wait for one client, at each layer
RECORD_BYTES: Final = 16 << 10  #: a record of TLS, which comes whole or not at all
READ_BYTES: Final = RECORD_BYTES // 2  #: the HTTP client stops reading at the double


def narrow_tls() -> None:
    """Have TLS connections of this process receive no more than a record at a time.

    By itself asyncio keeps a buffer of a quarter of a megabyte for each, and as much
    again for who does not read. There is no option for it, and for a connection that
    the HTTP client makes there is no place to give one either.
    """
    SSLProtocol.max_size = RECORD_BYTES
    vars(constants)["FLOW_CONTROL_HIGH_WATER_SSL_READ"] = RECORD_BYTES >> 10
