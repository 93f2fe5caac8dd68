"""Blobs of a node: stored by content, and fetched from the nodes that have them."""
