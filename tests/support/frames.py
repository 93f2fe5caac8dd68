"""Frames in wire format, also those that our nodes never send."""

from __future__ import annotations


def length_prefixed(body: bytes) -> bytes:
    """Return any bytes as one frame."""
    return len(body).to_bytes(4, "big") + body
