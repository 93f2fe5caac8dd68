"""File trees that travel with tasks: manifests, packs, and trees on disk.

A tree is described by a manifest, which names each file by the SHA-256 of its content.
Nodes store contents by this digest, so a content is sent and stored once.
"""
