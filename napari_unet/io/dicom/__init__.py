"""DICOM: series and multi-frame images in, segmentations out."""
