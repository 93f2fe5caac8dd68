"""The JSON of the REST API, defined once for server and client."""
