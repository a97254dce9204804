"""Floor 2: the networks, from one description."""
