"""Models out of the door and in again: export, compression, and the formats of other programs."""
