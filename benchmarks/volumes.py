"""Compare networks that see a slice, its neighbours, a volume, or three views.

    python benchmarks/volumes.py DATA --out RESULTS [--only NAME] [--set KEY=VALUE]
    python benchmarks/volumes.py DATA --out RESULTS --table

DATA is a folder with nuclei3d/ in it: one light-sheet volume of nuclei, labelled as
instances and taken as foreground. The volume is cut across X into blocks with gaps
between them: one trains, one validates (the best epoch is chosen there), one is scored,
once. It is done twice, the blocks in their order and in reverse. All 2D networks are
one classic U-Net with the widths of the 3D one, and all see 30 steps an epoch for 20
epochs. The three views are those of the network in row "2D".

Every training and every prediction is a process of its own, whose highest memory
(resident set) is reported; about 400 MB of it are the libraries. Finished trainings
are not repeated. `--table` prints the finished rows.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from baselines import boosted_trees, majority

import napari_strata as ns
from napari_strata.cli.console import show
from napari_strata.core.classes import ClassMap
from napari_strata.core.image import AnnotatedImage, Image
from napari_strata.core.recipes import parse_value

CLASSES = ClassMap.foreground(("background", "nuclei"))
BLOCKS = {"training": (0, 48), "validation": (54, 68), "test": (74, 100)}
"""Columns; a nucleus is some 16 wide, and 6 lie between blocks."""

SPLITS = ("in order", "reversed")
PLANES: dict[str, Any] = {
    "network.widths": [16, 32, 64, 128],
    "normalization.grey_values": "auto",
    "patches.size": 48,
    "patches.per_epoch": 480,
}


@dataclass(frozen=True)
class Way:
    """One row: a recipe, what is changed in it, and how it predicts."""

    name: str
    recipe: str
    overrides: dict[str, Any] = field(default_factory=dict)
    trained: str = ""
    """The row whose network it is, where it trains none."""
    ortho: bool = False


WAYS = [
    Way("2D", "unet-ct", PLANES),
    Way("2.5D, 1 neighbour", "unet-ct", PLANES | {"patches.neighbours": 1}),
    Way("2.5D, 2 neighbours", "unet-ct", PLANES | {"patches.neighbours": 2}),
    Way("2D, three views", "unet-ct", PLANES, trained="2D", ortho=True),
    Way("3D", "unet3d", {"patches.size": 48, "patches.per_epoch": 60}),
]


def read(root: Path, split: str) -> dict[str, AnnotatedImage]:
    """The blocks of the volume."""
    pair = ns.read_pairs(root / "nuclei3d" / "images", root / "nuclei3d" / "labels")[0]
    grey, labels = np.asarray(pair.image.data), np.asarray(pair.labels.data)
    if split == "reversed":
        grey, labels = grey[..., ::-1], labels[..., ::-1]
    blocks = {}
    for name, (first, stop) in BLOCKS.items():
        image: Image = replace(
            pair.image,
            data=np.ascontiguousarray(grey[..., first:stop]),
            name=name,
            source=None,
        )
        blocks[name] = AnnotatedImage(
            image, image.labels_like(np.ascontiguousarray(labels[..., first:stop]))
        )
    return blocks


def train(
    way: Way, blocks: dict[str, AnnotatedImage], run: Path, extra: dict[str, Any]
) -> dict[str, Any]:
    """Train, or go on; what it took."""
    started = (run / "recipe.yaml").exists()
    events = ns.iter_train(
        way.recipe,
        blocks["training"],
        out=run,
        validation=blocks["validation"],
        classes=CLASSES,
        overrides=None if started else way.overrides | extra,
        resume=started,
    )
    show(events)
    model = ns.Model.load(run)
    return {
        "train_seconds": sum(end.seconds for end in model.history),
        "best_epoch": model.best and model.best.epoch,
    }


def test(way: Way, blocks: dict[str, AnnotatedImage], run: Path) -> dict[str, Any]:
    """Segment the test block and score it."""
    model = ns.Model.load(run)
    begun = time.perf_counter()
    labels = ns.predict(model, blocks["test"].image, ortho=way.ortho)
    seconds = time.perf_counter() - begun
    return {"test_seconds": seconds} | score(
        np.asarray(labels.data), blocks["test"]
    ).as_dict()


def score(labels: np.ndarray[Any, Any], truth: AnnotatedImage) -> ns.ConfusionMatrix:
    confusion = ns.ConfusionMatrix(CLASSES)
    confusion.update(
        CLASSES.encode(np.asarray(truth.labels.data)), CLASSES.encode(labels)
    )
    return confusion


def place(out: Path, name: str, split: str, suffix: str = "") -> Path:
    return out / (f"volumes {name} {split}".replace(",", "").replace(" ", "_") + suffix)


def step(
    options: argparse.Namespace, way: Way, split: str, what: str
) -> dict[str, Any]:
    """One training or prediction in a process of its own, unless it was done before."""
    file = place(options.out, way.name, split, f".{what}.json")
    if not file.exists():
        arguments = [
            sys.executable,
            __file__,
            str(options.data),
            "--out",
            str(options.out),
            "--step",
            way.name,
            split,
            what,
        ]
        subprocess.run(
            [*arguments, *(word for item in options.set for word in ("--set", item))],
            check=True,
        )
    scores: dict[str, Any] = json.loads(file.read_text())
    return scores


def do_step(options: argparse.Namespace) -> None:
    name, split, what = options.step
    way = next(way for way in WAYS if way.name == name)
    blocks, run = (
        read(options.data, split),
        place(options.out, way.trained or way.name, split),
    )
    extra = {
        key: parse_value(value)
        for key, _, value in (item.partition("=") for item in options.set)
    }
    scores = (
        train(way, blocks, run, extra) if what == "train" else test(way, blocks, run)
    )
    scores["memory"] = (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )  # bytes, on Linux
    file = place(options.out, way.name, split, f".{what}.json")
    file.write_text(json.dumps(scores, indent=2) + "\n")


def baselines(options: argparse.Namespace, split: str) -> None:
    blocks = read(options.data, split)
    for name, method in (
        ("boosted trees", boosted_trees),
        ("majority class", majority),
    ):
        file = place(options.out, name, split, ".test.json")
        if not file.exists():
            begun = time.perf_counter()
            confusion = method(
                [blocks["training"], blocks["validation"]], [blocks["test"]], CLASSES
            )
            facts = {"train_seconds": time.perf_counter() - begun} | confusion.as_dict()
            file.write_text(json.dumps(facts, indent=2) + "\n")


def table(out: Path) -> str:
    """Return the finished rows as Markdown: both splits and their mean."""
    head = (
        "", "mean IoU", "each split", "nuclei", "precision", "recall", "training s",
        "memory MB", "prediction s", "memory MB",
    )  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name in [*(way.name for way in WAYS), "boosted trees", "majority class"]:
        files = [place(out, name, split, ".test.json") for split in SPLITS]
        if not all(file.exists() for file in files):
            continue
        tests = [json.loads(file.read_text()) for file in files]
        way = next((way for way in WAYS if way.name == name), None)
        trained = (
            [place(out, way.trained or name, s, ".train.json") for s in SPLITS]
            if way
            else []
        )
        trainings = [json.loads(file.read_text()) for file in trained]
        nuclei = [results["per_class"]["nuclei"] for results in tests]
        cells = [
            name,
            _number(np.mean([results["mean_iou"] for results in tests])),
            ", ".join(_number(results["mean_iou"]) for results in tests),
            *(
                _number(np.mean([row[key] or 0.0 for row in nuclei]))
                for key in ("iou", "precision", "recall")
            ),
            f"{np.mean([run['train_seconds'] for run in trainings or tests]):.0f}",
            f"{max(results['memory'] for results in trainings) / 1e6:.0f}"
            if trainings
            else "",
            f"{np.mean([results['test_seconds'] for results in tests]):.1f}"
            if trainings
            else "",
            f"{max(results['memory'] for results in tests) / 1e6:.0f}"
            if trainings
            else "",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _number(value: float) -> str:
    return f"{value:.3f}".lstrip("0")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--only",
        action="append",
        help="rows whose name is this; may be given several times",
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--table", action="store_true")
    parser.add_argument(
        "--step", nargs=3, metavar=("NAME", "SPLIT", "WHAT"), help=argparse.SUPPRESS
    )
    options = parser.parse_args()
    if options.step:
        do_step(options)
        return
    if not options.table:
        options.out.mkdir(parents=True, exist_ok=True)
        for split in SPLITS:
            baselines(options, split)
            for way in WAYS:
                if options.only and way.name not in options.only:
                    continue
                if not way.trained:
                    step(options, way, split, "train")
                step(options, way, split, "test")
    print(table(options.out))


if __name__ == "__main__":
    main()
