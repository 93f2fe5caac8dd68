"""How commands print tasks, nodes, results and live screens."""
