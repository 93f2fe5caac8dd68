"""Peer-to-peer networking: the wire format, TLS links and mDNS discovery."""
