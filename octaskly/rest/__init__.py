"""JSON types of the REST API, defined once for nodes and clients."""
