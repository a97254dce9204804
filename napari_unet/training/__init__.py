"""Floor 3: losses, the one training loop, and the policy of learning from few corrections."""
