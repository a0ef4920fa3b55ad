"""Worker process of the viewer, ``python -m napari_strata.worker``.

Jobs come in and events go out as lines of JSON. The viewer imports `protocol`, which
needs neither torch nor Qt. `transport`, `server`, `jobs`, `sources` and `npy` run in
the process.
"""
