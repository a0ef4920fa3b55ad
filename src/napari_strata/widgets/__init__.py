"""The docks: faces of the engine inside napari.

The only room that knows Qt; it never imports torch.
"""
