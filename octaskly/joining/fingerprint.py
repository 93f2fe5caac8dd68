"""Fingerprint words for pairing without a code: people compare three words.

The member dials the joiner. It sends a commitment to its key share, receives the
joiner's share, and then reveals its own. A man in the middle must therefore choose both
of its shares before it can compute the words, so it cannot search for matching ones.
Two pairs of shares have the same words with a probability of 1 in 16 777 216. The
joiner bounds the shares that it sends, see `joining.join_by_words`.
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
"""256 words, one for each byte; no two start with the same four letters."""


def words_of(data: bytes) -> str:
    """Return the words for these bytes, joined by hyphens."""
    return "-".join(WORDS[byte] for byte in data)


NONCE_BYTES: Final = 32
KEY_SHARE_BYTES: Final = NONCE_BYTES + 32
COMMITMENT_BYTES: Final = 32
FINGERPRINT_BYTES: Final = 3  #: 24 bits
_COMMITMENT_LABEL: Final = b"octaskly comparison/1 commitment"
_FINGERPRINT_LABEL: Final = b"octaskly comparison/1 words"


@dataclass(frozen=True, slots=True)
class KeyShare:
    """The contribution of one side: a new nonce and a new key."""

    private: X25519PrivateKey = field(repr=False)
    nonce: bytes = field(repr=False)

    @classmethod
    def generate(cls) -> Self:
        """Return a new random share."""
        return cls(X25519PrivateKey.generate(), secrets.token_bytes(NONCE_BYTES))

    def public(self) -> bytes:
        """Return the public part, which is sent to the other side."""
        return self.nonce + self.private.public_key().public_bytes_raw()

    def derive_keys(self, theirs: bytes, *said: bytes) -> PairingKeys:
        """Return the keys derived from both shares and all messages.

        Raises:
            PairingFailed: The other side's public key is invalid.
        """
        assert len(theirs) == KEY_SHARE_BYTES
        try:
            shared = self.private.exchange(
                X25519PublicKey.from_public_bytes(theirs[NONCE_BYTES:])
            )
        except ValueError:
            raise PairingFailed(
                "the other machine violated the pairing protocol"
            ) from None
        return derive_pairing_keys(shared, *said)


def commitment(greeting: bytes, share: bytes) -> bytes:
    """Return the member's commitment to its greeting and its key share."""
    return sha256(_COMMITMENT_LABEL + greeting + share).digest()


def verify_commitment(given: bytes, greeting: bytes, share: bytes) -> None:
    """Check a revealed key share against its commitment.

    Raises:
        PairingFailed: The share is a different one.
    """
    if not hmac.compare_digest(given, commitment(greeting, share)):
        raise PairingFailed("the other machine violated the pairing protocol")


def fingerprint(keys: PairingKeys) -> str:
    """Return the words that are equal on both sides without a man in the middle."""
    return words_of(
        sha256(_FINGERPRINT_LABEL + keys.transcript).digest()[:FINGERPRINT_BYTES]
    )
