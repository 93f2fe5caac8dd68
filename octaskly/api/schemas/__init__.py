"""Request bodies, query parameters and response bodies of the REST API, without I/O."""
