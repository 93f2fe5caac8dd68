"""Drivers that perform the steps of flows: threads or an event loop."""
