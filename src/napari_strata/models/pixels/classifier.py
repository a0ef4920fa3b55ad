"""A fitted pixel classifier: from an image to probabilities of classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from napari_strata.core.errors import ModelError
from napari_strata.core.network_sections import Pixels
from napari_strata.models.pixels.features import compute_features
from napari_strata.models.pixels.guided_filter import guided_filter
from napari_strata.models.pixels.trees import (
    BinnedPixels,
    ObliviousTrees,
    Tree,
    iter_extra_trees,
    stack_trees,
)

Array = np.ndarray[Any, Any]

STEPS = 2**16
"""Steps of a probability. On a GPU a logarithm may end in another bit than on a CPU;
probabilities that differ, differ by a step, which no last bit turns round."""

NOISE_SPREADS = 3.0
"""Differences of grey values below so many standard deviations of noise are no edge."""


@dataclass(frozen=True, eq=False)
class PixelClassifier:
    """Trees on the features of pixels, and a filter on their probabilities.

    Parameters
    ----------
    trees
        what `fit` found.
    levels
        octave levels of the features; see `features.compute_features`.
    filter_radius
        of the guided filter in pixels; 0 for none.
    noise
        standard deviation of the noise of scaled images.
    """

    trees: ObliviousTrees
    levels: int
    filter_radius: int = 0
    noise: float = 0.0

    @classmethod
    def fit(
        cls,
        features: Array,
        class_indices: Array,
        *,
        classes: int,
        section: Pixels,
        levels: int,
        noise: float = 0.0,
        seed: int = 0,
    ) -> PixelClassifier:
        """Fit a classifier on labelled pixels.

        Parameters
        ----------
        features
            float32 (n, F), with F of `features.count_features`.
        class_indices
            integers (n,), from 0 to ``classes - 1``.
        section
            number of trees, their depth, and the filter's radius.
        """
        trees = stack_trees(
            list(
                iter_trees(features, class_indices, classes, section=section, seed=seed)
            )
        )
        return cls(trees, levels, section.filter_radius, noise)

    @torch.inference_mode()
    def probabilities(self, features: Tensor, guide: Tensor) -> Tensor:
        """Probabilities of classes, in whole steps of 1 / `STEPS`.

        Parameters
        ----------
        features
            float32 (F, H, W), of `features.compute_features`.
        guide
            grey values float32 (H, W) at whose steps the filter keeps those of the
            probabilities; see `guide_of`.

        Returns
        -------
        float32 (K, H, W) on the device of the features.
        """
        shape = features.shape[1:]
        chances = self.trees.sums(features.flatten(1)).reshape(-1, *shape)
        if self.filter_radius:
            variance = (NOISE_SPREADS * self.noise) ** 2
            chances = guided_filter(
                chances, guide, radius=self.filter_radius, variance=variance
            )
        return chances.clamp_(0, 1).mul_(STEPS).round_().div_(STEPS)

    def predict(self, image: Tensor, *, neighbours: int = 0) -> Tensor:
        """Probabilities (K, H, W) of a scaled image float32 (C, H, W)."""
        features = compute_features(image, self.levels)
        return self.probabilities(features, guide_of(image, neighbours))

    def weights(self) -> dict[str, Tensor]:
        """Tensors of the model file."""
        return {
            "feature": torch.from_numpy(self.trees.feature),
            "threshold": torch.from_numpy(self.trees.threshold),
            "leaves": torch.from_numpy(self.trees.leaves),
            "noise": torch.tensor([self.noise], dtype=torch.float32),
        }

    @classmethod
    def from_weights(
        cls, weights: Mapping[str, Tensor], section: Pixels
    ) -> PixelClassifier:
        """Take up what `weights` returned.

        Raises
        ------
        ModelError
            when tensors are missing.
        """
        try:
            trees = ObliviousTrees(
                weights["feature"].numpy(),
                weights["threshold"].numpy(),
                weights["leaves"].numpy(),
            )
            noise = float(weights["noise"])
        except KeyError as error:
            raise ModelError(
                f"the model's weights do not fit a pixel classifier: {error} is missing"
            ) from None
        return cls(trees, section.resolved_levels, section.filter_radius, noise)


def iter_trees(
    features: Array, class_indices: Array, classes: int, *, section: Pixels, seed: int
) -> Iterator[Tree]:
    """Grow the trees of a classifier one by one; parameters are those of `fit`."""
    pixels = BinnedPixels.of(features, class_indices, classes)
    yield from iter_extra_trees(
        pixels,
        trees=section.trees,
        depth=section.depth,
        tests=section.tests,
        seed=seed,
    )


def guide_of(image: Tensor, neighbours: int = 0) -> Tensor:
    """Mean of the channels of a plane itself, (H, W), of an image (C, H, W).

    Channels of neighbouring slices do not count; see `data.neighbours`.
    """
    width = len(image) // (2 * neighbours + 1)
    own = image[neighbours * width : (neighbours + 1) * width]
    total = own[0].clone()
    for channel in own[1:]:
        total += channel
    return total.mul_(1 / width)
