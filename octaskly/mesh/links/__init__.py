"""Connections between peers: TLS links, limits and duplicates."""
