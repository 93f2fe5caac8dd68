"""Joining and leaving a mesh: invites, pairing and fingerprints."""
