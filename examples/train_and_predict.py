"""Train on a stack with labels and segment a new one with the Python API.

This runs as it is on a generated sandstone; see below for your own files.
"""

from __future__ import annotations

import sys
from pathlib import Path

import napari_strata as ns
from napari_strata.io.samples import sandstone

out = Path(sys.argv[1] if len(sys.argv) > 1 else "example")

# Your own data: pairs = ns.read_pairs("images", "labels"), and
# ns.read_image("stack.tif") for predict.
pairs = [sandstone((4, 128, 128), seed=0)]
new = sandstone((2, 128, 128), seed=1)

small = {"network.widths": [8, 16, 32], "training.epochs": 3, "patches.per_epoch": 32}
model = ns.train("unet-ct", pairs, out=out / "run", overrides=small)
labels = ns.predict(model, new.image)
ns.write_labels(out / "labels.tif", labels)

scores = ns.evaluate(model, [new])
for name, iou in zip(model.spec.classes.names, scores.confusion.iou, strict=True):
    print(f"{name:16} IoU {iou:.3f}")
