"""Layers: napari's layers as the engine's images and labels; which one, what is painted, what fills in."""
