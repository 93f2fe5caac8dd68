"""Node key: the Ed25519 key of a node, and the node id derived from it."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from octaskly.core.model.ids import VISITOR_PREFIX, NodeId
from octaskly.errors import ConfigError
from octaskly.trust.private_files import create_private, read_private

NODE_ID_BYTES: Final = 10
KEY_FILE: Final = "node.key"
HTTPS_SEED_BYTES: Final = 48
_HTTPS: Final = b"octaskly/v1 node https"


def node_id_of(public_key: bytes) -> NodeId:
    """Return the id of the node with this raw Ed25519 public key (32 bytes)."""
    digest = hashlib.sha256(public_key).digest()
    return NodeId(base64.b32encode(digest[:NODE_ID_BYTES]).decode().lower())


def visitor_id_of(public_key: bytes) -> NodeId:
    """Return the id that a visitor has with this key; never that of a member."""
    return NodeId(VISITOR_PREFIX + node_id_of(public_key))


class NodeKey:
    """The Ed25519 key of one node, which never leaves its state folder."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self.private = private
        self.node_id = node_id_of(self.public_bytes())

    @classmethod
    def generate(cls) -> NodeKey:
        """Return a new key, without saving it."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load_or_create(cls, state: Path) -> NodeKey:
        """Return the key in this state folder; create it if it does not exist.

        Raises:
            ConfigError: It cannot be read or created, others may read it, or it is not
                an Ed25519 key.
        """
        try:
            return cls.load(state)
        except FileNotFoundError:
            create_private(state / KEY_FILE, cls.generate().pem())
            return cls.load(state)

    @classmethod
    def load(cls, state: Path) -> NodeKey:
        """Return the key in this state folder.

        Raises:
            FileNotFoundError: There is none.
            ConfigError: It cannot be read, others may read it, or it is not an Ed25519
                key.
        """
        path = state / KEY_FILE
        pem = read_private(path)
        try:
            private = load_pem_private_key(pem, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            private = None
        if not isinstance(private, Ed25519PrivateKey):
            raise ConfigError(
                f"{path} is not an Ed25519 key",
                hint=f"move {path} away; the node then takes a new id",
            )
        return cls(private)

    @classmethod
    def renew(cls, state: Path) -> NodeKey:
        """Replace the key in this state folder by a new one, and return it.

        Raises:
            ConfigError: It cannot be created.
        """
        (state / KEY_FILE).unlink(missing_ok=True)
        return cls.load_or_create(state)

    def public_bytes(self) -> bytes:
        """Return the public key, 32 bytes."""
        return self.private.public_key().public_bytes_raw()

    def https_seed(self) -> bytes:
        """Return the 48-byte seed of the key of self-signed HTTPS certificates."""
        raw = self.private.private_bytes_raw()
        kdf = HKDF(algorithm=SHA256(), length=HTTPS_SEED_BYTES, salt=None, info=_HTTPS)
        return kdf.derive(raw)

    def pem(self) -> bytes:
        """Return the private key in PEM, the format of its file."""
        return self.private.private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
        )
