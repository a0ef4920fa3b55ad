"""A fitted pixel classifier: from an image to probabilities of classes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from napari_strata.core.errors import ModelError
from napari_strata.core.network_sections import Pixels
from napari_strata.models.pixels.features import (
    compute_features,
    count_features,
    gradient_rows,
)
from napari_strata.models.pixels.guided_filter import guided_filter
from napari_strata.models.pixels.trees import (
    BinnedPixels,
    ObliviousTrees,
    Tree,
    iter_boosted_trees,
    iter_extra_trees,
    stack_trees,
)

Array = np.ndarray[Any, Any]

STEPS = 2**16
"""Steps of a probability.

The last bit of a logarithm can differ between CPU and GPU. Rounding to steps of 1/65536
removes such differences.
"""

NOISE_SPREADS = 3.0
"""Differences of grey values below so many standard deviations of noise are no edge."""

LOGIT_STEPS, LOWEST_LOGIT = 128, 16
"""Steps per unit of logit, and the largest distance below the highest logit."""

STEEP = 0.97
"""Quantile of the gradients of training pixels above which a pixel is not trusted.

Strokes keep away from edges. So trees know nothing of the grey values between two
classes, and take them for a third one.
"""


@dataclass(frozen=True, eq=False)
class PixelClassifier:
    """Trees on the features of pixels, and a filter on their probabilities.

    Parameters
    ----------
    trees
        Trees that `fit` has grown.
    levels
        Octave levels of the features; see `features.compute_features`.
    filter_radius
        Radius of the guided filter in pixels; 0 for no filter.
    noise
        Standard deviation of the noise of scaled images.
    steepness
        Gradient at which a pixel has half the weight in the filter.
    neighbours
        Number of slices on each side that are channels too.
    is_boosted
        True when the sums of trees are logits, false when they are probabilities.
    """

    trees: ObliviousTrees
    levels: int
    filter_radius: int = 0
    noise: float = 0.0
    steepness: float = math.inf
    neighbours: int = 0
    is_boosted: bool = False

    @classmethod
    def fit(
        cls,
        features: Array,
        class_indices: Array,
        *,
        classes: int,
        section: Pixels,
        levels: int,
        windows: int = 0,
        noise: float = 0.0,
        neighbours: int = 0,
        seed: int = 0,
    ) -> PixelClassifier:
        """Fit a classifier on labelled pixels.

        Parameters
        ----------
        features
            float32 (n, F), with F of `features.count_features`.
        class_indices
            Integers (n,), from 0 to ``classes - 1``.
        section
            Options: the number of trees, their depth, and the radius of the filter.
        windows
            Painted windows among the pixels; the radius follows from them if it is not
            set.
        """
        trees = stack_trees(
            list(
                iter_trees(features, class_indices, classes, section=section, seed=seed)
            )
        )
        return cls(
            trees,
            levels,
            section.resolve_filter_radius(windows),
            noise,
            measure_steepness(features, levels, neighbours),
            neighbours,
            section.method == "boosting",
        )

    @torch.inference_mode()
    def probabilities(self, features: Tensor, image: Tensor) -> Tensor:
        """Probabilities of classes, in whole steps of 1 / `STEPS`.

        Parameters
        ----------
        features
            float32 (F, H, W), of `features.compute_features`.
        image
            Scaled grey values float32 (C, H, W) that they are features of.

        Returns
        -------
        float32 (K, H, W) on the device of the features.
        """
        shape = features.shape[1:]
        probabilities = self.trees.sums(features.flatten(1)).reshape(-1, *shape)
        if self.is_boosted:
            probabilities = _softmax(probabilities)
        if self.filter_radius:
            rows = gradient_rows(len(image), self.neighbours)
            probabilities = guided_filter(
                probabilities,
                guide_of(image, self.neighbours),
                self._weights(features[rows].amax(0)),
                radius=self.filter_radius,
                variance=(NOISE_SPREADS * self.noise) ** 2,
            )
        return probabilities.clamp_(0, 1).mul_(STEPS).round_().div_(STEPS)

    def _weights(self, gradient: Tensor) -> Tensor:
        """Weights of pixels in the filter, from the lengths of their gradients."""
        fourth = (gradient / max(self.steepness, 1e-6)).square_().square_()
        # A tenth of a thousandth, so that no window is without weight.
        return fourth.add_(1).reciprocal_().clamp_min_(1e-4)

    def predict(self, image: Tensor) -> Tensor:
        """Probabilities (K, H, W) of a scaled image float32 (C, H, W)."""
        return self.probabilities(compute_features(image, self.levels), image)

    def weights(self) -> dict[str, Tensor]:
        """Tensors of the model file."""
        return {
            "feature": torch.from_numpy(self.trees.feature),
            "threshold": torch.from_numpy(self.trees.threshold),
            "leaves": torch.from_numpy(self.trees.leaves),
            "noise": torch.tensor([self.noise, self.steepness]),
        }

    @classmethod
    def from_weights(
        cls, weights: Mapping[str, Tensor], section: Pixels, *, neighbours: int = 0
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
            noise, steepness = weights["noise"].tolist()
        except KeyError as error:
            raise ModelError(
                f"the model's weights do not fit a pixel classifier: {error} is missing"
            ) from None
        return cls(
            trees,
            section.resolved_levels,
            section.resolve_filter_radius(),
            noise,
            steepness,
            neighbours,
            section.method == "boosting",
        )


def iter_trees(
    features: Array, class_indices: Array, classes: int, *, section: Pixels, seed: int
) -> Iterator[Tree]:
    """Grow the trees of a classifier one by one; parameters are those of `fit`."""
    pixels = BinnedPixels.of(features, class_indices, classes)
    if section.method == "boosting":
        yield from iter_boosted_trees(
            pixels,
            trees=section.trees,
            depth=section.depth,
            candidates=section.tests,
            learning_rate=section.learning_rate,
            seed=seed,
        )
        return
    yield from iter_extra_trees(
        pixels,
        trees=section.trees,
        depth=section.depth,
        candidates=section.tests,
        seed=seed,
    )


def _softmax(logits: Tensor) -> Tensor:
    """Softmax over the first axis, of logits in steps of 1 / `LOGIT_STEPS`.

    Exponentials are looked up in a table that the CPU computed, because their last bit
    can differ on another device.
    """
    below = logits.amax(0) - logits
    place = below.mul_(LOGIT_STEPS).round_().clamp_max_(LOWEST_LOGIT * LOGIT_STEPS)
    steps = torch.arange(LOWEST_LOGIT * LOGIT_STEPS + 1, dtype=torch.float32)
    table = torch.exp(-steps / LOGIT_STEPS).to(logits.device)
    probabilities = table[place.int()]
    total = probabilities[0].clone()
    for probability in probabilities[1:]:
        total += probability
    return probabilities.div_(total)


def measure_steepness(features: Array, levels: int, neighbours: int = 0) -> float:
    """Gradient that few training pixels exceed, from their features (n, F)."""
    channels = features.shape[1] // count_features(1, levels)
    gradient = features[:, gradient_rows(channels, neighbours)].max(axis=1)
    return float(np.float32(np.quantile(gradient, STEEP)))


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
