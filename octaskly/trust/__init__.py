"""Who belongs to the mesh: its secret, certificates, node keys and tokens.

One secret made by a machine is all that is ever configured; everything else here is
derived from it or signed with what is derived. Members trust each other fully: each
can sign certificates and tokens.
"""

from octaskly.trust.authority import MeshTrust
from octaskly.trust.identity import NodeKey, node_id_of
from octaskly.trust.keyring import Keyring
from octaskly.trust.secret import MeshSecret, generate, load, load_or_create, make
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
