"""napari's layers as images and labels: choice, classes, counts, saving, updates."""
