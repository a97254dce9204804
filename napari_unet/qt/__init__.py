"""Floor 6: the window, one face of the session; the only place that imports qtpy, napari or magicgui."""
