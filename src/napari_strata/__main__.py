"""``python -m napari_strata``: the command line, also for programs that start modules, such as torchrun."""

from napari_strata.cli import main

main()
