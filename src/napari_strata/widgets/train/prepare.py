"""From what the Train dock shows to what the worker is told.

`gather` runs in a thread: it writes the layers.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from napari.layers import Image as ImageLayer
from napari.layers import Labels as LabelsLayer

from napari_strata.core.errors import RunError
from napari_strata.core.files import LAYERS
from napari_strata.core.image import Image, LabelImage
from napari_strata.core.runs import RunFolder
from napari_strata.widgets.layers.convert import source_of_image, source_of_labels
from napari_strata.worker.protocol import Layer, Pairs, PlanJob, TrainJob

_WRITING = threading.Lock()
"""The plan and the start of a training may write the same layers at the same time."""


@dataclass(frozen=True, eq=False)
class LayerData:
    """An image layer and its labels, with the classes that the table says."""

    layer: ImageLayer
    image: Image
    labels_layer: LabelsLayer
    labels: LabelImage

    @property
    def name(self) -> str:
        return self.image.name

    def gather(self, run: Path) -> Pairs:
        """Paths that hold both; what is in no file goes to ``<run>/layers``."""
        folder = run / LAYERS
        folder.mkdir(parents=True, exist_ok=True)
        with _WRITING:
            image = source_of_image(self.layer, self.image, folder)
            labels = source_of_labels(self.labels, folder / "labels.tif")
        return Pairs(images=(image,), labels=(labels,))


@dataclass(frozen=True)
class FolderData:
    """Files or folders of images and labels, as the command line takes them."""

    images: str
    labels: str = ""
    axes: str = ""
    unlabelled: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        return Path(self.images).stem

    def gather(self, _run: Path) -> Pairs:
        """The paths as they stand."""
        labels = (Layer(path=self.labels),) if self.labels else None
        return Pairs(
            images=(Layer(path=self.images),), labels=labels, axes=self.axes or None
        )


@dataclass(frozen=True)
class TrainRequest:
    """Everything that the dock says about a training, at one moment."""

    data: LayerData | FolderData
    recipe: str
    overrides: dict[str, Any] = field(default_factory=dict)
    device: str = "auto"
    keep: bool = False

    def _words(self, run: Path) -> dict[str, Any]:
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

    def train_order(self, job: str, run: Path) -> TrainJob:
        """The training, with its layers written.

        Raises `StrataError` when they cannot be.
        """
        return TrainJob(job=job, out=str(run), keep=self.keep, **self._words(run))

    def plan_order(self, job: str, run: Path) -> PlanJob:
        """The question what that training would do."""
        return PlanJob(job=job, **self._words(run))


def order_of_run(run: Path, *, device: str) -> TrainJob:
    """The order that goes on with a run that is on disk, with the data that it was
    started with.

    Raises
    ------
    RunError
        when there is no run, or its data was never in a file.
    """
    try:
        record = RunFolder(run).read_json("data.json")
        pairs = [
            (pair["images"], pair["labels"], pair["axes"]) for pair in record["pairs"]
        ]
    except (RunError, KeyError) as error:
        raise RunError(
            f"{run}: found no run that can go on ({error}); choose a run folder."
        ) from None
    if missing := [
        str(path)
        for images, labels, _ in pairs
        for path in (images, labels)
        if not path
    ]:
        raise RunError(
            f"{run}: {len(missing)} of its images or labels were never in a file; start"
            " a new run."
        )
    validation = {part["pair"] for part in record["validation"]} - {
        part["pair"] for part in record["training"]
    }
    held = [pair for number, pair in enumerate(pairs) if number in validation]
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
        validation=_pairs(held) if held else None,
        recipe=str(RunFolder(run).recipe_path),
        device=device,
        resume=True,
    )


def class_colors(run: Path) -> tuple[str, ...]:
    """Return the colours of a run's classes; empty when they are unknown."""
    return tuple(RunFolder(run).classes().values())


def _pairs(rows: list[tuple[str, str, str]]) -> Pairs:
    return Pairs(
        images=tuple(Layer(path=images, axes=axes) for images, _, axes in rows),
        labels=tuple(Layer(path=labels) for _, labels, _ in rows),
    )
