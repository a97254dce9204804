"""Interactive segmentation in napari: a U-Net proposes, you correct, it learns."""

__version__ = "0.1.0"
