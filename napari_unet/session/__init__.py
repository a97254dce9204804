"""Floor 5: the application without a window: commands, state, history."""
