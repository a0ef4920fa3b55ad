"""Train the five systems from scratch, beside reported figures and two baselines.

    python benchmarks/seeds.py DATA --out RESULTS [--only NAME]... [--set KEY=VALUE]...
    python benchmarks/seeds.py DATA --out RESULTS --folds
    python benchmarks/seeds.py DATA --out RESULTS --table

DATA is a folder with rooftop/, water/, sandstone/ and aerial6/ in it. Every row is one
run folder under RESULTS; a run that was cut short goes on, a finished one is not done
again, so the whole can be run in pieces. The trees learn from the validation images
too, since they do not need any. `--table` prints what is there as Markdown and trains
nothing. The test images are never looked at in training: the best epoch is chosen on
the validation images, and the test images are scored once. Needs scikit-learn (the
extra `test`).
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from baselines import boosted_trees, majority
from folds import cross_validate, scores_of_ensemble, scores_of_folds, write

import napari_strata as ns
from napari_strata.cli.console import show
from napari_strata.core.classes import ClassMap
from napari_strata.core.events import EpochEnd
from napari_strata.core.image import AnnotatedImage
from napari_strata.core.recipes import parse_value
from napari_strata.data.split import split_pairs

NO_WEIGHTS = {"network.encoder_weights": "none"}


@dataclass(frozen=True)
class Split:
    """Images that train, validate and test, and how they were told apart, in words."""

    training: list[AnnotatedImage]
    validation: list[AnnotatedImage]
    test: list[AnnotatedImage]
    text: str
    classes: ClassMap


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    recipe: str
    data: str
    reported: str = "-"
    overrides: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.recipe}@{self.data}"


def rooftop(root: Path) -> Split:
    """Roof or not, one drone flight."""
    classes = ClassMap(names=("background", "roof"), values=(0, 255))
    pairs = ns.read_pairs(root / "rooftop" / "images", root / "rooftop" / "label")
    return _by_image(pairs, classes)


def aerial(root: Path) -> Split:
    """Six classes, two drone flights."""
    names = ("building", "clutter", "vegetation", "water", "ground", "car")
    pairs = ns.read_pairs(root / "aerial6" / "images", root / "aerial6" / "labels")
    return _by_image(pairs, ClassMap(names=names, values=tuple(range(6))))


def _by_image(pairs: list[AnnotatedImage], classes: ClassMap) -> Split:
    """Draw a sixth for tests and a sixth of the rest for validation."""

    def draw(
        some: list[AnnotatedImage],
    ) -> tuple[list[AnnotatedImage], list[AnnotatedImage]]:
        halves = split_pairs(some, fraction=1 / 6, seed=0, classes=classes)
        held = {id(part.pair) for part in halves.validation}
        return [pair for pair in some if id(pair) not in held], [
            pair for pair in some if id(pair) in held
        ]

    rest, test = draw(sorted(pairs, key=lambda pair: pair.name))
    training, validation = draw(rest)
    counts = f"{len(training)}/{len(validation)}/{len(test)}"
    return Split(
        training, validation, test, f"by image, drawn with seed 0 ({counts})", classes
    )


def water(root: Path) -> Split:
    """Water or land, 300 chips."""
    classes = ClassMap(names=("land", "water"), values=(0, 1))
    images, masks = (
        tifffile.imread(root / "water" / name) for name in ("images.tif", "masks.tif")
    )
    pairs = [
        AnnotatedImage(
            ns.Image(image, "YXC", name=f"chip {i:03d}"),
            ns.LabelImage(mask, "YX", name=f"chip {i:03d}"),
            f"chip {i:03d}",
        )
        for i, (image, mask) in enumerate(zip(images, masks, strict=True))
    ]
    order = np.random.default_rng(0).permutation(len(pairs))
    drawn = [pairs[i] for i in order]
    return Split(
        drawn[60:],
        drawn[:24],
        drawn[24:60],
        "by image, drawn with seed 0 (240/24/36)",
        classes,
    )


ROCK = ClassMap(names=("pore", "clay", "quartz", "heavy mineral"), values=(1, 2, 3, 4))


def patches(root: Path) -> Split:
    """Read the patches of 128 x 128 in two stacks, by the slice they were cut from."""
    folder = root / "sandstone"
    images, masks = (
        tifffile.imread(folder / f"patches_{name}.tif") for name in ("images", "masks")
    )
    with open(folder / "patches.csv", newline="", encoding="utf-8") as file:
        of = [int(row["slice"]) for row in csv.DictReader(file)]

    def stack(wanted: Callable[[int], bool], name: str) -> list[AnnotatedImage]:
        chosen = [i for i, number in enumerate(of) if wanted(number)]
        return [
            AnnotatedImage(
                ns.Image(images[chosen], "ZYX", name=name),
                ns.LabelImage(masks[chosen], "ZYX"),
                name,
            )
        ]

    numbers = sorted(set(of))
    parts = (
        stack(lambda n: n < numbers[-2], "training patches"),
        stack(lambda n: n == numbers[-2], "validation patches"),
        stack(lambda n: n == numbers[-1], "test patches"),
    )
    text = f"by slice: validated on {numbers[-2]:04d}, tested on {numbers[-1]:04d}"
    return Split(*parts, text, ROCK)


def slices(root: Path) -> Split:
    """Sandstone as whole slices."""
    pairs = sorted(
        ns.read_pairs(root / "sandstone" / "images", root / "sandstone" / "labels"),
        key=lambda p: p.name,
    )
    return Split(
        pairs[:5],
        pairs[5:6],
        pairs[6:],
        "by slice: validated on 0250, tested on 0300",
        ROCK,
    )


DATA = {
    "rooftop": rooftop,
    "water": water,
    "sandstone patches": patches,
    "sandstone slices": slices,
    "aerial6": aerial,
}

ROWS = [
    Row("unet-classic", "water", "mean IoU .748 (2,291 training chips)"),
    Row(
        "unet-resnet34",
        "sandstone patches",
        "mean IoU .886, accuracy .970 (random patches, ImageNet)",
        NO_WEIGHTS,
    ),
    Row("unet-resnet34", "sandstone slices", "", NO_WEIGHTS),
    Row("unet-ct", "sandstone slices"),
    Row("unet-aerial", "aerial6", "no figures"),
    Row(
        "deeplabv3plus-resnet50",
        "rooftop",
        "expected: mean IoU .70-.85, accuracy .90-.95",
        NO_WEIGHTS,
    ),
    Row(
        "atrous-resnet50",
        "rooftop",
        "BCE .0481, Dice loss .2673 (validation)",
        NO_WEIGHTS,
    ),
]

FOLDED = [
    Row("unet-classic", "water", "mean IoU .748 (300 images, trained on 2,291)"),
    Row("unet-ct", "sandstone slices"),
]
"""Rows that are cross-validated in five folds."""


def run_folds(row: Row, root: Path, out: Path, extra: dict[str, Any]) -> None:
    """Return the mean of the folds, and their ensemble on an unseen specimen."""
    folder = out / f"folds of {row.name}".replace(" ", "_")
    split = DATA[row.data](root)
    whole = row.data == "water"
    pairs = [*split.training, *split.validation, *(split.test if whole else [])]
    pairs.sort(key=lambda pair: pair.name)
    overrides = row.overrides | extra
    result = cross_validate(
        row.recipe, pairs, out=folder, classes=split.classes, overrides=overrides
    )
    facts: dict[str, Any] = {"split": split.text, "overrides": overrides}
    write(folder / "score.json", facts | scores_of_folds(result))
    for name, tta in () if whole else (("ensemble", False), ("ensemble_turned", True)):
        if not (folder / f"{name}.json").exists():
            more = {"train_seconds": result.seconds} | scores_of_ensemble(
                folder, split.test, tta=tta
            )
            write(folder / f"{name}.json", facts | more)


def _folded_rows(data: str, out: Path) -> list[tuple[str, str, Path]]:
    rows = []
    for row in FOLDED:
        if row.data == data:
            folder = out / f"folds of {row.name}".replace(" ", "_")
            rows += [
                (
                    f"{row.recipe}, mean of five folds",
                    row.reported,
                    folder / "score.json",
                ),
                (f"{row.recipe}, ensemble of the folds", "", folder / "ensemble.json"),
                (
                    f"{row.recipe}, ensemble and flips and turns",
                    "",
                    folder / "ensemble_turned.json",
                ),
            ]
    return rows


def run_row(row: Row, root: Path, out: Path, extra: dict[str, Any]) -> None:
    """Train one recipe, or go on with it, and score its test images."""
    folder = out / row.name.replace(" ", "_")
    if (folder / "score.json").exists():
        return
    split = DATA[row.data](root)
    overrides = row.overrides | extra
    started = (folder / "recipe.yaml").exists()
    show(
        ns.iter_train(
            row.recipe,
            [*split.training],
            out=folder,
            validation=split.validation,
            classes=split.classes,
            # A row that goes on keeps its recipe, but for how long it trains.
            overrides={k: v for k, v in extra.items() if k == "training.epochs"}
            if started
            else overrides,
            resume=started,
        )
    )
    model = ns.Model.load(folder)
    begun = time.perf_counter()
    confusion = ns.evaluate(model, split.test).confusion
    facts = {
        "split": split.text,
        "overrides": overrides,
        "epochs": len(model.history),
        "best_epoch": model.best.epoch if model.best else 0,
        "train_seconds": sum(
            end.seconds for end in model.history if isinstance(end, EpochEnd)
        ),
        "test_seconds": time.perf_counter() - begun,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, "
        f"load {os.getloadavg()[2]:.1f}",
    }
    (folder / "score.json").write_text(
        json.dumps(facts | confusion.as_dict(), indent=2) + "\n"
    )


def run_baselines(data: str, root: Path, out: Path) -> None:
    """Both baselines on one split."""
    for name, method in (
        ("majority class", majority),
        ("boosted trees", boosted_trees),
    ):
        path = out / f"{name}@{data}.json".replace(" ", "_")
        if path.exists():
            continue
        split, begun = DATA[data](root), time.perf_counter()
        confusion = method(
            [*split.training, *split.validation], split.test, split.classes
        )
        facts = {"split": split.text, "train_seconds": time.perf_counter() - begun}
        path.write_text(json.dumps(facts | confusion.as_dict(), indent=2) + "\n")


def table(out: Path) -> str:
    """Return the finished rows as Markdown."""
    lines = []
    for data in DATA:
        found = [
            (
                row.recipe,
                row.reported,
                out / row.name.replace(" ", "_") / "score.json",
            )
            for row in ROWS
            if row.data == data
        ]
        found += [
            (name, "", out / f"{name}@{data}.json".replace(" ", "_"))
            for name in ("boosted trees", "majority class")
        ]
        found[-2:-2] = _folded_rows(data, out)
        rows = [
            (name, reported, json.loads(path.read_text()))
            for name, reported, path in found
            if path.exists()
        ]
        if rows:
            lines += _lines(data, rows)
    return "\n".join(lines)


def _lines(data: str, rows: list[tuple[str, str, dict[str, Any]]]) -> list[str]:
    names = list(rows[0][2]["per_class"])
    head = [
        "",
        "mean IoU",
        *names,
        "mean Dice",
        "accuracy",
        "precision",
        "recall",
        "epochs (best)",
        "minutes",
        "reported",
    ]
    lines = [f"\n### {data[0].upper()}{data[1:]}\n", f"Split {rows[0][2]['split']}.\n"]
    lines += ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, reported, facts in rows:
        rows_of = facts["per_class"].values()
        means = [
            np.nanmean([np.nan if r[key] is None else r[key] for r in rows_of])
            for key in ("precision", "recall")
        ]
        cells = [
            facts["mean_iou"],
            *(r["iou"] for r in rows_of),
            facts["mean_dice"],
            facts["pixel_accuracy"],
            *means,
        ]
        epochs = (
            f"{facts['epochs']} ({facts['best_epoch']})" if "epochs" in facts else ""
        )
        if "mean_iou_std" in facts:
            name += f" (± {facts['mean_iou_std']:.3f})"
        minutes = f"{facts['train_seconds'] / 60:.1f}"
        texts = [
            name,
            *("-" if c is None else f"{c:.3f}".lstrip("0") for c in cells),
            epochs,
            minutes,
            reported,
        ]
        lines.append("| " + " | ".join(texts) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--only",
        action="append",
        help="rows whose name contains this; may be given several times",
    )
    parser.add_argument(
        "--folds",
        action="store_true",
        help="the cross-validated rows instead of the others",
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if not options.table:
        options.out.mkdir(parents=True, exist_ok=True)
        extra = {
            key: parse_value(value)
            for key, _, value in (item.partition("=") for item in options.set)
        }
        rows = [
            row
            for row in ROWS
            if not options.only or any(part in row.name for part in options.only)
        ]
        for data in dict.fromkeys(row.data for row in rows):
            run_baselines(data, options.data, options.out)
        for row in [] if options.folds else rows:
            run_row(row, options.data, options.out, extra)
        for row in FOLDED if options.folds else []:
            if not options.only or any(part in row.name for part in options.only):
                run_folds(row, options.data, options.out, extra)
    print(table(options.out))


if __name__ == "__main__":
    main()
