"""Floor 2: the correction tools, as pure functions on arrays."""
