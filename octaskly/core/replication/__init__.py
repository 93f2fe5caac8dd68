"""Replication of the log: standbys, acknowledgements, anti-entropy and catch-up."""
