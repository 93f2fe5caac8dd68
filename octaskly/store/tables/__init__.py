"""The SQLite schema, the database file, and the rows of each table."""
