"""Who belongs to the mesh: its secret, certificates, node keys and tokens.

One secret made by a machine is all that is ever configured; everything else here is
derived from it or signed with what is derived. Members trust each other fully: each
can sign certificates and tokens.
"""

from octaskly.trust.mesh_secret import MeshSecret, generate, load, load_or_create, make
from octaskly.trust.node_key import NodeKey, node_id_of
from octaskly.trust.secret_file import Keyring
from octaskly.trust.tls import MeshTrust
from octaskly.trust.tokens import Claims, Tokens

__all__ = [
    "Claims",
    "Keyring",
    "MeshSecret",
    "MeshTrust",
    "NodeKey",
    "Tokens",
    "generate",
    "load",
    "load_or_create",
    "make",
    "node_id_of",
]
