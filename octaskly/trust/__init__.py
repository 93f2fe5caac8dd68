"""Authentication: the mesh secret, certificates, node keys and API tokens.

The mesh secret is generated, and is the only credential to configure. All other keys
are derived from it or signed by a derived key. Members trust each other fully: each can
sign certificates and tokens.
"""

from octaskly.trust.mesh_secret import (
    MeshSecret,
    create_secret_file,
    generate_secret,
    load_or_create_secret,
    load_secret,
)
from octaskly.trust.node_key import NodeKey, node_id_of
from octaskly.trust.secret_file import SecretFile
from octaskly.trust.tls import MeshTls
from octaskly.trust.tokens import Claims, TokenSigner

__all__ = [
    "Claims",
    "MeshSecret",
    "MeshTls",
    "NodeKey",
    "SecretFile",
    "TokenSigner",
    "create_secret_file",
    "generate_secret",
    "load_or_create_secret",
    "load_secret",
    "node_id_of",
]
