"""The HTTP server: listeners, connection limits, bodies, pipeline and responses."""
