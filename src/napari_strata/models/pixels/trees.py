"""Oblivious trees: all nodes of a level have the same split.

A tree of depth d has d splits; their results, as bits, are the leaf number. Kohavi and
Li 1995, https://www.ijcai.org/Proceedings/95-2/Papers/008.pdf.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.sparse import csc_matrix
from torch import Tensor

from napari_strata.models.pixels import kernels

Array = np.ndarray[Any, Any]

BINS = 255
"""Thresholds of a feature at most; they are quantiles of the training pixels."""

SAMPLE = 20_000
"""Pixels on which the splits of a boosted tree are chosen, drawn for each tree."""

LEAF_WEIGHT = 3.0
"""Regularisation added to the second derivative in a leaf, so that a leaf with few
pixels changes the sum only a little."""

PARENT_WEIGHT = 1.0
"""Pixels that the parent of a node counts for, in the probabilities of the node."""


@dataclass(frozen=True, eq=False)
class ObliviousTrees:
    """An ensemble of T oblivious trees of depth D for K classes.

    Parameters
    ----------
    feature
        Feature of each split, int32 (T, D).
    threshold
        Threshold of each split, float32 (T, D). A split's result is 1 where the
        feature is larger. The first result is the highest bit of the leaf number.
    leaves
        Values that each tree adds to the probabilities, float32 (T, 2 ** D, K).
    """

    feature: Array
    threshold: Array
    leaves: Array

    def sums(self, features: Tensor) -> Tensor:
        """Sum the leaves of all trees.

        Trees are added one after the other on every device, so that the bits of the
        sums are the same.

        Parameters
        ----------
        features
            Features of the pixels, float32 (F, n), on any device.

        Returns
        -------
        float32 (K, n) on the same device.
        """
        if features.device.type == "cpu" and kernels.available():
            array = kernels.sum_leaves(
                features.contiguous().numpy(),
                self.feature,
                self.threshold,
                self.leaves,
                threads=torch.get_num_threads(),
            )
            return torch.from_numpy(array)
        return self.gathered_sums(features)

    @torch.inference_mode()
    def gathered_sums(self, features: Tensor) -> Tensor:
        """`sums` by torch alone."""
        device = features.device
        trees, depth = self.feature.shape
        leaves = torch.from_numpy(self.leaves).to(device)
        total = features.new_zeros((self.leaves.shape[2], features.shape[1]))
        for tree in range(trees):
            number = torch.zeros(features.shape[1], dtype=torch.int32, device=device)
            for level in range(depth):
                row = features[int(self.feature[tree, level])]
                result = row > float(self.threshold[tree, level])
                number.mul_(2).add_(result)
            total += leaves[tree].T[:, number]
        return total


@dataclass(frozen=True, eq=False)
class BinnedPixels:
    """Training pixels whose features are replaced by the numbers of bins.

    Parameters
    ----------
    bins
        Number of thresholds below each value, uint8 (F, n).
    thresholds
        Thresholds of each feature in rising order, float32 (F, B); infinite where there
        are fewer.
    counts
        Number of thresholds of each feature (F,); 0 for a feature with one value only.
    labels
        Class indices (n,).
    classes
        Number of classes.
    """

    bins: Array
    thresholds: Array
    counts: Array
    labels: Array
    classes: int

    @classmethod
    def of(cls, features: Array, labels: Array, classes: int) -> BinnedPixels:
        """Bin features float32 (n, F) of pixels with class indices (n,)."""
        n, count = features.shape
        bins = np.empty((count, n), np.uint8)
        thresholds = np.full((count, BINS), np.inf, np.float32)
        counts = np.zeros(count, np.int64)
        for number in range(count):
            values = np.ascontiguousarray(features[:, number])
            edges = _edges(values)
            counts[number] = len(edges)
            thresholds[number, : len(edges)] = edges
            bins[number] = np.searchsorted(edges, values, side="left")
        return cls(bins, thresholds, counts, labels.astype(np.int64), classes)


def _edges(values: Array) -> Array:
    """Thresholds between the values of a feature, float32, at most `BINS`."""
    ordered = np.sort(values)
    steps = np.flatnonzero(ordered[1:] > ordered[:-1])
    if len(steps) > BINS:
        # The step at or after each quantile, each once.
        wanted = (np.arange(BINS) + 0.5) * (len(ordered) - 1) / BINS
        places = np.minimum(np.searchsorted(steps, wanted), len(steps) - 1)
        steps = steps[np.unique(places)]
    low, high = ordered[steps], ordered[steps + 1]
    middle = (low + (high - low) * np.float32(0.5)).astype(np.float32)
    # Between two floats that are neighbours there is none.
    edges: Array = np.where(middle < high, middle, low)
    return edges


@dataclass(frozen=True, eq=False)
class Tree:
    """A tree, and the leaf of each training pixel."""

    feature: Array
    threshold: Array
    leaves: Array
    leaf_of_pixel: Array


def stack_trees(trees: list[Tree]) -> ObliviousTrees:
    """Put trees of one depth together."""
    return ObliviousTrees(
        np.stack([tree.feature for tree in trees]).astype(np.int32),
        np.stack([tree.threshold for tree in trees]).astype(np.float32),
        np.stack([tree.leaves for tree in trees]).astype(np.float32),
    )


def iter_extra_trees(
    pixels: BinnedPixels, *, trees: int, depth: int, candidates: int, seed: int
) -> Iterator[Tree]:
    """Grow extremely randomised trees (Geurts et al. 2006), here oblivious ones.

    At each level, the split is chosen from `candidates` random splits (a feature and a
    threshold each): the one that leaves the purest nodes, by Gini impurity over all
    nodes of the level. Classes are not balanced. See
    https://doi.org/10.1007/s10994-006-6226-1.

    Yields
    ------
    trees whose leaves are probabilities divided by the number of trees.
    """
    usable = np.flatnonzero(pixels.counts)
    for number in range(trees):
        rng = np.random.default_rng([seed, 5, number])
        feature = np.zeros(depth, np.int64)
        threshold = np.full(depth, np.inf, np.float32)
        leaf = np.zeros(len(pixels.labels), np.int64)
        for level in range(depth):
            if not len(usable):
                leaf = leaf * 2
                continue
            drawn = usable[rng.integers(len(usable), size=candidates)]
            bins = (rng.random(candidates) * pixels.counts[drawn]).astype(np.uint8)
            results = pixels.bins[drawn] > bins[:, None]
            best = _purest(leaf, results, pixels, nodes=2**level)
            feature[level] = drawn[best]
            threshold[level] = pixels.thresholds[drawn[best], bins[best]]
            leaf = leaf * 2 + results[best]
        leaves = _leaf_probabilities(leaf, pixels, depth=depth) / trees
        yield Tree(feature, threshold, leaves, leaf)


def iter_boosted_trees(
    pixels: BinnedPixels,
    *,
    trees: int,
    depth: int,
    candidates: int,
    learning_rate: float,
    seed: int,
) -> Iterator[Tree]:
    """Grow trees one upon the other, each of which corrects the sum of those before.

    Gradient boosting of the cross-entropy (Friedman 2001,
    https://doi.org/10.1214/aos/1013203451) with oblivious trees, as in CatBoost
    (Prokhorenkova et al. 2018, https://arxiv.org/abs/1706.09516). At each level, the
    split is chosen from `candidates` random splits: the one that fits the gradients of
    a sample of the pixels best. Leaves are one Newton step on all pixels.

    Yields
    ------
    trees whose leaves add up to logits.
    """
    usable = np.flatnonzero(pixels.counts)
    n, classes = len(pixels.labels), pixels.classes
    truth = np.zeros((n, classes), np.float32)
    truth[np.arange(n), pixels.labels] = 1
    logits = np.zeros((n, classes), np.float32)
    for number in range(trees):
        rng = np.random.default_rng([seed, 7, number])
        probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        gradient = truth - probabilities
        sample = np.sort(rng.choice(n, min(n, SAMPLE), replace=False))
        sampled_gradient = gradient[sample]
        feature = np.zeros(depth, np.int64)
        threshold = np.full(depth, np.inf, np.float32)
        node = np.zeros(len(sample), np.int64)
        leaf = np.zeros(n, np.int64)
        for level in range(depth if len(usable) else 0):
            drawn = usable[rng.integers(len(usable), size=candidates)]
            bins = (rng.random(candidates) * pixels.counts[drawn]).astype(np.uint8)
            results = pixels.bins[drawn[:, None], sample] > bins[:, None]
            best = _best_fit(node, results, sampled_gradient, nodes=2**level)
            feature[level] = drawn[best]
            threshold[level] = pixels.thresholds[drawn[best], bins[best]]
            node = node * 2 + results[best]
            leaf = leaf * 2 + (pixels.bins[drawn[best]] > bins[best])
        curvature = probabilities * (1 - probabilities)
        leaves = np.empty((2**depth, classes))
        for k in range(classes):
            slope = np.bincount(leaf, gradient[:, k], minlength=2**depth)
            bend = np.bincount(leaf, curvature[:, k], minlength=2**depth)
            leaves[:, k] = learning_rate * slope / (bend + LEAF_WEIGHT)
        logits += leaves.astype(np.float32)[leaf]
        yield Tree(feature, threshold, leaves, leaf)


def _best_fit(node: Array, results: Array, gradient: Array, *, nodes: int) -> int:
    """Number of the split whose nodes fit gradients (n, K) best, by squared error."""
    n, classes = gradient.shape
    # Gradients of each class, and a one, by which pixels are counted.
    values = np.concatenate([gradient, np.ones((n, 1), np.float32)], axis=1)
    width = classes + 1
    rows = (node[:, None] * width + np.arange(width)).ravel()
    size = nodes * width
    matrix = csc_matrix(
        (values.ravel(), rows, np.arange(0, n * width + 1, width)), shape=(size, n)
    )
    right = matrix @ np.ascontiguousarray(results.T).astype(np.float32)
    total = np.bincount(rows, values.ravel(), minlength=size).astype(np.float32)
    right = right.reshape(nodes, width, -1)
    left = total.reshape(nodes, width, 1) - right
    fit = np.zeros(len(results))
    for side in (left, right):
        squares = np.square(side[:, :classes]).sum(axis=1)
        fit += (squares / (side[:, classes] + LEAF_WEIGHT)).sum(axis=0, dtype=float)
    return int(fit.argmax())


def _purest(node: Array, results: Array, pixels: BinnedPixels, *, nodes: int) -> int:
    """Number of the split with the purest nodes; `results` is bool (splits, n)."""
    classes = pixels.classes
    key = node * classes + pixels.labels
    size = nodes * classes
    n = len(key)
    one_hot = csc_matrix(
        (np.ones(n, np.float32), key, np.arange(n + 1)), shape=(size, n)
    )
    splits = len(results)
    # Transpose as bytes before converting to float32; this is five times faster.
    right = one_hot @ np.ascontiguousarray(results.T).astype(np.float32)
    right = right.reshape(nodes, classes, splits)
    total = np.bincount(key, minlength=size).astype(np.float32)
    left = total.reshape(nodes, classes, 1) - right
    purity = np.zeros(splits)
    for side in (left, right):
        pixels_in_node = side.sum(axis=1)
        squares = (side * side).sum(axis=1)
        purity += (squares / np.maximum(pixels_in_node, 1)).sum(axis=0, dtype=float)
    return int(purity.argmax())


def _leaf_probabilities(leaf: Array, pixels: BinnedPixels, *, depth: int) -> Array:
    """Class probabilities (2 ** depth, K) of the leaves of a tree.

    Those of a node's few pixels are mixed with those of its parent, so that an empty
    leaf has the probabilities of the smallest node around it.
    """
    classes = pixels.classes
    key = leaf * classes + pixels.labels
    counts = np.bincount(key, minlength=2**depth * classes).astype(float)
    per_level = [counts.reshape(-1, classes)]
    for _ in range(depth):
        deeper = per_level[-1]
        per_level.append(deeper.reshape(-1, 2, classes).sum(axis=1))
    root = per_level.pop()
    probabilities: Array = (root + 1) / (root.sum() + classes)
    for of_node in reversed(per_level):
        parents = np.repeat(probabilities, 2, axis=0)
        total = of_node.sum(axis=1, keepdims=True)
        probabilities = (of_node + PARENT_WEIGHT * parents) / (total + PARENT_WEIGHT)
    return probabilities
