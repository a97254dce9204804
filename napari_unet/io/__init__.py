"""Floor 2: files to scans and masks and back. Nothing here trains, shows or decides."""
