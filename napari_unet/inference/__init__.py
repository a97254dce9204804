"""Floor 3: tiles in, proposal out."""
