"""Layers: napari's layers as the engine's images and labels.

Which one, what is painted, what fills in.
"""
