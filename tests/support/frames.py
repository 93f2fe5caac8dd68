"""Frames as they are on the wire, also those that no node of ours would send."""

from __future__ import annotations


def length_prefixed(body: bytes) -> bytes:
    """Return these bytes as one frame, whatever they are."""
    return len(body).to_bytes(4, "big") + body
