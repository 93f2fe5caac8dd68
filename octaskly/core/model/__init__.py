"""Values of the domain: ids, nodes, tasks, arrays, keys and settings."""
