"""Live jobs: the mask that a viewer shows while somebody paints, and where to paint."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_strata.core import axes
from napari_strata.core.image import Image
from napari_strata.core.network_sections import Pixels
from napari_strata.core.recipe import Recipe
from napari_strata.core.recipes import load_recipe
from napari_strata.data.neighbours import with_neighbours
from napari_strata.inference.live import LiveSegmentation
from napari_strata.models.device import choose_device
from napari_strata.worker.npy import open_array
from napari_strata.worker.protocol import (
    ChooseLevelsJob,
    ChooseLevelsResult,
    LiveJob,
    MaskPart,
    NextWindowJob,
    NextWindowResult,
    RequestError,
    SegmentJob,
    SegmentResult,
    TargetOpened,
)
from napari_strata.worker.sources import open_image, open_labels

if TYPE_CHECKING:
    from napari_strata.worker.jobs import Events


@dataclass
class _Kept:
    """The live segmentation of the job before, and the labels that it has seen."""

    key: tuple[object, ...]
    live: LiveSegmentation
    versions: dict[tuple[tuple[str, int], ...], int] = field(default_factory=dict)


_kept: list[_Kept] = []
"""One entry at most. A viewer shows one mask at a time."""


def run_segment(job: SegmentJob) -> Events:
    """Fit a pixel classifier on the strokes, and segment the plane in view.

    What earlier jobs computed for the same image and classes is used again.
    """
    started = perf_counter()
    image = open_image(job.image, axes=job.axes)
    live = _with_labels(job, image)
    classes = live.spec.classes
    visible = None
    if job.visible is not None:
        visible = tuple(slice(first, stop) for first, stop in job.visible)
    parts = live.iter_mask(job.plane, visible, threads=job.threads or None)
    first_part = next(parts)  # or an error, before there is a layer
    mask = open_array(Path(job.out), image.label_shape, classes.dtype)
    yield TargetOpened(
        path=job.out,
        axes=image.label_axes,
        shape=image.label_shape,
        dtype=str(classes.dtype),
        classes=tuple(classes.table()),
    )
    region: Any = image.region_index(job.plane)
    # A view: what is written to it is written to the file.
    plane_mask = axes.to_canonical(np.asarray(mask)[region], image.label_axes)
    plane_mask = plane_mask.reshape(image.size("Y"), image.size("X"))
    for part in chain([first_part], parts):
        plane_mask[part.box] = part.labels
        rows, columns = part.box
        yield MaskPart(
            stage=part.stage,
            rows=(rows.start, rows.stop),
            columns=(columns.start, columns.stop),
        )
    return SegmentResult(
        mask=job.out,
        strokes=live.stroke_count,
        labelled_pixels=live.pixel_count,
        levels=live.section.resolved_levels,
        seconds=perf_counter() - started,
    )


def run_next_window(job: NextWindowJob) -> Events:
    """Find the window where the mask of the planes looked at is least certain."""
    yield from ()
    live = _with_labels(job, open_image(job.image, axes=job.axes))
    window = live.find_window(
        job.plane,
        side=job.side,
        skipped=[
            (each.index, (slice(*each.rows), slice(*each.columns)))
            for each in job.skipped
        ],
        threads=job.threads or None,
    )
    rows, columns = window.box
    return NextWindowResult(
        index=window.index,
        rows=(rows.start, rows.stop),
        columns=(columns.start, columns.stop),
        margin=window.margin,
        labels=tuple(map(tuple, window.labels.tolist())),
        changed=window.changed,
    )


def run_choose_levels(job: ChooseLevelsJob) -> Events:
    """Choose the octave levels of the features by held-out strokes."""
    yield from ()
    live = _with_labels(job, open_image(job.image, axes=job.axes))
    levels, reason = live.choose_levels()
    return ChooseLevelsResult(best_levels=levels, reason=reason)


def _with_labels(job: LiveJob, image: Image) -> LiveSegmentation:
    """Return the live segmentation of a job, with the labels that have changed."""
    labels = open_labels(job.labels.model_copy(update={"axes": image.label_axes}))
    kept = _open(job, image)
    live = kept.live
    named = set()
    for plane in job.planes:
        key = tuple(sorted(plane.index.items()))
        named.add(key)
        if kept.versions.get(key) != plane.version:
            live.set_labels(plane.index, labels.read(plane.index)[0])
            kept.versions[key] = plane.version
    for key in set(kept.versions) - named:
        live.forget_labels(dict(key))
        del kept.versions[key]
    return live


def _open(job: LiveJob, image: Image) -> _Kept:
    """Return the live segmentation of the job before if it is of the same image."""
    key = (job.image, job.axes, job.classes, str(job.recipe), str(job.overrides))
    if _kept and _kept[0].key == key:
        return _kept[0]
    _kept.clear()  # free its memory first
    recipe = load_recipe(
        job.recipe if isinstance(job.recipe, str) else Recipe.parse(job.recipe)
    ).with_overrides(job.overrides)
    if not isinstance(recipe.network, Pixels):
        raise RequestError(
            f"job {job.job!r}: found a recipe of the kind {recipe.network.kind!r};"
            " needed is one of the kind 'pixels', such as 'instant'.",
            job.job,
        )
    image = with_neighbours(image, recipe.patches.neighbours)
    device = choose_device(job.device)
    live = LiveSegmentation(image, job.classes, recipe, device=device)
    _kept.append(_Kept(key, live))
    return _kept[0]
