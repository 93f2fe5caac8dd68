"""Pairing with a code: SPAKE2, proof that both know the code, and the keyring, sealed.

Pure: bytes in, bytes out, each message of a size that is known beforehand. Who guesses
a code, or sits in the middle, gets one try for each run, and learns nothing else.
"""

from __future__ import annotations

import hmac
import re
import secrets
import struct
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Final, NamedTuple, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from octaskly.errors import PairingFailed

SLOT_MAX: Final = 99
DIGIT_COUNT: Final = 8
_PATTERN: Final = re.compile(r"([1-9][0-9]?)[-\s]+([0-9]{4})[-\s]*([0-9]{4})")


@dataclass(frozen=True, slots=True)
class InviteCode:
    """A slot, which is public, and eight digits, which are not; 26 bits."""

    slot: int  #: tells open invites of one member apart, from 1
    digits: str = field(repr=False)

    @classmethod
    def generate(cls, slot: int) -> Self:
        """Return a new code for this slot."""
        return cls(slot, f"{secrets.randbelow(10**DIGIT_COUNT):0{DIGIT_COUNT}}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the code that somebody typed.

        Raises:
            PairingFailed: it has not the form of one; the text is not repeated.
        """
        match = _PATTERN.fullmatch(text.strip())
        if match is None:
            raise PairingFailed(
                "that is no code of an invite",
                hint="octaskly join 7-4821-9375    with the code that "
                "`octaskly invite` shows on a member",
            )
        return cls(int(match[1]), match[2] + match[3])

    def formatted(self) -> str:
        """Return the code as people read it."""
        half = DIGIT_COUNT // 2
        return f"{self.slot}-{self.digits[:half]}-{self.digits[half:]}"

    def password(self) -> bytes:
        """Return what both sides of a pairing must know."""
        return f"{self.slot}-{self.digits}".encode()


SHARE_BYTES: Final = 33
PROOF_BYTES: Final = 32
SECRET_TEXT_BYTES_MAX: Final = 40_958  #: the longest that a secret file gets
SEALED_BYTES: Final = SECRET_TEXT_BYTES_MAX + 2 + 16
NO_PROOF: Final = bytes(PROOF_BYTES)  #: says that a proof was wrong

_LABEL: Final = b"octaskly pairing/1 "
_JOINER, _MEMBER = _LABEL + b"joiner", _LABEL + b"member"
_LENGTH: Final = struct.Struct("!H")


class PairingKeys(NamedTuple):
    """What follows from a pairing; of no use to who only saw its messages."""

    joiner: bytes  #: proves that the joiner knows the code
    member: bytes  #: proves the same of the member
    sealing_key: bytes
    transcript: bytes  #: hash of all that was said

    def joiner_proof(self) -> bytes:
        """Return what the joiner says first."""
        return hmac.digest(self.joiner, self.transcript, "sha256")

    def member_proof(self) -> bytes:
        """Return what the member says once it has seen the joiner's proof."""
        return hmac.digest(self.member, self.transcript, "sha256")


@dataclass(slots=True)
class KeyExchange:
    """One side of one run; made before anybody connects, used once.

    The package computes in pure Python, so not in constant time. Nothing that depends
    on the code is computed between two messages before the guess is made: `share`
    exists when the run begins, and after a proof the code is burnt.
    """

    share: bytes = field(repr=False)
    _spake: Any = field(repr=False)
    _is_joiner: bool

    @classmethod
    def for_joiner(cls, code: InviteCode) -> KeyExchange:
        """Return the side that typed the code."""
        from spake2 import SPAKE2_A  # noqa: PLC0415 - 20 ms, for pairings only

        spake = SPAKE2_A(code.password(), idA=_JOINER, idB=_MEMBER)
        return cls(spake.start(), spake, _is_joiner=True)

    @classmethod
    def for_member(cls, code: InviteCode) -> KeyExchange:
        """Return the side that showed the code."""
        from spake2 import SPAKE2_B  # noqa: PLC0415 - see above

        spake = SPAKE2_B(code.password(), idA=_JOINER, idB=_MEMBER)
        return cls(spake.start(), spake, _is_joiner=False)

    def derive_keys(self, theirs: bytes, hello: bytes, welcome: bytes) -> PairingKeys:
        """Return the keys, which are equal on both sides if the codes are.

        Args:
            theirs: The other side's share.
            hello: What the joiner said first: its node key, the slot it asked for.
            welcome: What the member answered: its node key among others.

        Raises:
            PairingFailed: the share is none.
        """
        from spake2 import SPAKEError  # noqa: PLC0415 - is there since `share` is
        from spake2.ed25519_basic import NotOnCurve  # noqa: PLC0415 - is there, too

        assert len(theirs) == SHARE_BYTES
        try:
            key: bytes = self._spake.finish(theirs)
        except (SPAKEError, NotOnCurve, ValueError):
            raise PairingFailed("the other side breaks the rules of pairing") from None
        first, second = (
            (self.share, theirs) if self._is_joiner else (theirs, self.share)
        )
        return derive_pairing_keys(key, hello, welcome, first, second)


def derive_pairing_keys(shared: bytes, *said: bytes) -> PairingKeys:
    """Return the keys that follow from a shared secret and all that was said.

    Each message has a fixed size, so their sequence is unambiguous.
    """
    transcript = sha256(_LABEL + b"".join(said)).digest()
    kdf = HKDF(algorithm=SHA256(), length=96, salt=transcript, info=_LABEL)
    keys = kdf.derive(shared)
    return PairingKeys(keys[:32], keys[32:64], keys[64:], transcript)


def is_proof_valid(given: bytes, wanted: bytes) -> bool:
    """Whether the other side knows what it must."""
    return hmac.compare_digest(given, wanted)


def seal_secret(keys: PairingKeys, secret_text: str) -> bytes:
    """Return a keyring for the other side alone, always of one size.

    The nonce is constant: a key seals one message in its life.
    """
    data = secret_text.encode()
    assert len(data) <= SECRET_TEXT_BYTES_MAX
    padded = _LENGTH.pack(len(data)) + data.ljust(SECRET_TEXT_BYTES_MAX, b"\0")
    return AESGCM(keys.sealing_key).encrypt(bytes(12), padded, keys.transcript)


def unseal_secret(keys: PairingKeys, sealed: bytes) -> str:
    """Return the keyring that was sealed.

    Raises:
        PairingFailed: it was not sealed with this key, or is none.
    """
    try:
        padded = AESGCM(keys.sealing_key).decrypt(bytes(12), sealed, keys.transcript)
        (length,) = _LENGTH.unpack_from(padded)
        return padded[_LENGTH.size : _LENGTH.size + length].decode("ascii")
    except (InvalidTag, UnicodeDecodeError):
        raise PairingFailed("what the member sent cannot be read") from None
