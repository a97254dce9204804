"""Floor 3: what is kept on disk: checkpoints and the autosaved annotations."""
