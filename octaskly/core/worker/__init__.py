"""The worker: attempts that run here, and results until they are acknowledged."""
