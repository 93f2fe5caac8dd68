"""Text format of the secret file.

    okm1-<32 base32 characters><4 of checksum> [generation=N] [mesh=ID] [since=MS]
        [next] [urgent]
    ended=N:PROOF
    denied=N:NODE

The first kind of line is a generation. `ended` is a retired generation with its proof.
`denied` is a revoked node with the first generation that it never received; that number
may be missing. Unknown words and lines are rejected.
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
RETIRED: Final = "ended"
REVOKED: Final = "denied"
_CHECK_CHARS: Final = 4
_HEADER_PATTERNS: Final = {
    "generation": re.compile(r"[1-9][0-9]{0,8}"),
    "mesh": re.compile(r"[0-9a-f]{16}"),
    "since": re.compile(r"[0-9]{1,15}"),
    "next": re.compile(r""),
    "urgent": re.compile(r""),
}
_RETIRED_PATTERN: Final = re.compile(r"([1-9][0-9]{0,8}):([0-9a-f]{16})")
_REVOKED_PATTERN: Final = re.compile(r"(?:([1-9][0-9]{0,9}):)?([a-z0-9._-]{1,16})")


@dataclass(slots=True, kw_only=True)
class ParsedSecret:
    """The content of all lines, before checks that involve several lines."""

    generations: tuple[bytes, ...] = field(default=(), repr=False)
    numbers: tuple[int, ...] = ()  #: of the generations
    mesh_id: str = ""
    #: This and the next two fields are those of the last generation.
    phase_since_ms: int = 0
    has_next: bool = False
    is_urgent: bool = False
    retired: tuple[tuple[int, str], ...] = ()
    revocations: tuple[tuple[NodeId, int], ...] = ()


def format_generation(raw: bytes) -> str:
    """Return a generation in the form of the secret file."""
    return f"{PREFIX}{_base32(raw)}{_checksum(raw)}"


def parse_lines(text: str) -> ParsedSecret:
    """Parse the lines of a secret file.

    Empty lines and lines that start with `#` are skipped.

    Raises:
        TrustError: A line is malformed. The error does not contain any part of it.
    """
    page = ParsedSecret()
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.strip().lower()
        kind, _, rest = line.partition("=")
        if not line or line.startswith("#"):
            continue
        if kind == RETIRED and (match := _RETIRED_PATTERN.fullmatch(rest)):
            page.retired += ((int(match[1]), match[2]),)
        elif kind == REVOKED and (match := _REVOKED_PATTERN.fullmatch(rest)):
            page.revocations += ((NodeId(match[2]), int(match[1] or 0)),)
        else:
            _parse_generation(page, line, number)
    return page


def _parse_generation(parsed: ParsedSecret, line: str, number: int) -> None:
    body, *rest = line.split()
    raw = _parse_secret(body, number)
    words: dict[str, str] = {}
    for word in rest:
        key, _, value = word.partition("=")
        form = _HEADER_PATTERNS.get(key)
        if form is None or not form.fullmatch(value) or key in words:
            raise TrustError(f"line {number} has a word that this version cannot read")
        words[key] = value
    mesh_id = words.get("mesh", parsed.mesh_id)
    if parsed.has_next or (parsed.mesh_id and mesh_id != parsed.mesh_id):
        raise TrustError(f"line {number} contradicts the lines before it")
    before = parsed.numbers[-1] if parsed.numbers else 0
    parsed.generations += (raw,)
    parsed.numbers += (int(words.get("generation", before + 1)),)
    parsed.mesh_id = mesh_id
    parsed.phase_since_ms = int(words.get("since", 0))
    parsed.has_next, parsed.is_urgent = "next" in words, "urgent" in words


def _parse_secret(body: str, number: int) -> bytes:
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
