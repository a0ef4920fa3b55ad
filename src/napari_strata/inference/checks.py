"""Whether an image suits a model, said before anything starts: what cannot be is an error, what is odd a warning."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from napari_strata.core.errors import ImageError, RunError
from napari_strata.core.image import Image
from napari_strata.core.spec import ModelSpec

Array = np.ndarray[Any, Any]

TOLERANCE = 1.2
"""Pixel sizes that differ by no more than this factor pass without a word."""


def check_image(
    specs: ModelSpec | Sequence[ModelSpec],
    image: Image,
    samples: Sequence[Array],
    *,
    ortho: bool = False,
) -> list[str]:
    """Warnings about predicting `image` with models of `specs`; `samples` are the image's own, see `Image.samples`.

    What is said of one model is not said again of the next. `ortho` is for three views of a volume.

    Raises
    ------
    ImageError
        when the number of channels differs from the models', the image does not hold real numbers, or is a single plane
        and a volume is needed.
    RunError
        when models cannot give three views.
    """
    group = [specs] if isinstance(specs, ModelSpec) else specs
    for spec in group:
        _check_kind(spec, image)
        if ortho:
            _check_views(spec, image)
    sizes, greys = (
        ([*_pixel_size(s, image)] for s in group),
        ([*_grey_values(s, image, samples)] for s in group),
    )
    return next(filter(None, sizes), []) + next(filter(None, greys), [])


def _check_kind(spec: ModelSpec, image: Image) -> None:
    if image.channels != spec.in_channels:
        raise ImageError(
            f"{image.name}: found {_channels(image.channels, image.channel_names)}; the model was trained on "
            f"{_channels(spec.in_channels, spec.channel_names)}. {_way_on(image.channels, spec.in_channels)}"
        )
    if image.dtype.kind not in "buif":
        raise ImageError(
            f"{image.name}: found dtype {image.dtype}; needed are integers or floats; convert the image."
        )

    if spec.depth is not None and "Z" not in image.axes:
        raise ImageError(
            f"{image.name}: found a single plane ({image.axes}), and the model sees volumes; give a stack with an axis "
            "Z (check --axes), or use a 2D model."
        )


def _check_views(spec: ModelSpec, image: Image) -> None:
    wrong = (
        "sees volumes as it is"
        if spec.depth
        else "has neighbours, which are slices along Z"
        if spec.neighbours
        else ""
    )
    wrong = wrong or ("resizes every plane to a square" if spec.resize else "")
    if wrong:
        raise RunError(
            f"found a model that {wrong}; needed for XZ and YZ planes (--ortho) is a plain 2D model."
        )
    if image.size("Z") < 2:
        raise ImageError(
            f"{image.name}: found a single plane ({image.axes}), which has no XZ and YZ planes; give a stack with an "
            "axis Z (check --axes), or leave --ortho out."
        )


def _channels(count: int, names: Sequence[str]) -> str:
    shown = f" ({', '.join(names)})" if names else " (RGB?)" if count == 3 else ""
    return f"{count} channel{'' if count == 1 else 's'}{shown}"


def _way_on(found: int, needed: int) -> str:
    if (found, needed) == (4, 3):
        return "If the fourth is transparency, save the image without it."
    if found > needed:
        return f"Save an image of {needed} channel{'' if needed == 1 else 's'} alone, or train a model on such images."
    return "Check the axes (a channel axis may have been taken for planes), or train a model on such images."


def _pixel_size(spec: ModelSpec, image: Image) -> Iterator[str]:
    """A warning when structures appear larger or smaller than in training; unknown sizes cannot be compared."""
    if image.pixel_unit != spec.pixel_unit or image.pixel_unit == "pixel":
        return
    for letter in "XYZ" if spec.depth else "XY":
        found, known = (
            image.pixel_size.get(letter, 0.0),
            spec.pixel_size.get(letter, 0.0),
        )
        factor = max(found / known, known / found) if min(found, known) > 0 else 1.0
        if factor > TOLERANCE:
            along = " along Z" if letter == "Z" else ""
            look = f"{factor:.2g} times {'larger' if found < known else 'smaller'}"
            yield (
                f"{image.name}: found pixel size {found:g} {image.pixel_unit}{along}; the model was trained at "
                f"{known:g}: structures look {look} to it. Expect worse labels, or rescale the image first."
            )
            return


def _grey_values(
    spec: ModelSpec, image: Image, samples: Sequence[Array]
) -> Iterator[str]:
    """A warning when grey values cannot mean what they meant in training; not where each image has its own scale."""
    kind = spec.normalization.kind
    if kind == "relative":
        return
    if str(image.dtype) != spec.dtype:
        yield (
            f"{image.name}: found {image.dtype}; the model was trained on {spec.dtype} and takes grey values as they "
            f"are ({kind}). Convert the image the way the training images were made."
        )
    low, high = (
        np.array(spec.normalization.scale.low),
        np.array(spec.normalization.scale.high),
    )
    values = np.concatenate(samples, axis=1)
    values = values[:, :: max(1, values.shape[1] // 2**19)].astype(
        np.float64
    )  # enough to tell, and quick
    values = values[:, np.isfinite(values).all(axis=0)]
    if kind != "physical" or not values.size:
        return
    beyond = ((values < low[:, None]) | (values > high[:, None])).mean()
    bottom, top = np.percentile(values, (5, 95), axis=1)
    # `low` to `high` is three times the training images' range.
    flat = ((top - bottom) < 0.05 * (high - low) / 3).all()
    if beyond > 0.1 or flat:
        yield (
            f"{image.name}: found grey values of {bottom.min():.4g} to {top.max():.4g}; those of the training images "
            f"lay between about {(2 * low + high).min() / 3:.4g} and {(low + 2 * high).max() / 3:.4g}. Expect wrong "
            "labels; check that the image is calibrated as they were."
        )
