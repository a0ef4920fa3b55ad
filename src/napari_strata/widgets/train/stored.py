"""Models that earlier trainings on an image have left, from which another can start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from napari_strata.core.errors import StrataError
from napari_strata.core.events import EpochEnd
from napari_strata.core.image import Image
from napari_strata.core.recipe import Recipe
from napari_strata.core.run_list import list_runs
from napari_strata.core.runs import RunFolder


@dataclass(frozen=True)
class StoredModel:
    """Model of a run.

    Parameters
    ----------
    run
        Folder of the run.
    epoch
        Epoch of the model; 0 if the run was stopped in its first epoch.
    recipe
        Recipe of the run.
    classes
        Names of the classes.
    """

    run: Path
    epoch: int
    recipe: Recipe
    classes: tuple[str, ...]

    def describe(self) -> str:
        """Describe the model: ``2026-11-30-sandstone, epoch 12``."""
        epoch = f", epoch {self.epoch}" if self.epoch else ""
        return f"{self.run.name}{epoch}"


def find_models(runs: Path, image: Image) -> list[StoredModel]:
    """Find the models that were trained on an image, the newest first; for a thread."""
    models = []
    for summary in list_runs(runs):
        with suppress(StrataError, OSError, ValueError, KeyError, TypeError):
            run = RunFolder(summary.path)
            record = run.data()
            is_of_image = any(_is_of(pair, image) for pair in record.get("pairs", ()))
            if not summary.has_model or not is_of_image:
                continue
            ends = run.history().of_type(EpochEnd)
            best = [end.epoch for end in ends if end.best_iou]
            last = [end.epoch for end in ends][-1:]
            epoch = (best or last or [0])[-1]
            names = tuple(str(row["name"]) for row in record["classes"])
            models.append(StoredModel(summary.path, epoch, run.recipe, names))
    return models


def choose_start(
    models: Sequence[StoredModel], recipe: Recipe, classes: Sequence[str]
) -> StoredModel | None:
    """Choose the newest model from which a training can continue.

    It must have the same network, with the same neighbouring planes, and no class that
    the training lacks. None if there is none, if the recipe names a model itself, or if
    nothing is learnt step by step.
    """
    if recipe.network.is_fitted or recipe.training.start is not None:
        return None
    for model in models:
        if (
            model.recipe.network == recipe.network
            and model.recipe.patches.neighbours == recipe.patches.neighbours
            and set(model.classes) <= set(classes)
        ):
            return model
    return None


def _is_of(pair: Mapping[str, Any], image: Image) -> bool:
    """Return True if an entry of ``data.json`` describes this image."""
    shape = dict(zip(pair["axes"], pair["shape"], strict=True))
    sizes = {axis: length for axis, length in shape.items() if axis != "C"}
    own = dict(zip(image.label_axes, image.label_shape, strict=True))
    return (pair["name"], pair["dtype"]) == (
        image.name,
        str(image.dtype),
    ) and sizes == own
