"""Peers, their addresses, the roster and the mDNS schedule."""
