"""REST routes, one module per resource; `table` lists them all."""
