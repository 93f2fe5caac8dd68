"""Leader election without a quorum: candidacy, claims, heartbeats and timeouts."""
