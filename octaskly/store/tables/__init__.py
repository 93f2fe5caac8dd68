"""The SQLite schema, and rows of one table each."""
