"""A node's own key, and the node id that follows from it."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from octaskly.core.model.ids import NodeId
from octaskly.errors import ConfigError
from octaskly.trust.private_files import create_private, read_private

NODE_ID_BYTES: Final = 10
KEY_FILE: Final = "node.key"


def node_id_of(public_key: bytes) -> NodeId:
    """Return the id of the node with this raw Ed25519 public key (32 bytes)."""
    digest = hashlib.sha256(public_key).digest()
    return NodeId(base64.b32encode(digest[:NODE_ID_BYTES]).decode().lower())


class NodeKey:
    """The Ed25519 key of one node, which never leaves its state folder."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self.private = private
        self.node_id = node_id_of(self.public_bytes())

    @classmethod
    def generate(cls) -> NodeKey:
        """Return a new key that is kept nowhere."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load_or_create(cls, state: Path) -> NodeKey:
        """Return the key in this state folder, made where there is none.

        Raises:
            ConfigError: it cannot be read or made, others may read it, or it is no
                Ed25519 key.
        """
        path = state / KEY_FILE
        try:
            pem = read_private(path)
        except FileNotFoundError:
            create_private(path, cls.generate().pem())
            pem = read_private(path)
        try:
            private = load_pem_private_key(pem, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            private = None
        if not isinstance(private, Ed25519PrivateKey):
            raise ConfigError(
                f"{path} is no Ed25519 key",
                hint=f"move {path} away; the node then takes a new id",
            )
        return cls(private)

    @classmethod
    def renew(cls, state: Path) -> NodeKey:
        """Return a new key in place of the one in this state folder.

        Raises:
            ConfigError: it cannot be made.
        """
        (state / KEY_FILE).unlink(missing_ok=True)
        return cls.load_or_create(state)

    def public_bytes(self) -> bytes:
        """Return the public half, 32 bytes."""
        return self.private.public_key().public_bytes_raw()

    def pem(self) -> bytes:
        """Return the key as its file holds it."""
        return self.private.private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
        )
