"""Train `unet-ct` and boosted trees on slices of a sandstone; score another slice.

    python benchmarks/sandstone.py FOLDER [--test 0300] [--set KEY=VALUE]... [--out DIR]

FOLDER holds `images/` and `labels/` with one slice a file, such as the seven slices
"Sandstone_Versa*.tif" of bnsreenu/python_for_microscopists (MIT). The network is
validated on the held-out slice and its best epoch is kept, so its figure is the best of
some thirty looks at that slice; the trees never look. Needs scikit-learn (the extra
`test`).
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from pathlib import Path

from baselines import boosted_trees

import napari_strata as ns
from napari_strata.cli.console import show
from napari_strata.core.recipes import parse_value
from napari_strata.core.spec import find_classes


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--test", default="0300", help="part of the name of the slice to score"
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    pairs = ns.read_pairs(options.folder)
    training = [p for p in pairs if options.test not in p.name]
    test = next(p for p in pairs if options.test in p.name)
    classes = find_classes(pairs)
    out = options.out or Path(tempfile.mkdtemp()) / "run"
    overrides = {
        key: parse_value(value)
        for key, _, value in (item.partition("=") for item in options.set)
    }

    start = time.perf_counter()
    show(
        ns.iter_train(
            "unet-ct",
            training,
            out=out,
            validation=[test],
            classes=classes,
            overrides=overrides,
        )
    )
    network_seconds = time.perf_counter() - start
    network = ns.evaluate(ns.Model.load(out), [test]).confusion
    start = time.perf_counter()
    trees = boosted_trees(training, [test], classes)
    trees_seconds = time.perf_counter() - start

    print(
        f"\n{test.name}; {platform.processor() or platform.machine()}; torch and trees "
        "on the same cores"
    )
    print(
        f"{'':16}{'mean IoU':>10}"
        + "".join(f"{name:>12}" for name in classes.names)
        + f"{'seconds':>10}"
    )
    for name, rows, seconds in (
        ("unet-ct", network, network_seconds),
        ("boosted trees", trees, trees_seconds),
    ):
        print(
            f"{name:16}{rows.mean_iou:10.3f}"
            + "".join(f"{v:12.3f}" for v in rows.iou)
            + f"{seconds:10.0f}"
        )
    error = (1 - network.mean_iou) / (1 - trees.mean_iou)
    print(f"the network leaves {error:.2f} of the trees' error (1 - mean IoU)")
    scores = {"unet-ct": network.as_dict(), "boosted trees": trees.as_dict()}
    (out / "benchmark.json").write_text(json.dumps(scores, indent=2))


if __name__ == "__main__":
    main()
