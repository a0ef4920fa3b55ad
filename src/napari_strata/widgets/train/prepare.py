"""Requests for the worker from the state of the Train dock.

`gather` writes layers to files and runs in a thread.
"""

from __future__ import annotations

import csv
import os
import threading
from dataclasses import dataclass, field, replace
from io import StringIO
from pathlib import Path
from typing import Any

from napari.layers import Image as ImageLayer
from napari.layers import Labels as LabelsLayer

from napari_strata.core import files
from napari_strata.core.classes import ClassMap
from napari_strata.core.errors import LabelError, RunError
from napari_strata.core.files import LAYERS, PAIRS_FILE
from napari_strata.core.image import Image, LabelImage
from napari_strata.core.runs import RunFolder
from napari_strata.plugin import METADATA
from napari_strata.widgets.layers.convert import (
    labels_of,
    source_of_image,
    source_of_labels,
)
from napari_strata.widgets.layers.counts import count_values
from napari_strata.worker.protocol import Layer, Pairs, PlanJob, TrainJob

LABELS_FILE = "labels.tif"
"""Labels that a training reads, in the folder of its layers."""
_WRITING = threading.Lock()
"""Held while layers are written, because plan and training may write the same."""


@dataclass(frozen=True, eq=False)
class LayerData:
    """Image layer and its labels, with the classes of the table."""

    layer: ImageLayer
    image: Image
    labels_layer: LabelsLayer
    labels: LabelImage
    others: tuple[LayerData, ...] = ()
    """More images that are trained on, with their labels."""

    @property
    def name(self) -> str:
        return self.image.name

    def is_of(self, run: Path) -> bool:
        """Return True if the labels were opened from the layers of a run."""
        stored = self.labels_layer.metadata.get(METADATA) or {}
        path = stored.get("path") or self.labels_layer.source.path
        return bool(path) and Path(path).parent == run / LAYERS

    def current(self) -> LayerData:
        """Return the same layers with the pixels that their labels have now."""
        now = labels_of(self.labels_layer, self.image)
        return replace(
            self,
            labels=replace(now, classes=self.labels.classes),
            others=tuple(other.current() for other in self.others),
        )

    def gather(self, run: Path) -> Pairs:
        """Return files of the layers; layers without a file go to ``<run>/layers``.

        Several images are also listed in ``<run>/layers/pairs.csv``, for the command
        line.
        """
        folder = run / LAYERS
        with _WRITING:
            written = [self._write(folder)]
            for number, other in enumerate(self.others, 2):
                written.append(other._write(folder / f"image-{number}"))
            if self.others:
                _write_table(written, folder / PAIRS_FILE)
        images, labels = zip(*written, strict=True)
        return Pairs(images=images, labels=labels)

    def _write(self, folder: Path) -> tuple[Layer, Layer]:
        folder.mkdir(parents=True, exist_ok=True)
        image = source_of_image(self.layer, self.image, folder)
        return image, source_of_labels(self.labels, folder / LABELS_FILE)


@dataclass(frozen=True)
class FolderData:
    """Files or folders of images and labels, as on the command line."""

    images: str
    labels: str = ""
    axes: str = ""
    unlabelled: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        return Path(self.images).stem

    def gather(self, _run: Path) -> Pairs:
        """Return the paths without changes."""
        labels = (Layer(path=self.labels),) if self.labels else None
        return Pairs(
            images=(Layer(path=self.images),), labels=labels, axes=self.axes or None
        )


@dataclass(frozen=True)
class TrainRequest:
    """All settings of a training in the dock."""

    data: LayerData | FolderData
    recipe: str
    overrides: dict[str, Any] = field(default_factory=dict)
    device: str = "auto"
    keep: bool = False

    def _settings(self, run: Path) -> dict[str, Any]:
        pairs = self.data.gather(run)
        unlabelled = self.data.unlabelled if isinstance(self.data, FolderData) else ()
        return {
            "images": pairs.images,
            "labels": pairs.labels,
            "axes": pairs.axes,
            "recipe": self.recipe,
            "overrides": self.overrides,
            "unlabelled": unlabelled,
            "device": self.device,
        }

    def train_job(self, job: str, run: Path) -> TrainJob:
        """Write the layers and return the request to train.

        Raises `StrataError` if they cannot be written.
        """
        return TrainJob(job=job, out=str(run), keep=self.keep, **self._settings(run))

    def plan_job(self, job: str, run: Path) -> PlanJob:
        """Write the layers and return the request to plan the training."""
        return PlanJob(job=job, **self._settings(run))


def _write_table(pairs: list[tuple[Layer, Layer]], path: Path) -> None:
    """Write the paths of images and labels as a CSV."""
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "label"])
    for image, labels in pairs:
        writer.writerow([os.path.abspath(image.path), os.path.abspath(labels.path)])
    files.write_text(path, text.getvalue())


def write_painted(labels: LabelImage, folder: Path, classes: ClassMap | None) -> Path:
    """Write labels that were painted since a training began, where it reads them.

    Raises
    ------
    LabelError
        When a label value is no class of the training; nothing is written.
    """
    assert classes is not None
    if classes.rest is None:
        known = {*classes.values, *classes.unlabelled}
        if unknown := sorted(set(count_values(labels.data).total) - known):
            values = ", ".join(map(str, unknown[:8]))
            raise LabelError(
                f"label value {values} is painted, and is no class of this run. Stop"
                " and press Train to train with it; the model learns it from there."
            )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LABELS_FILE
    with _WRITING:
        source_of_labels(replace(labels, classes=classes), path)
    return path


def resume_job(run: Path, *, device: str) -> TrainJob:
    """Return the request to resume a run on disk with its own data.

    Raises
    ------
    RunError
        When the run does not exist, or its data are not in files.
    """
    try:
        record = RunFolder(run).read_json("data.json")
        pairs = [
            (pair["images"], pair["labels"], pair["axes"]) for pair in record["pairs"]
        ]
    except (RunError, KeyError) as error:
        raise RunError(
            f"{run}: found no run that can be resumed ({error}); choose a run folder."
        ) from None
    if missing := [
        str(path)
        for images, labels, _ in pairs
        for path in (images, labels)
        if not path
    ]:
        raise RunError(
            f"{run}: {len(missing)} of its images or labels are not in files; start a"
            " new run."
        )
    validation = {region["pair"] for region in record["validation"]} - {
        region["pair"] for region in record["training"]
    }
    validation_pairs = [
        pair for number, pair in enumerate(pairs) if number in validation
    ]
    training_pairs = [
        pair for number, pair in enumerate(pairs) if number not in validation
    ]
    return TrainJob(
        job="resume",
        out=str(run),
        images=tuple(
            Layer(path=images, axes=axes) for images, _, axes in training_pairs
        ),
        labels=tuple(Layer(path=labels) for _, labels, _ in training_pairs),
        validation=_pairs(validation_pairs) if validation_pairs else None,
        recipe=str(RunFolder(run).recipe_path),
        device=device,
        resume=True,
    )


def class_colors(run: Path) -> tuple[str, ...]:
    """Return the colours of the classes of a run; empty if they are unknown."""
    return tuple(RunFolder(run).classes().values())


def _pairs(rows: list[tuple[str, str, str]]) -> Pairs:
    return Pairs(
        images=tuple(Layer(path=images, axes=axes) for images, _, axes in rows),
        labels=tuple(Layer(path=labels) for _, labels, _ in rows),
    )
