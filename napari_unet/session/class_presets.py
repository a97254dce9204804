"""Classes that are common for one kind of scan, to begin with."""

from __future__ import annotations

#: What is outlined, and the names of its classes.
CLASS_PRESETS: dict[str, tuple[str, ...]] = {
    "Hippocampus": ("anterior", "posterior"),
    "Heart (cine MR)": ("left ventricle", "myocardium", "right ventricle"),
    "Liver": ("liver", "tumour"),
    "Kidneys": ("kidney", "tumour", "cyst"),
    "Lungs": ("right lung", "left lung"),
    "Brain tumour": ("oedema", "enhancing tumour", "tumour core"),
    "Retina": ("vessel",),
    "Cells": ("nucleus",),
}
