"""Floor 6: the command line, one face of the session."""
