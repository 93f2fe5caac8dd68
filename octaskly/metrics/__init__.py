"""Metrics of a node, and their Prometheus exposition format."""
