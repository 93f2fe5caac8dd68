"""Errors of one TLS connection that CPython takes for those of another.

After an error of a socket, `ssl` leaves an entry in a queue that OpenSSL keeps for each
thread. The next operation of the thread that only has to wait, on any connection, then
fails with this error. Connections whose TLS reads and writes memory meet no such errors
of their own, but suffer from entries of others.

Source: https://github.com/python/cpython/issues/81891 and SSL_get_error(3).
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Callable
from functools import cache
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")


def call_tls(
    operation: Callable[_P, _T], *arguments: _P.args, **options: _P.kwargs
) -> _T:
    """Return the result of an operation on a TLS socket that does not block.

    Raises:
        SSLWantReadError, SSLWantWriteError: the operation has to wait.
        OSError: it failed, and so it did a second time without errors of others.
    """
    try:
        return operation(*arguments, **options)
    except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
        raise
    except OSError:
        clear_tls_errors()
    try:
        return operation(*arguments, **options)
    except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
        raise
    except OSError:
        clear_tls_errors()
        raise


def clear_tls_errors() -> None:
    """Empty the queue of this thread, after an error of a TLS socket."""
    # The only function that clears it whatever else happens.
    with contextlib.suppress(ssl.SSLError):
        _any_context().set_ciphers("-")


@cache
def _any_context() -> ssl.SSLContext:
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
