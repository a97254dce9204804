"""Floor 2: arrays to network input and back: normalise, plan tiles, blend, augment, sample."""
