"""Speed as ratios: limits of the machine, peers, and real agents, in one run."""
