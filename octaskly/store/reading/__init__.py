"""Queries: pages, queue, history and snapshots."""
