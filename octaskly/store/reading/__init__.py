"""Queries of the store: pages, queue, history, snapshots and compaction plan."""
