"""What routes share: requests, authentication, streams, calls to other nodes."""
