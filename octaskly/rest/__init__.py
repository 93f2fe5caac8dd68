"""The JSON of the REST API, each type once: nodes make it, clients read it."""
