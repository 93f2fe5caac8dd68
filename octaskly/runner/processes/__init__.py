"""Process trees, cgroups, limits and privileges."""
