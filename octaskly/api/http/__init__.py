"""Shared parts of routes: requests, authentication, streams, calls to other nodes."""
