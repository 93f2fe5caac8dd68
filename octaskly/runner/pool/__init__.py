"""The agent's side of the launchers: attempts, slots and reports."""
