"""Follow a training event by event, and stop it when its score is good enough.

The model on disk is valid at any time.
"""

from __future__ import annotations

import sys
from pathlib import Path

import napari_strata as ns
from napari_strata.core.events import EpochEnd
from napari_strata.io.samples import cells

out = Path(sys.argv[1] if len(sys.argv) > 1 else "example")
small = {
    "network.kind": "unet",
    "network.widths": [8, 16, 32],
    "training.epochs": 20,
    "patches.size": 64,
}

for event in ns.iter_train(
    "default", [cells((6, 96, 96))], out=out / "cells", overrides=small
):
    if isinstance(event, EpochEnd):
        print(f"epoch {event.epoch}: mean IoU {event.mean_iou:.3f}")
        if event.mean_iou > 0.5 or event.epoch == 4:
            break

print(ns.Model.load(out / "cells").spec.classes.names)
