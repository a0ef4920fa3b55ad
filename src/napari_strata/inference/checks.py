"""Check whether an image suits models, before a prediction starts.

What is impossible is an error; what is unusual is said in words.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from napari_strata.core.drift import Drift, PlaneDrift, measure_appearance
from napari_strata.core.errors import ImageError, RunError
from napari_strata.core.image import Image, spread_slices
from napari_strata.core.normalization import stored_dtype
from napari_strata.core.spec import ModelSpec
from napari_strata.data.neighbours import own_channels, own_scale
from napari_strata.models.model import Model

Array = np.ndarray[Any, Any]

TOLERANCE = 1.2
"""Pixel sizes that differ by no more than this factor give no warning."""


PLANES = 8
"""Planes of an image that are compared with the training images, at most."""


def check_image(
    models: Sequence[Model],
    image: Image,
    samples: Sequence[Array],
    *,
    ortho: bool = False,
) -> Drift:
    """Compare an image with those that models were trained on.

    Of several models, the one to which the image is the most unusual counts.

    Parameters
    ----------
    image
        Image as the models see it, with neighbours as channels.
    samples
        Samples of the image, see `Image.samples`.
    ortho
        True for three views of a volume.

    Raises
    ------
    ImageError
        when the number of channels differs from the models', the image does not hold
        real numbers, or is a single plane and a volume is needed.
    RunError
        when models cannot give three views.
    """
    for model in models:
        _check_kind(model.spec, image)
        if ortho:
            _check_views(model.spec, image)
    pixel_sizes: list[str] = []
    dtypes: list[str] = []
    ranges: list[str] = []
    drifts: list[Drift] = []
    for model in models:
        spec = model.spec
        pixel_sizes = pixel_sizes or list(_compare_pixel_size(spec, image))
        dtypes = dtypes or list(_compare_dtype(spec, image))
        drift = compare_image(model, image, samples)
        if drift is not None:
            drifts.append(drift)
        else:
            ranges = ranges or list(_compare_range(spec, image, samples))
    notes, doubts = (*pixel_sizes, *dtypes), tuple(ranges)
    if not drifts:
        return Drift(image.name, notes=notes, doubts=doubts, is_known=False)
    worst = max(drifts, key=lambda drift: drift.excess)
    return replace(worst, notes=notes, doubts=doubts)


def compare_image(model: Model, image: Image, samples: Sequence[Array]) -> Drift | None:
    """Compare planes of an image with the reference of a model.

    Of a large image, planes and blocks that are spread evenly are read.

    Returns
    -------
    None when the model has no reference.
    """
    reference, spec = model.drift, model.spec
    if reference is None:
        return None
    values = np.concatenate(samples, axis=1)
    scale = spec.normalization.scale_for(values, image.dtype)
    scale = own_scale(scale, spec.neighbours)
    regions = list(image.planes())
    positions = np.linspace(0, len(regions) - 1, min(PLANES, len(regions)))
    planes = []
    for number in sorted({round(position) for position in positions}):
        blocks = []
        for y in spread_slices(image.size("Y")):
            for x in spread_slices(image.size("X")):
                block = image.read({**regions[number], "Y": y, "X": x})
                block = block.reshape(len(block), *block.shape[-2:])
                blocks.append(own_channels(block, spec.neighbours))
        appearance = measure_appearance(
            blocks, scale, reference.center, reference.spread
        )
        if appearance is None:
            continue
        shares, changes = reference.compare(appearance)
        share_limit, detail_limit, ask_limit = reference.limits(appearance.pixels)
        planes.append(
            PlaneDrift(
                index={axis: int(str(i)) for axis, i in regions[number].items()},
                unexplained=float(shares.max()),
                detail=float(changes[np.abs(changes).argmax()]),
                share_limit=share_limit,
                detail_limit=detail_limit,
                ask_limit=ask_limit,
            )
        )
    return Drift(image.name, tuple(planes), kind=spec.normalization.kind)


def _check_kind(spec: ModelSpec, image: Image) -> None:
    if image.channels != spec.in_channels:
        image_channels = _describe_channels(image.channels, image.channel_names)
        model_channels = _describe_channels(spec.in_channels, spec.channel_names)
        raise ImageError(
            f"{image.name}: found {image_channels}; the model was trained on "
            f"{model_channels}. {_suggest_channels(image.channels, spec.in_channels)}"
        )
    if image.dtype.kind not in "buif":
        raise ImageError(
            f"{image.name}: found dtype {image.dtype}; needed are integers or floats; "
            "convert the image."
        )
    if spec.depth is not None and "Z" not in image.axes:
        raise ImageError(
            f"{image.name}: found a single plane ({image.axes}), and the model needs "
            "volumes; give a stack with an axis Z (check --axes), or use a 2D model."
        )


def _check_views(spec: ModelSpec, image: Image) -> None:
    """Raise an error when a model cannot predict three views of the image."""
    obstacle = ""
    if spec.depth:
        obstacle = "needs volumes"
    elif spec.neighbours:
        obstacle = "has neighbours, which are slices along Z"
    elif spec.resize:
        obstacle = "resizes every plane to a square"
    if obstacle:
        raise RunError(
            f"found a model that {obstacle}; needed for XZ and YZ planes (--ortho) is "
            "a plain 2D model."
        )
    if image.size("Z") < 2:
        raise ImageError(
            f"{image.name}: found a single plane ({image.axes}), which has no XZ and "
            "YZ planes; give a stack with an axis Z (check --axes), or leave --ortho "
            "out."
        )


def _describe_channels(count: int, names: Sequence[str]) -> str:
    """Channels as ``2 channels (red, green)``."""
    text = "1 channel" if count == 1 else f"{count} channels"
    if names:
        return f"{text} ({', '.join(names)})"
    if count == 3:
        return f"{text} (RGB?)"
    return text


def _suggest_channels(image_channels: int, model_channels: int) -> str:
    """Say what to do about a wrong number of channels."""
    if (image_channels, model_channels) == (4, 3):
        return "If the fourth is transparency, save the image without it."
    if image_channels > model_channels:
        noun = "channel" if model_channels == 1 else "channels"
        return (
            f"Save an image of {model_channels} {noun} alone, or train a model on such "
            "images."
        )
    return (
        "Check the axes (a channel axis may have been taken for planes), or train a "
        "model on such images."
    )


def _compare_pixel_size(spec: ModelSpec, image: Image) -> Iterator[str]:
    """Warn when structures appear larger or smaller than in training.

    Unknown sizes cannot be compared.
    """
    if image.pixel_unit != spec.pixel_unit or image.pixel_unit == "pixel":
        return
    for axis in "XYZ" if spec.depth else "XY":
        image_size = image.pixel_size.get(axis, 0.0)
        model_size = spec.pixel_size.get(axis, 0.0)
        if min(image_size, model_size) <= 0:
            continue
        factor = max(image_size / model_size, model_size / image_size)
        if factor <= TOLERANCE:
            continue
        along = " along Z" if axis == "Z" else ""
        comparison = "larger" if image_size < model_size else "smaller"
        yield (
            f"{image.name}: found pixel size {image_size:g} {image.pixel_unit}{along}; "
            f"the model was trained at {model_size:g}: structures appear {factor:.2g} "
            f"times {comparison} than in training. Expect worse labels, or rescale the "
            "image first."
        )
        return


def _compare_dtype(spec: ModelSpec, image: Image) -> Iterator[str]:
    """Warn of another dtype, unless each image is scaled by its own values."""
    kind = spec.normalization.kind
    dtype = str(stored_dtype(image.dtype))
    if kind != "relative" and dtype != spec.dtype:
        yield (
            f"{image.name}: found {dtype}; the model was trained on {spec.dtype} "
            f"and takes grey values as they are ({kind}). Convert the image the way "
            "the training images were made."
        )


def _compare_range(
    spec: ModelSpec, image: Image, samples: Sequence[Array]
) -> Iterator[str]:
    """Warn of grey values far from those of training.

    For models of earlier versions, which have no reference of their training images.
    """
    if spec.normalization.kind != "physical":
        return
    values = np.concatenate(samples, axis=1)
    # Half a million pixels are enough, and quick.
    step = max(1, values.shape[1] // 2**19)
    values = values[:, ::step].astype(np.float64)
    values = values[:, np.isfinite(values).all(axis=0)]
    if not values.size:
        return
    low = np.array(spec.normalization.scale.low)
    high = np.array(spec.normalization.scale.high)
    outside = ((values < low[:, None]) | (values > high[:, None])).mean()
    bottom, top = np.percentile(values, (5, 95), axis=1)
    # `low` to `high` is three times the range of the training images.
    flat = ((top - bottom) < 0.05 * (high - low) / 3).all()
    if outside > 0.1 or flat:
        training_low = (2 * low + high).min() / 3
        training_high = (low + 2 * high).max() / 3
        yield (
            f"{image.name}: found grey values of {bottom.min():.4g} to "
            f"{top.max():.4g}; those of the training images lay between about "
            f"{training_low:.4g} and {training_high:.4g}. Expect wrong labels; check "
            "that the image is calibrated as they were."
        )
