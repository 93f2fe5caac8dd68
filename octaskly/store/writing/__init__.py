"""The single writer thread: commits, projection of facts to rows, and purging."""
