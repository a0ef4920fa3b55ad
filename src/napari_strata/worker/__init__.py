"""Worker process of the viewer, ``python -m napari_strata.worker``.

It receives requests and sends events as lines of JSON. The viewer imports `protocol`,
which needs neither torch nor Qt. The other modules run in the worker process.
"""
