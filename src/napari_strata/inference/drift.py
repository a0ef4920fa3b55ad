"""Comparison of an image with the images that models were trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from napari_strata.core.drift import Drift, PlaneDrift, measure_appearance
from napari_strata.core.image import Image, spread_slices
from napari_strata.data.neighbours import own_scale
from napari_strata.models.model import Model

Array = np.ndarray[Any, Any]

PLANES = 8
"""Planes that are compared, at most, which bounds the time."""


def compare_image(model: Model, image: Image, samples: Sequence[Array]) -> Drift | None:
    """Compare planes of an image with the reference of a model.

    Of a large image, planes and blocks that are spread evenly are read.

    Parameters
    ----------
    image
        Image as it was read, without neighbours.
    samples
        Grey values that the scale of the image is measured on, those of the image as
        the model sees it; see `Image.samples`.

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
        blocks = [
            image.read({**regions[number], "Y": y, "X": x})
            for y in spread_slices(image.size("Y"))
            for x in spread_slices(image.size("X"))
        ]
        appearance = measure_appearance(
            [block.reshape(len(block), *block.shape[-2:]) for block in blocks],
            scale,
            reference.center,
            reference.spread,
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
    return Drift(image.name, tuple(planes), spec.normalization.kind)
