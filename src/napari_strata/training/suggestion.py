"""Suggestion of a recipe that suits the data better than the chosen one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from napari_strata.core.image import AnnotatedImage, Image
from napari_strata.core.recipe import Recipe
from napari_strata.data.regions import LabelledRegion
from napari_strata.data.strokes import are_strokes

CT_PLANES = 8
"""Planes that an image must have to be taken for a CT volume."""
VOLUME_PLANES = 4
"""Labelled planes, one on the other, from which a network of volumes can learn."""


@dataclass(frozen=True)
class Suggestion:
    """Name of a recipe, and the reason for it in a sentence."""

    recipe: str
    text: str


def suggest_recipe(
    recipe: Recipe, regions: Sequence[LabelledRegion], pairs: Sequence[AnnotatedImage]
) -> Suggestion | None:
    """Suggest another recipe; None where the chosen one is as good as any.

    Parameters
    ----------
    recipe
        the chosen recipe.
    regions
        all labelled regions, those for validation too.
    pairs
        the images that they are in.
    """
    if are_strokes(regions):
        if recipe.network.kind == "pixels":
            return None
        return Suggestion(
            "instant",
            "From strokes alone, the recipe 'instant' segmented better in our"
            " measurements, and needs seconds.",
        )
    if recipe.name != "default":
        return None
    if all(_may_be_ct(pair.image) for pair in pairs):
        return Suggestion(
            "unet-ct",
            "If this is a CT, where grey values tell the material, 'unet-ct' suits it"
            " better.",
        )
    if _adjacent_planes(regions) >= VOLUME_PLANES:
        return Suggestion(
            "unet3d",
            "For structures that one plane does not show, 'unet3d' sees the planes"
            " above and below.",
        )
    return None


def _adjacent_planes(regions: Sequence[LabelledRegion]) -> int:
    """Return the largest number of labelled planes that lie one on the other.

    Planes between those for training and for validation are not used.
    """
    stacks: dict[tuple[int, Any], set[int]] = {}
    for region in regions:
        if isinstance(plane := region.index.get("Z"), int):
            stack = (id(region.pair), region.index.get("T"))
            stacks.setdefault(stack, set()).add(plane)
    longest = 0
    for planes in stacks.values():
        length = 0
        for plane in range(min(planes), max(planes) + 1):
            length = length + 1 if plane in planes else 0
            longest = max(longest, length)
    return longest


def _may_be_ct(image: Image) -> bool:
    """Return True for a volume of one channel whose voxels are known to be cubes."""
    sizes = dict(zip(image.axes, image.shape, strict=True))
    if sizes.get("Z", 1) < CT_PLANES or sizes.get("C", 1) > 1 or "T" in sizes:
        return False
    scale = dict(zip(image.axes, image.scale, strict=True))
    units = dict(zip(image.axes, image.units, strict=True))
    is_known = all(units[axis] != "pixel" for axis in "ZYX")
    return is_known and np.allclose(scale["Z"], [scale["Y"], scale["X"]], rtol=0.01)
