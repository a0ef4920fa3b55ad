"""The pixel classifier: fixed features of an image, trees, and a guided filter.

`PixelClassifier` is fitted on features of labelled pixels in less than a second.
"""
