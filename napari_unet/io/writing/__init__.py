"""How masks of each format are written, and how a file takes its place."""
