"""Suggestion of a recipe that suits the data better than the chosen one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from napari_strata.core.image import AnnotatedImage, Image
from napari_strata.core.recipe import Recipe
from napari_strata.data.regions import LabelledRegion
from napari_strata.data.strokes import are_strokes

CT_PLANES = 8
"""Planes that an image must have to be taken for a CT volume."""


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
            "Only strokes are labelled: the recipe 'instant' needs seconds, and from"
            " strokes alone it segments better than a network did in our measurements.",
        )
    if recipe.name == "default" and all(_may_be_ct(pair.image) for pair in pairs):
        return Suggestion(
            "unet-ct",
            "A volume of one channel with cubic voxels: if it is a CT, where the grey"
            " value itself tells the material, the recipe 'unet-ct' suits it better.",
        )
    return None


def _may_be_ct(image: Image) -> bool:
    """Return True for a volume of one channel whose voxels are known to be cubes."""
    sizes = dict(zip(image.axes, image.shape, strict=True))
    if sizes.get("Z", 1) < CT_PLANES or sizes.get("C", 1) > 1 or "T" in sizes:
        return False
    scale = dict(zip(image.axes, image.scale, strict=True))
    units = dict(zip(image.axes, image.units, strict=True))
    is_known = all(units[axis] != "pixel" for axis in "ZYX")
    return is_known and np.allclose(scale["Z"], [scale["Y"], scale["X"]], rtol=0.01)
