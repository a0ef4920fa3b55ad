"""Tiny trained models for tests of the docks, trained in another process, because the viewer does not load torch."""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from shutil import copytree, rmtree
from tempfile import mkdtemp

import numpy as np
import pytest

from napari_strata.core.classes import ClassMap
from napari_strata.core.image import Image, LabelImage

CLASSES = ClassMap(
    names=("grain", "pore"), values=(1, 2), colors=("#ddcc77", "#4477aa")
)
"""Classes of the models: pores are dark, grains are bright."""

_SCRIPT = """
import sys

import numpy as np

import napari_strata as ns

path, out = sys.argv[1:]
stored = np.load(path)
image = ns.Image(stored["image"], str(stored["axes"]), scale=tuple(stored["scale"]), units=tuple(stored["units"]))
classes = ns.ClassMap(names=("grain", "pore"), values=(1, 2), colors=("#ddcc77", "#4477aa"))
labels = image.labels_like(stored["labels"], classes=classes)
recipe = ns.Recipe.parse({
    "name": "tiny",
    "network": {"kind": "unet", "widths": [4, 8]},
    "patches": {"size": 32, "per_epoch": 64},
    "normalization": {"grey_values": "physical"},
    "training": {"epochs": 3, "batch_size": 8, "learning_rate": 0.01, "averaging": None, "precision": "fp32"},
})
ns.train(recipe, ns.AnnotatedImage(image, labels), out=out, device="cpu")
"""


def rock(
    shape: tuple[int, ...] = (4, 96, 96), *, channels: int = 1, seed: int = 0
) -> tuple[Image, LabelImage]:
    """A stack of 2.1 micrometer pixels, uint16, axes ZYX (CZYX with `channels`), and its exact labels."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(seed)
    pore = np.stack(
        [gaussian_filter(rng.normal(size=shape[-2:]), 4) > 0 for _ in range(shape[0])]
    )
    grey = np.where(pore, 8000, 24000) + rng.normal(0, 900, (channels, *shape))
    data, letters = grey.astype(np.uint16), "CZYX"
    if channels == 1:
        data, letters = data[0], "ZYX"
    units = tuple("pixel" if a == "C" else "micrometer" for a in letters)
    scale = tuple(1.0 if a == "C" else 2.1 for a in letters)
    image = Image(data, letters, scale=scale, units=units, name="rock")
    return image, image.labels_like(
        np.where(pore, 2, 1).astype(np.uint8), classes=CLASSES
    )


def make_run(folder: Path, *, channels: int = 1) -> Path:
    """Create a run folder with a model of `CLASSES` for `rock`, which is trained once in a test session."""
    made = _trained(channels)
    return Path(copytree(made, folder / f"2026-11-21-rock-{channels}"))


@cache
def _trained(channels: int) -> Path:
    folder = Path(mkdtemp(prefix="strata-tiny-run-"))
    atexit.register(rmtree, folder, ignore_errors=True)
    image, labels = rock(channels=channels)
    stored = folder / "stack.npz"
    known = {"axes": image.axes, "scale": image.scale, "units": image.units}
    np.savez(stored, image=image.data, labels=labels.data, **known)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", _SCRIPT, str(stored), str(folder / "run")]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return folder / "run"


@pytest.fixture
def tiny_run(tmp_path: Path) -> Path:
    """A copy of a tiny run with one channel; see `make_run`."""
    return make_run(tmp_path / "runs")
