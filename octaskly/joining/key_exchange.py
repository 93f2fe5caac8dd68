"""Key exchange of a pairing with a code: shares, proofs, and the sealed mesh secret.

The module is pure: bytes in, bytes out. Each message has a fixed size. An attacker who
guesses a code or intercepts the connection has one try per run and learns nothing else.

A short code needs SPAKE2: after a plain exchange, an attacker could try all codes
offline. A long code has 128 bits, so X25519 suffices. It takes a hundredth of the time,
which matters because failures do not end a long code.
"""

from __future__ import annotations

import hmac
import re
import secrets
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final, NamedTuple, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import (
    X25519PrivateKey,
    X25519PublicKey,
)
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from octaskly.errors import PairingFailed

SLOT_MAX: Final = 99  #: of an invite for a member
VISITOR_SLOT_MIN: Final = 100  #: so both sides know what a code is for
VISITOR_SLOT_MAX: Final = 999
DIGIT_COUNT: Final = 8
LONG_BYTES: Final = 16  #: of a secret that no person types
_PATTERN: Final = re.compile(
    r"([1-9][0-9]{0,2})[-\s]+(?:([0-9]{4})[-\s]*([0-9]{4})|([0-9a-f]{32}))"
)


@dataclass(frozen=True, slots=True)
class InviteCode:
    """A public slot and a secret: eight digits (26 bits), or 128 bits for programs."""

    slot: int  #: number of the invite among those of its member, from 1
    secret: str = field(repr=False)

    @classmethod
    def generate(cls, slot: int, *, is_long: bool = False) -> Self:
        """Return a new code for this slot."""
        if is_long:
            return cls(slot, secrets.token_hex(LONG_BYTES))
        return cls(slot, f"{secrets.randbelow(10**DIGIT_COUNT):0{DIGIT_COUNT}}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a typed code.

        Raises:
            PairingFailed: It is malformed. The error does not contain the text.
        """
        match = _PATTERN.fullmatch(text.strip())
        if match is None:
            raise PairingFailed(
                "this is not an invite code",
                hint="octaskly join 7-4821-9375    with the code that "
                "`octaskly invite` shows on a member",
            )
        return cls(int(match[1]), match[4] or match[2] + match[3])

    @property
    def is_for_visitor(self) -> bool:
        """Return True if it admits a visitor, who never gets the mesh secret."""
        return self.slot >= VISITOR_SLOT_MIN

    @property
    def is_long(self) -> bool:
        """Return True if nobody can guess the secret."""
        return len(self.secret) > DIGIT_COUNT

    def formatted(self) -> str:
        """Return the code as text, such as 7-4821-9375."""
        if self.is_long:
            return f"{self.slot}-{self.secret}"
        half = DIGIT_COUNT // 2
        return f"{self.slot}-{self.secret[:half]}-{self.secret[half:]}"

    def password(self) -> bytes:
        """Return the bytes that both sides must know."""
        return f"{self.slot}-{self.secret}".encode()


SHARE_BYTES: Final = 33
PROOF_BYTES: Final = 32
SECRET_TEXT_BYTES_MAX: Final = 40_958  #: size of the longest possible secret file
SEALED_BYTES: Final = SECRET_TEXT_BYTES_MAX + 2 + 16
NO_PROOF: Final = bytes(PROOF_BYTES)  #: sent instead of a proof: refused

_LABEL: Final = b"octaskly pairing/1 "
_JOINER, _MEMBER = _LABEL + b"joiner", _LABEL + b"member"
_LENGTH: Final = struct.Struct("!H")


class PairingKeys(NamedTuple):
    """The keys of one pairing run, which its messages do not reveal."""

    joiner: bytes  #: key of the joiner's proof
    member: bytes  #: key of the member's proof
    sealing_key: bytes
    transcript: bytes  #: hash of all messages

    def joiner_proof(self) -> bytes:
        """Return the proof that the joiner sends first."""
        return hmac.digest(self.joiner, self.transcript, "sha256")

    def member_proof(self) -> bytes:
        """Return the proof that the member sends after checking the joiner's."""
        return hmac.digest(self.member, self.transcript, "sha256")


@dataclass(slots=True)
class KeyExchange:
    """One side of one run; created before the connection and used once.

    The package `spake2` is pure Python, so its operations do not take constant time.
    Their timing must not help a guess. `share` is therefore computed before the first
    message, and a short code is invalid after one proof.
    """

    share: bytes = field(repr=False)
    _combine: Callable[[bytes], bytes] = field(repr=False)
    """Returns what both sides know, from the other share; ValueError if invalid."""
    _is_joiner: bool

    @classmethod
    def for_joiner(cls, code: InviteCode) -> KeyExchange:
        """Return the side that typed the code."""
        return cls(*_start_run(code, is_joiner=True), _is_joiner=True)

    @classmethod
    def for_member(cls, code: InviteCode) -> KeyExchange:
        """Return the side that showed the code."""
        return cls(*_start_run(code, is_joiner=False), _is_joiner=False)

    def derive_keys(self, theirs: bytes, hello: bytes, welcome: bytes) -> PairingKeys:
        """Return the keys, which are equal on both sides if the codes are.

        Args:
            theirs: The other side's share.
            hello: The joiner's greeting.
            welcome: The member's greeting.

        Raises:
            PairingFailed: The share is invalid.
        """
        assert len(theirs) == SHARE_BYTES
        try:
            key = self._combine(theirs)
        except ValueError:
            raise PairingFailed(
                "the other machine violated the pairing protocol"
            ) from None
        first, second = (
            (self.share, theirs) if self._is_joiner else (theirs, self.share)
        )
        return derive_pairing_keys(key, hello, welcome, first, second)


def _start_run(
    code: InviteCode, *, is_joiner: bool
) -> tuple[bytes, Callable[[bytes], bytes]]:
    """Return the share of one side, and what combines it with the other one."""
    if code.is_long:
        return _start_x25519(code)
    return _start_spake(code, is_joiner=is_joiner)


def _start_x25519(code: InviteCode) -> tuple[bytes, Callable[[bytes], bytes]]:
    private = X25519PrivateKey.generate()

    def combine(theirs: bytes) -> bytes:
        public = X25519PublicKey.from_public_bytes(theirs[1:])
        return private.exchange(public) + code.password()

    return b"\0" + private.public_key().public_bytes_raw(), combine


def _start_spake(
    code: InviteCode, *, is_joiner: bool
) -> tuple[bytes, Callable[[bytes], bytes]]:
    # It takes 20 ms to import, and only pairings use it.
    from spake2 import SPAKE2_A, SPAKE2_B, SPAKEError  # noqa: PLC0415
    from spake2.ed25519_basic import NotOnCurve  # noqa: PLC0415

    side = SPAKE2_A if is_joiner else SPAKE2_B
    spake = side(code.password(), idA=_JOINER, idB=_MEMBER)

    def combine(theirs: bytes) -> bytes:
        try:
            key: bytes = spake.finish(theirs)
        except (SPAKEError, NotOnCurve) as error:
            raise ValueError(str(error)) from None
        return key

    return spake.start(), combine


def derive_pairing_keys(shared: bytes, *said: bytes) -> PairingKeys:
    """Return the keys derived from a shared secret and all messages.

    Each message has a fixed size, so their concatenation is unambiguous.
    """
    transcript = sha256(_LABEL + b"".join(said)).digest()
    kdf = HKDF(algorithm=SHA256(), length=96, salt=transcript, info=_LABEL)
    keys = kdf.derive(shared)
    return PairingKeys(keys[:32], keys[32:64], keys[64:], transcript)


def is_proof_valid(given: bytes, wanted: bytes) -> bool:
    """Return True if two proofs are equal, in constant time."""
    return hmac.compare_digest(given, wanted)


def seal_secret(keys: PairingKeys, secret_text: str) -> bytes:
    """Encrypt a secret file for the other side, padded to a fixed size.

    The nonce is constant, because each key encrypts only one message.
    """
    data = secret_text.encode()
    assert len(data) <= SECRET_TEXT_BYTES_MAX
    padded = _LENGTH.pack(len(data)) + data.ljust(SECRET_TEXT_BYTES_MAX, b"\0")
    return AESGCM(keys.sealing_key).encrypt(bytes(12), padded, keys.transcript)


def unseal_secret(keys: PairingKeys, sealed: bytes) -> str:
    """Decrypt a secret file.

    Raises:
        PairingFailed: It was encrypted with another key, or is not ASCII.
    """
    try:
        padded = AESGCM(keys.sealing_key).decrypt(bytes(12), sealed, keys.transcript)
        (length,) = _LENGTH.unpack_from(padded)
        return padded[_LENGTH.size : _LENGTH.size + length].decode("ascii")
    except (InvalidTag, UnicodeDecodeError):
        raise PairingFailed("the member's sealed secret cannot be read") from None
