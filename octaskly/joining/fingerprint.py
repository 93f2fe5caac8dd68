"""Pairing without a code: both sides show three words, and people compare them.

The member dials the machine that wants in. It commits to its half of what the words
follow from, sees the other half, and then opens its own. So whoever sits in the middle
has to fix all that it says before it learns a word: it is found out by all but one in
16 777 216 attempts, each of which two people would see. Words cannot be ground.
"""

from __future__ import annotations

import hmac
import secrets
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final, Self

from cryptography.hazmat.primitives.asymmetric.x25519 import (
    X25519PrivateKey,
    X25519PublicKey,
)

from octaskly.errors import PairingFailed
from octaskly.joining.key_exchange import PairingKeys, derive_pairing_keys

_WORD_LINES: Final = """
acorn almond anchor anvil apple apricot arrow aspen avocado badger bamboo banana
barley basil basket beaver bicycle birch bison blanket bottle brick broom bucket
button cabin cactus camel candle canoe carpet castle cedar celery chair cherry
chimney circle clock clover cobra cocoa compass condor copper cotton crab crayon
cricket crow curtain daisy deer diamond dingo dolphin donkey drum eagle engine
falcon feather fennel fern ferret fiddle finch flag flute fountain fox frog garlic
gecko ginger goose gorilla grape guitar hammer hamster harbour hawk hazel helmet
heron hippo horse hyena ibex iguana ink island ivy jackal jelly jigsaw juniper kayak
kettle kitchen kite kiwi koala ladder lagoon lake lantern lavender lemon lemur
lentil leopard library lighthouse lilac lion lizard llama lobster lotus lumber lynx
magnet magpie mango maple marble meadow melon mint mirror monkey moose moss mountain
muffin museum mushroom napkin needle nettle newt nickel notebook novel nutmeg oak
ocean octopus olive onion orchid ostrich otter oven owl oxygen oyster paddle palm
panda panther papaya parade parrot parsley peach pelican pencil penguin pepper piano
picnic pigeon pillow pirate planet plum pocket potato pretzel prism puma pumpkin
puppet puzzle pyramid quartz quilt quince rabbit radish rainbow raisin raven ribbon
rice river robot rocket saddle saffron salmon scarf sesame shark sheep shovel silver
spinach spoon squirrel statue stork sugar swan sword table teapot temple thimble
thistle thunder tiger toad tomato tower tractor trout trumpet tulip tunnel turtle
umbrella valley vanilla velvet violin volcano wagon wallet walnut walrus weasel
whale wheel whistle willow window winter wolf wombat yacht zebra zipper
"""
WORDS: Final = tuple(_WORD_LINES.split())
"""256 words, one for each byte; no two begin with the same four letters."""


def words_of(data: bytes) -> str:
    """Return the words for these bytes, as they are shown and typed."""
    return "-".join(WORDS[byte] for byte in data)


NONCE_BYTES: Final = 32
KEY_SHARE_BYTES: Final = NONCE_BYTES + 32
COMMITMENT_BYTES: Final = 32
FINGERPRINT_BYTES: Final = 3  #: 24 bits
_COMMITMENT_LABEL: Final = b"octaskly comparison/1 commitment"
_FINGERPRINT_LABEL: Final = b"octaskly comparison/1 words"


@dataclass(frozen=True, slots=True)
class KeyShare:
    """What one side adds: a nonce and a key, both fresh."""

    private: X25519PrivateKey = field(repr=False)
    nonce: bytes = field(repr=False)

    @classmethod
    def generate(cls) -> Self:
        """Return a half that was never used."""
        return cls(X25519PrivateKey.generate(), secrets.token_bytes(NONCE_BYTES))

    def public(self) -> bytes:
        """Return what the other side gets of it."""
        return self.nonce + self.private.public_key().public_bytes_raw()

    def derive_keys(self, theirs: bytes, *said: bytes) -> PairingKeys:
        """Return the keys that follow from both halves and all that was said.

        Raises:
            PairingFailed: the other side's key is none.
        """
        assert len(theirs) == KEY_SHARE_BYTES
        try:
            shared = self.private.exchange(
                X25519PublicKey.from_public_bytes(theirs[NONCE_BYTES:])
            )
        except ValueError:
            raise PairingFailed("the other side breaks the rules of pairing") from None
        return derive_pairing_keys(shared, *said)


def commitment(greeting: bytes, share: bytes) -> bytes:
    """Return what binds a member to its half before it has seen the other one."""
    return sha256(_COMMITMENT_LABEL + greeting + share).digest()


def verify_commitment(given: bytes, greeting: bytes, share: bytes) -> None:
    """Make sure that a half is the one that was committed to.

    Raises:
        PairingFailed: it is another one.
    """
    if not hmac.compare_digest(given, commitment(greeting, share)):
        raise PairingFailed("the other side breaks the rules of pairing")


def fingerprint(keys: PairingKeys) -> str:
    """Return the words that both sides show if nobody is in the middle."""
    return words_of(
        sha256(_FINGERPRINT_LABEL + keys.transcript).digest()[:FINGERPRINT_BYTES]
    )
