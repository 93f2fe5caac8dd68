"""How machines join and leave a mesh: invites, pairing and fingerprints."""
