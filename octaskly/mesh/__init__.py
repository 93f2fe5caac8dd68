"""Talking to peers: frames, links, the transport, and finding peers over mDNS."""
