"""The mesh secret: how it is written, kept, shared on a machine, and derived from.

A secret is 160 random bits, shown as `okm1-`, 32 base32 characters and 4 of checksum.
The file holds one line for each generation, oldest first; the last one is in force,
the others are still accepted.
"""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from octaskly.errors import ConfigError, TrustError
from octaskly.trust.private import create_private, read_private

PREFIX: Final = "okm1-"
SECRET_BYTES: Final = 20
GENERATIONS_MAX: Final = 16
MESH_ID_BYTES: Final = 8
KEY_BYTES: Final = 32
_CHECK_CHARS: Final = 4
_SALT: Final = b"octaskly/v1"


@dataclass(frozen=True, slots=True)
class MeshSecret:
    """All generations of a mesh secret; never shown by `repr`."""

    generations: tuple[bytes, ...] = field(repr=False)  #: oldest first, at least one

    @property
    def generation(self) -> int:
        """Number of the generation in force, from 1."""
        return len(self.generations)

    @property
    def mesh_id(self) -> str:
        """Public name of the mesh: 16 hex digits, kept through all generations."""
        return _derive(self.generations[0], "mesh-id", MESH_ID_BYTES).hex()

    def authority_seed(self, generation: int) -> bytes:
        """Return the 32 bytes of the certificate authority's Ed25519 key."""
        return _derive(self.generations[generation - 1], "ca", KEY_BYTES)

    def token_key(self, generation: int) -> bytes:
        """Return the 32 bytes that sign tokens."""
        label = f"jwt/{generation}"
        return _derive(self.generations[generation - 1], label, KEY_BYTES)

    def webhook_key(self) -> bytes:
        """Return the 32 bytes that sign messages to receivers outside the mesh."""
        label = f"webhook/{self.generation}"
        return _derive(self.generations[-1], label, KEY_BYTES)

    def lines(self) -> str:
        """Return the content of a secret file."""
        return "".join(f"{_show(raw)}\n" for raw in self.generations)


def generate() -> MeshSecret:
    """Return a new secret of one generation, from the system's random source."""
    return MeshSecret((secrets.token_bytes(SECRET_BYTES),))


def parse(text: str) -> MeshSecret:
    """Return the secret that `text` holds, one generation a line.

    Empty lines and those that begin with `#` are skipped.

    Raises:
        TrustError: it holds none, or a line is malformed; the text is not repeated.
    """
    generations = []
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.strip()
        if line and not line.startswith("#"):
            generations.append(_parse_line(line, number))
    if not 1 <= len(generations) <= GENERATIONS_MAX:
        raise TrustError(f"a secret has 1 to {GENERATIONS_MAX} {PREFIX} lines")
    return MeshSecret(tuple(generations))


def load(path: Path, environ: Mapping[str, str] = os.environ) -> MeshSecret:
    """Read the secret file.

    A file in systemd's `CREDENTIALS_DIRECTORY` may have any mode: systemd guards it.

    Raises:
        ConfigError: it is missing, unreadable or malformed, or others may read it.
    """
    credentials = environ.get("CREDENTIALS_DIRECTORY")
    is_guarded = bool(credentials) and path.parent == Path(credentials or "")
    try:
        data = read_private(path, may_be_shared=is_guarded)
    except FileNotFoundError as error:
        raise ConfigError(
            f"there is no mesh secret at {path}",
            hint=f"octaskly secret new > {path}",
        ) from error
    try:
        return parse(data.decode("ascii"))
    except (UnicodeDecodeError, TrustError) as error:
        # Without the cause: a decoding error would show the bytes.
        reason = error if isinstance(error, TrustError) else "it is not plain text"
        raise ConfigError(
            f"{path} is no mesh secret: {reason}",
            hint=f"copy {path} again from a node of the mesh",
        ) from None


def load_or_create(path: Path, environ: Mapping[str, str] = os.environ) -> MeshSecret:
    """Read the secret file; make a new secret where there is none.

    Processes that do this at once all get the same secret.

    Raises:
        ConfigError: as `load`, or the file cannot be made.
    """
    make(path)
    return load(path, environ)


def make(path: Path) -> bool:
    """Make a new secret unless there is one; return whether this call made it.

    Of several processes that do this at once, one makes it.

    Raises:
        ConfigError: the file cannot be made.
    """
    # `exists` would hide an unreadable file or folder; `load` names what is wrong.
    if os.path.lexists(path):
        return False
    return create_private(path, generate().lines().encode())


def _derive(secret: bytes, label: str, length: int) -> bytes:
    kdf = HKDF(algorithm=SHA256(), length=length, salt=_SALT, info=label.encode())
    return kdf.derive(secret)


def _show(raw: bytes) -> str:
    return f"{PREFIX}{_base32(raw)}{_checksum(raw)}"


def _parse_line(line: str, number: int) -> bytes:
    body = line.lower().removeprefix(PREFIX)
    size = SECRET_BYTES * 8 // 5 + _CHECK_CHARS
    if not line.lower().startswith(PREFIX) or len(body) != size:
        raise TrustError(f"line {number} is not {PREFIX} and {size} characters")
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
