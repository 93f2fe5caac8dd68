"""Client operations as generators of steps, without I/O."""
