"""Floor 2: how good a mask is, in numbers and pictures; and an annotator that only paints."""
