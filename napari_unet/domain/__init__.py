"""Floor 1: what things are. numpy and pydantic only; no torch, napari, Qt or files."""
