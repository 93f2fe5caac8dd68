"""Connections between peers: TLS links, their limits, and duplicate links."""
