"""The lines of a secret file.

    okm1-<32 base32 characters><4 of checksum> [generation=N] [mesh=ID] [since=MS]
        [next] [urgent]
    ended=N:PROOF
    denied=N:NODE

A line of the first kind is one generation; the other kinds name generations that are
over and nodes that are revoked, each with the first generation that it never got (it
may be missing). What is not known here is refused, not half understood.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from dataclasses import dataclass, field
from typing import Final

from octaskly.core.model.ids import NodeId
from octaskly.errors import TrustError

PREFIX: Final = "okm1-"
SECRET_BYTES: Final = 20
ENDED: Final = "ended"
DENIED: Final = "denied"
_CHECK_CHARS: Final = 4
_WORDS: Final = {
    "generation": re.compile(r"[1-9][0-9]{0,8}"),
    "mesh": re.compile(r"[0-9a-f]{16}"),
    "since": re.compile(r"[0-9]{1,15}"),
    "next": re.compile(r""),
    "urgent": re.compile(r""),
}
_ENDED: Final = re.compile(r"([1-9][0-9]{0,8}):([0-9a-f]{16})")
_DENIED: Final = re.compile(r"(?:([1-9][0-9]{0,9}):)?([a-z0-9._-]{1,16})")


@dataclass(slots=True, kw_only=True)
class Page:
    """What all lines together say, as far as it can be said line by line."""

    generations: tuple[bytes, ...] = field(default=(), repr=False)
    numbers: tuple[int, ...] = ()  #: of the generations
    mesh_id: str = ""
    since_ms: int = 0  #: of the last generation, as the following ones
    has_next: bool = False
    is_urgent: bool = False
    ended: tuple[tuple[int, str], ...] = ()
    denials: tuple[tuple[NodeId, int], ...] = ()


def show(raw: bytes) -> str:
    """Return a secret as people see it."""
    return f"{PREFIX}{_base32(raw)}{_checksum(raw)}"


def read(text: str) -> Page:
    """Return what the lines of a file say.

    Empty lines and those that begin with `#` are skipped.

    Raises:
        TrustError: a line is malformed; neither it nor a part of it is repeated.
    """
    page = Page()
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.strip().lower()
        kind, _, rest = line.partition("=")
        if not line or line.startswith("#"):
            continue
        if kind == ENDED and (match := _ENDED.fullmatch(rest)):
            page.ended += ((int(match[1]), match[2]),)
        elif kind == DENIED and (match := _DENIED.fullmatch(rest)):
            page.denials += ((NodeId(match[2]), int(match[1] or 0)),)
        else:
            _read_generation(page, line, number)
    return page


def _read_generation(page: Page, line: str, number: int) -> None:
    body, *rest = line.split()
    raw = _read_secret(body, number)
    words: dict[str, str] = {}
    for word in rest:
        key, _, value = word.partition("=")
        form = _WORDS.get(key)
        if form is None or not form.fullmatch(value) or key in words:
            raise TrustError(f"line {number} says more than this version understands")
        words[key] = value
    mesh_id = words.get("mesh", page.mesh_id)
    if page.has_next or (page.mesh_id and mesh_id != page.mesh_id):
        raise TrustError(f"line {number} does not follow the one before")
    before = page.numbers[-1] if page.numbers else 0
    page.generations += (raw,)
    page.numbers += (int(words.get("generation", before + 1)),)
    page.mesh_id = mesh_id
    page.since_ms = int(words.get("since", 0))
    page.has_next, page.is_urgent = "next" in words, "urgent" in words


def _read_secret(body: str, number: int) -> bytes:
    size = SECRET_BYTES * 8 // 5 + _CHECK_CHARS
    if not body.startswith(PREFIX) or len(body) != len(PREFIX) + size:
        raise TrustError(f"line {number} is not {PREFIX} and {size} characters")
    body = body.removeprefix(PREFIX)
    try:
        raw = base64.b32decode(body[:-_CHECK_CHARS].upper())
    except ValueError:
        raise TrustError(f"line {number} has a wrong character") from None
    if not secrets.compare_digest(_checksum(raw).encode(), body[-4:].encode()):
        raise TrustError(f"line {number} has a wrong checksum; is it complete?")
    return raw


def _checksum(raw: bytes) -> str:
    digest = hashlib.sha256(b"octaskly/v1 checksum" + raw).digest()
    return _base32(digest)[:_CHECK_CHARS]


def _base32(raw: bytes) -> str:
    return base64.b32encode(raw).decode().rstrip("=").lower()
