"""The agent's side of the REST API: requests to the core, answers to clients."""
