"""Command line with the same names and defaults as the Python API, which it calls."""

from napari_strata.cli.commands import app as app
from napari_strata.cli.commands import main as main
