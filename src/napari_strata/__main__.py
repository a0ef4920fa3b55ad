"""Command line as ``python -m napari_strata``, also for torchrun."""

from napari_strata.cli import main

main()
