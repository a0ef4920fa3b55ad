"""Show which changes of an image are noticed, and what they cost.

    python benchmarks/drift.py DATA [--recipe trees] [--set KEY=VALUE]... [--out DIR]

DATA holds `sandstone/`, and other sets of which any may be missing: `superalloy/`,
`nuclei/`, `aerial6/`, `nuclei3d/`, each with `images/` and `labels/`. A model is
trained on all slices of the sandstone but the last two. The first table has the
changes of the last slice, the unexplained share of its grey values, its detail, what
`check` says, and the mean IoU that the change costs; then single images of the other
sets. The second table has false alarms: of each set, every other image makes a
reference, and the images in between are compared with it, as they are and inverted.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter, median_filter
from skimage.transform import resize

import napari_strata as ns
from napari_strata.core.drift import Drift
from napari_strata.core.image import AnnotatedImage, Image
from napari_strata.core.recipes import load_recipe, parse_value
from napari_strata.core.spec import find_classes
from napari_strata.data.regions import all_regions
from napari_strata.inference.checks import compare_image
from napari_strata.models.model import Model
from napari_strata.training.drift import measure_reference

Array = np.ndarray[Any, Any]

SMALL = {"network.trees": 100, "network.pixels": 60_000}
"""A model that is trained in a minute."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--recipe", default="trees")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    pairs = ns.read_pairs(options.data / "sandstone")
    classes = find_classes(pairs)
    overrides: dict[str, Any] = SMALL if options.recipe == "trees" else {}
    overrides = overrides | {
        key: parse_value(value)
        for key, _, value in (item.partition("=") for item in options.set)
    }
    out = options.out or Path(tempfile.mkdtemp()) / "run"
    start = time.perf_counter()
    model = ns.train(
        options.recipe,
        pairs[:-2],
        validation=pairs[-2],
        classes=classes,
        out=out,
        overrides=overrides,
        device="cpu",
    )
    print(f"trained in {time.perf_counter() - start:.0f} s\n")
    _show_changes(model, pairs[-2:])
    _show_others(model, options.data)
    _show_false_alarms(options.data)


def _show_changes(model: Model, later: list[AnnotatedImage]) -> None:
    print(
        f"{'image':34}{'unexplained':>12}{'detail':>8}  {'said':8}{'IoU':>6}{'lost':>6}"
    )
    before, last = later
    _show(model, f"slice {before.name[-4:]}", before)
    loss_from = _show(model, f"slice {last.name[-4:]}", last)
    grey = last.image.read()[0]
    truth = last.labels.read()[0]
    for name, values, labels in _changes(grey, truth):
        image = Image(values, "YX", name=name)
        pair = AnnotatedImage(image, image.labels_like(labels))
        # Another part of the slice has another score, whatever has changed.
        is_crop = name.startswith("crop")
        _show(model, name, pair, loss_from=None if is_crop else loss_from)
    print()


def _show(
    model: Model, name: str, pair: AnnotatedImage, loss_from: float | None = None
) -> float:
    drift = ns.check_drift(model, pair.image)
    iou = ns.evaluate(model, pair, device="cpu").confusion.mean_iou_in_truth
    lost = "" if loss_from is None else f"{loss_from - iou:6.3f}"
    print(f"{name:34}{_describe(drift)}{iou:6.3f}{lost}", flush=True)
    return float(iou)


def _describe(drift: Drift) -> str:
    plane = max(drift.planes, key=lambda plane: plane.excess)
    said = drift.level or "-"
    return f"{100 * plane.unexplained:10.2f} %{plane.detail:+8.2f}  {said:8}"


def _changes(grey: Array, truth: Array) -> Iterator[tuple[str, Array, Array]]:
    rng = np.random.default_rng(0)
    values = grey.astype(float)
    rows, columns = np.indices(grey.shape)
    height, width = grey.shape
    radius = np.hypot(rows - height / 2, columns - width / 2)
    low, high = np.percentile(grey, (2, 98))
    changes = {
        "contrast x 1.1": values * 1.1,
        "contrast x 0.9": values * 0.9,
        "contrast x 1.3": values * 1.3,
        "gamma 0.8": 255 * (values / 255) ** 0.8,
        "gamma 1.2": 255 * (values / 255) ** 1.2,
        "offset +2": values + 2,
        "offset +5": values + 5,
        "offset -10": values - 10,
        "inverted": 255 - values,
        "window of 8 bits moved (2-98 %)": (values - low) / (high - low) * 255,
        "16 grey levels": grey // 16 * 16 + 8,
        "blurred, sigma 1": gaussian_filter(values, 1),
        "blurred, sigma 2": gaussian_filter(values, 2),
        "median of 5 x 5": median_filter(grey, 5),
        "noise, sigma 5": values + rng.normal(0, 5, grey.shape),
        "noise, sigma 10": values + rng.normal(0, 10, grey.shape),
        "rings, amplitude 8": values + 8 * np.sin(radius / 3),
        "cupping, 20 at the edge": values + 20 * (radius / radius.max()) ** 2,
    }
    for name, changed in changes.items():
        yield name, np.clip(np.round(changed), 0, 255).astype(np.uint8), truth
    for factor in (0.5, 2):
        shape = (round(height * factor), round(width * factor))
        scaled = resize(values, shape, anti_aliasing=factor < 1)
        labels = resize(truth, shape, order=0, anti_aliasing=False)
        name = f"pixels {1 / factor:g} times as long"
        yield name, np.round(scaled).astype(np.uint8), labels.astype(truth.dtype)
    yield "turned by 90 degrees", np.rot90(grey).copy(), np.rot90(truth).copy()
    for side in (512, 256, 128):
        y, x = (height - side) // 2, (width - side) // 2
        part = np.s_[y : y + side, x : x + side]
        yield f"crop {side} x {side}", grey[part], truth[part]


def _show_others(model: Model, data: Path) -> None:
    """Compare images of other sets; colours are averaged."""
    for folder in ("superalloy", "nuclei", "aerial6"):
        for pair in _read(data / folder)[::20]:
            grey = pair.image.read().mean(axis=0).round().astype(np.uint8)
            drift = ns.check_drift(model, Image(grey, "YX", name=pair.name))
            print(f"{folder + ' ' + pair.name[:20]:34}{_describe(drift)}")
    for path in sorted((data / "nuclei3d" / "images").glob("*.tif"))[:1]:
        print(f"{'nuclei3d':34}{_describe(ns.check_drift(model, ns.read_image(path)))}")
    print()


def _show_false_alarms(data: Path) -> None:
    heads = f"{'images':>8}{'notice':>8}{'ask':>5}{'limits':>16}"
    print(f"{'set':12}{'grey values':12}{heads}   inverted: notice, ask")
    for folder, kind in (
        ("sandstone", "physical"),
        ("superalloy", "relative"),
        ("superalloy", "physical"),
        ("nuclei", "relative"),
        ("aerial6", "relative"),
        ("aerial6", "dtype"),
    ):
        pairs = _read(data / folder)
        if not pairs:
            continue
        pairs = [
            pair for pair in pairs if pair.image.channels == pairs[0].image.channels
        ]
        recipe = load_recipe("default").with_overrides(
            {"normalization.grey_values": kind}
        )
        known, others = pairs[::2], pairs[1::2]
        classes = ns.ClassMap.foreground() if folder == "nuclei" else None
        spec = ns.resolve(recipe, known, classes=classes)
        regions = [region for pair in known for region in all_regions(pair)]
        reference = measure_reference(regions, spec, seed=0)
        assert reference is not None
        model = Model(spec, recipe, {}, drift=reference)
        drifts, inverted = [], []
        for pair in others:
            image = pair.image
            drifts.append(compare_image(model, image, image.samples()))
            negative = replace(image, data=255 - np.asarray(image.data))
            inverted.append(compare_image(model, negative, negative.samples()))
        share, _, ask = reference.limits(2**20)
        print(
            f"{folder:12}{kind:12}{len(others):8}{_count(drifts, 'notice'):8}"
            f"{_count(drifts, 'ask'):5}{100 * share:10.1f}{100 * ask:5.1f} %"
            f"{_count(inverted, 'notice'):13},{_count(inverted, 'ask'):3}",
            flush=True,
        )


def _count(drifts: list[Drift | None], level: str) -> int:
    return sum(drift is not None and drift.level == level for drift in drifts)


def _read(folder: Path) -> list[AnnotatedImage]:
    if not folder.is_dir():
        print(f"{folder}: found no such set; it is left out")
        return []
    return ns.read_pairs(folder)


if __name__ == "__main__":
    main()
