"""The single writer: commits, projection and compaction."""
