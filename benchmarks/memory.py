"""Memory of a prediction, which does not depend on the count of planes.

    python benchmarks/memory.py [NAME]... [--json FILE]
    python benchmarks/memory.py --huge FOLDER [--gigabytes 20] [--json FILE]

The first predicts stacks of 64 and of 512 planes of 1024 x 1024 from plain TIFF
(memory-mapped), compressed tiled TIFF and OME-Zarr to TIFF and OME-Zarr, and tells how
much anonymous memory each needs at most beyond what the process had when the network
was ready. The second makes a volume as OME-Zarr, starts the command line on it, kills
it with SIGKILL when half of the planes are done, starts it again, and compares every
plane with what its contents must give.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from contest import Facts, arguments, contender, machine, memory, run, table

import napari_strata as ns
from napari_strata.core.classes import ClassMap
from napari_strata.core.events import RegionEnd
from napari_strata.core.image import AnnotatedImage
from napari_strata.core.options import PredictOptions
from napari_strata.inference.build import build_ensemble_predictor, build_predictor
from napari_strata.io import read_image, write_image
from napari_strata.io.lazy import LazyArray
from napari_strata.io.samples import sandstone

SIDE = 1024
PATTERNS = 8


class Patterns(LazyArray):
    """Stack that is generated when it is read: plane z shows pattern z modulo 8."""

    def __init__(self, planes: int, side: int) -> None:
        super().__init__((planes, side, side), np.uint8)
        rng = np.random.default_rng(0)
        coarse = rng.integers(0, 4, (PATTERNS, side // 64, side // 64)) * 60 + 20
        self.patterns = np.repeat(np.repeat(coarse, 64, 1), 64, 2).astype(np.uint8)

    def _fetch(self, region: tuple[slice, ...]) -> Any:
        planes = np.arange(*region[0].indices(self.shape[0])) % PATTERNS
        return self.patterns[planes][:, region[1], region[2]]


def small_model(folder: Path) -> Path:
    """A trained network of two levels."""
    run_folder = folder / "small"
    if not (run_folder / "model.safetensors").exists():
        overrides = {
            "network.widths": (4, 8),
            "patches.size": 64,
            "patches.per_epoch": 64,
            "training.epochs": 3,
            "normalization.grey_values": "dtype",
        }
        pair = sandstone((4, 128, 128), seed=0)
        grey = (np.asarray(pair.image.data) // 256).astype(np.uint8)
        image = ns.Image(grey, "ZYX")
        classes = pair.labels.classes or ClassMap.from_values(range(4))
        ns.train(
            "unet-ct",
            AnnotatedImage(image, pair.labels, "rock"),
            out=run_folder,
            classes=classes,
            overrides=overrides,
        )
    return run_folder


def stack(folder: Path, kind: str, planes: int) -> Path:
    """A stack on disk, written plane by plane."""
    suffix = {
        "plain TIFF": "plain.tif",
        "tiled TIFF": "tiled.tif",
        "OME-Zarr": "stack.zarr",
    }[kind]
    path = folder / f"{planes}_{suffix}"
    if path.exists():
        return path
    image = ns.Image(Patterns(planes, SIDE), "ZYX", name="patterns")
    if kind != "plain TIFF":
        return write_image(path, image)
    mapped = tifffile.memmap(
        path, shape=(planes, SIDE, SIDE), dtype=np.uint8, metadata={"axes": "ZYX"}
    )
    for z in range(planes):
        mapped[z] = image.data[z]
    mapped.flush()
    return path


def place() -> Path:
    folder = Path(tempfile.gettempdir()) / "napari-strata-benchmark"
    folder.mkdir(exist_ok=True)
    return folder


def one(kind: str, planes: int, suffix: str) -> Facts:
    """Predict one stack, watching the anonymous memory."""
    folder = place()
    model = ns.Model.load(small_model(folder))
    path, out = stack(folder, kind, planes), folder / f"out{suffix}"
    options = PredictOptions(overwrite=True)
    build_predictor(model, options).predict(
        np.zeros((1, 64, 64), np.uint8), model.spec.normalization.scale
    )
    before = most = memory()["anonymous"]
    begun = time.perf_counter()
    for _ in ns.iter_predict(model, read_image(path), out=out, options=options):
        most = max(most, memory()["anonymous"])
    seconds = time.perf_counter() - begun
    with suppress(OSError):
        shutil.rmtree(out) if out.is_dir() else out.unlink()
    return {"before": before, "most": most, "beyond": most - before, "seconds": seconds}


def _register() -> None:
    for kind, suffix in (
        ("plain TIFF", ".tif"),
        ("tiled TIFF", ".zarr"),
        ("OME-Zarr", ".zarr"),
    ):
        for planes in (64, 512):
            name = f"{kind} to {suffix}, Z = {planes}"
            contender(name)(
                lambda _, kind=kind, planes=planes, suffix=suffix: one(
                    kind, planes, suffix
                )
            )


_register()


def huge(options: argparse.Namespace) -> Facts:
    """A volume larger than memory, by the command line, killed once."""
    folder, side = options.huge, 4096
    folder.mkdir(parents=True, exist_ok=True)
    planes = math.ceil(options.gigabytes * 1e9 / side**2)
    source, out, model = (
        folder / "volume.zarr",
        folder / "labels.zarr",
        small_model(folder),
    )
    volume = Patterns(planes, side)
    if not source.exists():
        print(f"writing {planes} planes of {side} x {side} ...", flush=True)
        write_image(source, ns.Image(volume, "ZYX", name="volume"))
    command = [sys.executable, "-c", "from napari_strata.cli import main; main()"]
    command += ["predict", str(model), str(source), "--out", str(out), "--json"]
    print("predicting, to be killed half-way ...", flush=True)
    begun = time.perf_counter()
    first = _watch(command, kill_after=planes // 2)
    print("going on ...", flush=True)
    second = _watch(command, kill_after=None)
    seconds = time.perf_counter() - begun
    ensemble = build_ensemble_predictor(ns.load_models(model), PredictOptions())
    loaded = ns.Model.load(model)
    spec = loaded.spec
    scale = spec.normalization.scale_for(
        read_image(source).samples(), np.dtype(np.uint8)
    )
    expected = [
        spec.classes.decode(ensemble.predict(p[None], [scale])[0])
        for p in volume.patterns
    ]
    labels = ns.read_labels(out)
    same = sum(
        bool(np.array_equal(labels.data[z], expected[z % PATTERNS]))
        for z in range(planes)
    )
    return {
        "gigabytes": planes * side**2 / 1e9,
        "planes": planes,
        "killed after": first["regions"],
        "taken up": second["found"],
        "peak anonymous MB": max(first["most"], second["most"]),
        "seconds": seconds,
        "planes as they must be": same,
        "bytes written": sum(f.stat().st_size for f in out.rglob("*") if f.is_file()),
    }


def _watch(command: list[str], *, kill_after: int | None) -> Facts:
    """Run a prediction.

    Return peak memory in MB, planes done, and planes done before.
    """
    facts: Facts = {"most": 0.0, "regions": 0, "found": 0}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            event = json.loads(line)
            if event["event"] == "PredictionStarted":
                facts["found"] = event["done"]
            if event["event"] == RegionEnd.__name__:
                facts["regions"] += 1
            with (
                suppress(OSError, StopIteration),
                open(f"/proc/{process.pid}/status", encoding="utf-8") as file,
            ):
                held = (
                    next(
                        int(row.split()[1]) for row in file if row.startswith("RssAnon")
                    )
                    / 1024
                )
                facts["most"] = max(facts["most"], held)
            if kill_after and facts["regions"] >= kill_after:
                os.kill(process.pid, signal.SIGKILL)
                break
    if kill_after is None and process.returncode:
        raise SystemExit(f"the prediction ended with status {process.returncode}")
    return facts


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument(
        "--huge",
        type=Path,
        metavar="FOLDER",
        help="the large volume instead, in this folder",
    )
    parser.add_argument("--gigabytes", type=float, default=20)
    options = parser.parse_args()
    if options.huge:
        facts = huge(options)
        print(table(list(facts), [list(facts.values())]))
        if options.json:
            options.json.write_text(
                json.dumps({"machine": machine(), "huge": facts}, indent=2) + "\n"
            )
        return
    results = run(options)
    if results:
        rows = [
            [name, f"{f['before']:.0f}", f"{f['beyond']:.0f}", f["seconds"]]
            for name, f in results.items()
        ]
        print(table(["", "MB before", "MB more at most", "seconds"], rows))


if __name__ == "__main__":
    main()
