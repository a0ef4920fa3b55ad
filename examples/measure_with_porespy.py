"""Hand labels and their voxel size to PoreSpy and taufactor.

They measure what napari-strata leaves to them: local thickness, pore networks and
tortuosity. They are not installed with napari-strata: pip install porespy taufactor.

    python measure_with_porespy.py labels.ome.tif pore

This runs as it is on the labels of a generated sandstone.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType

import numpy as np

import napari_strata as ns
from napari_strata.io.samples import sandstone


def load(name: str) -> ModuleType:
    """Import a package, or end with words."""
    try:
        return import_module(name)
    except ImportError as error:
        sys.exit(f"{name} cannot be imported ({error}): pip install porespy taufactor")


ps, tau = load("porespy"), load("taufactor")
path = sys.argv[1] if len(sys.argv) > 1 else None
name = sys.argv[2] if len(sys.argv) > 2 else "pore"
labels = ns.read_labels(path) if path else sandstone((48, 64, 64)).labels
if labels.size("Z") < 2 or labels.classes is None:
    sys.exit(f"{labels.name}: needed is a volume of labels with classes.")
if name not in labels.classes.names:
    sys.exit(f"{name} is none of the classes {', '.join(labels.classes.names)}.")
sizes = {round(size, 6) for size in labels.pixel_size.values()}
if len(sizes) > 1:
    sys.exit(f"{labels.name}: both need cubic voxels and these are not: {sizes}.")
voxel, unit = sizes.pop(), labels.pixel_unit
indices = labels.classes.encode(labels.read()[0])
mask = indices == labels.classes.names.index(name)
print(f"{labels.describe()}: {name} fills {mask.mean():.1%}")

thickness = ps.filters.local_thickness(mask)[mask] * 2 * voxel  # radii of balls
print(f"local thickness: median {np.median(thickness):.3g} {unit}")

network = ps.networks.snow2(mask, voxel_size=voxel).network
pores, throats = len(network["pore.coords"]), len(network["throat.conns"])
print(f"pore network: {pores} pores, {throats} throats")

solver = tau.Solver(mask.astype(np.uint8))
solver.solve()
print(f"tortuosity factor along Z: {float(solver.tau):.3g}")
