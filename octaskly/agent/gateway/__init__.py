"""The gateway of the agent: answers the REST API from the core and the store."""
