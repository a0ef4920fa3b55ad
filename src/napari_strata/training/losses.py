"""Losses over labelled pixels.

Logits and labels are first reduced to the labelled pixels, so that unlabelled pixels
have no influence on the loss or its gradient. All arithmetic is float32, also under
autocast.

CONTRIBUTING says what to change for a new loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from napari_strata.core.classes import IGNORE
from napari_strata.core.errors import RecipeError
from napari_strata.core.recipe import LossName, Training

SMOOTH = 0.5
"""Number of pixels added to numerator and denominator of the overlap losses.

Dice is often written with 2 TP; there, 1 would have to be added. A class that does not
occur in the batch has the loss 1 - SMOOTH / (alpha FP + SMOOTH), which is 0 if the
class is not predicted. Without SMOOTH the loss would be 1 for any prediction.
"""


@dataclass(frozen=True)
class LossOptions:
    """Options that a loss function may use.

    Parameters
    ----------
    training
        The recipe's section, with options such as `focal_gamma`.
    class_weights
        Weight of each class (K, float32), None for equal weights.
    """

    training: Training
    class_weights: Tensor | None = None


LossFunction: TypeAlias = Callable[[Tensor, Tensor, LossOptions], Tensor]
"""Function of logits (P, K) float32, labels (P,) int64 and options; returns a scalar.

P is the number of labelled pixels, at least 1.
"""

LOSSES: dict[str, LossFunction] = {}
"""Loss functions by their name in the recipe."""


def register_loss(name: str) -> Callable[[LossFunction], LossFunction]:
    """Register the decorated function as the loss `name`."""

    def register(function: LossFunction) -> LossFunction:
        LOSSES[name] = function
        return function

    return register


@dataclass(frozen=True)
class Loss:
    """Weighted sum of losses over the labelled pixels of a batch."""

    weights: Mapping[LossName, float]
    options: LossOptions

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Compute the loss as a float32 scalar.

        If no pixel is labelled, it is exactly 0 and has a gradient of 0.

        Parameters
        ----------
        logits
            (N, K, *spatial), any float dtype; spatial is (H, W) or (D, H, W).
        labels
            (N, *spatial) class indices of an integer dtype, `IGNORE` where unlabelled.
        """
        return self.total(self.terms(logits, labels))

    def total(self, terms: Mapping[LossName, Tensor]) -> Tensor:
        """Return the weighted sum of the result of `terms`."""
        weighted = [weight * terms[name] for name, weight in self.weights.items()]
        return torch.stack(weighted).sum()

    def terms(
        self, logits: Tensor, labels: Tensor, *, also: Sequence[LossName] = ()
    ) -> dict[LossName, Tensor]:
        """Compute each loss without its weight.

        Parameters
        ----------
        also
            Names of further losses, which are not part of the sum.
        """
        names = dict.fromkeys((*self.weights, *also))
        with torch.autocast(logits.device.type, enabled=False):
            labelled = labels != IGNORE
            pixels = logits.movedim(1, -1)[labelled].float()
            if not len(pixels):
                return dict.fromkeys(names, pixels.sum())
            index = labels[labelled].long()
            return {name: LOSSES[name](pixels, index, self.options) for name in names}


def build_loss(
    training: Training, *, classes: int, class_counts: Sequence[int] | None = None
) -> Loss:
    """Build the loss of a recipe.

    Parameters
    ----------
    classes
        K, the number of classes.
    class_counts
        Labelled pixels of each class in the training data, for balanced class weights.

    Raises
    ------
    RecipeError
        When the class weights do not fit the classes.
    """
    weights = class_weights(training, classes, class_counts)
    return Loss(dict(training.loss), LossOptions(training, weights))


def class_weights(
    training: Training, classes: int, class_counts: Sequence[int] | None
) -> Tensor | None:
    """Return the weight of each class (K, float32), None for equal weights.

    "balanced" weights are inverse frequencies, scaled so that their mean over the
    classes that occur is 1. A class that does not occur has weight 1.
    """
    weights = training.class_weights
    if weights == "none":
        return None
    if weights != "balanced":
        if len(weights) != classes:
            raise RecipeError(
                f"training.class_weights has {len(weights)} numbers for {classes} "
                "classes; give one number for each, or 'balanced', or 'none'."
            )
        return torch.tensor(weights)
    if class_counts is None:
        raise RecipeError(
            "training.class_weights is 'balanced', but the labels were not counted; "
            "give numbers."
        )
    counts = torch.tensor(class_counts, dtype=torch.float64)
    present = counts > 0
    inverse = torch.where(present, 1 / counts.clamp(min=1), 0.0)
    balanced = inverse * (present.sum() / inverse.sum().clamp(min=1e-300))
    return torch.where(present, balanced, 1.0).float()


@register_loss("ce")
def cross_entropy(logits: Tensor, labels: Tensor, options: LossOptions) -> Tensor:
    """Categorical cross-entropy.

    The mean over pixels is weighted by their true class, as in torch.
    """
    per_pixel = F.cross_entropy(logits, labels, reduction="none")
    return _weighted_mean(per_pixel, labels, options.class_weights)


@register_loss("bce")
def binary_cross_entropy(
    logits: Tensor, labels: Tensor, options: LossOptions
) -> Tensor:
    """Binary cross-entropy of each class against the rest.

    The mean is taken over classes, then over pixels. The networks have one logit for
    each class and a softmax; the one-against-rest logit of class k is its log-odds,
    ``log(p_k / (1 - p_k)) = logit_k - logsumexp(other logits)``. For two classes this
    is the difference of the two logits or its negative, so that the loss equals the
    binary cross-entropy of a network with a single logit.
    """
    target = _one_hot(labels, logits)
    log_sums = []
    for k in range(logits.shape[1]):
        others = torch.cat([logits[:, :k], logits[:, k + 1 :]], dim=1)
        log_sums.append(others.logsumexp(dim=1))
    log_odds = logits - torch.stack(log_sums, dim=1)
    per_class = F.binary_cross_entropy_with_logits(log_odds, target, reduction="none")
    return _weighted_mean(per_class.mean(dim=1), labels, options.class_weights)


@register_loss("focal")
def focal(logits: Tensor, labels: Tensor, options: LossOptions) -> Tensor:
    """Focal loss ``-(1 - p)^gamma log p`` of the true class's softmax probability p.

    Lin, Goyal, Girshick, He and Dollar 2017, https://arxiv.org/abs/1708.02002, with
    softmax instead of the sigmoid; for two classes both are equal. With ``gamma=0`` it
    is cross-entropy.
    """
    negative_log = F.cross_entropy(logits, labels, reduction="none")
    # expm1 keeps small values of 1 - p exact. The derivative at 0 is not finite for
    # gamma < 1, so 1 - p is at least 1e-12.
    miss = -torch.expm1(-negative_log)
    per_pixel = miss.clamp(min=1e-12) ** options.training.focal_gamma * negative_log
    return _weighted_mean(per_pixel, labels, options.class_weights)


@register_loss("dice")
def dice(logits: Tensor, labels: Tensor, options: LossOptions) -> Tensor:
    """Soft Dice loss over the batch, the mean over all classes.

    Milletari, Navab and Ahmadi 2016, https://arxiv.org/abs/1606.04797, with plain sums
    in the denominator: ``1 - (2 TP + 1) / (2 TP + FP + FN + 1)`` on softmax
    probabilities. For absent classes see `SMOOTH`.
    """
    return _overlap_loss(logits, labels, alpha=0.5)


@register_loss("tversky")
def tversky(logits: Tensor, labels: Tensor, options: LossOptions) -> Tensor:
    """Tversky loss over the batch, the mean over all classes.

    False positives have the weight ``tversky_alpha``, false negatives ``1 -
    tversky_alpha``. Salehi, Erdogmus
    and Gholipour 2017, https://arxiv.org/abs/1706.05721; 0.5 is Dice.
    """
    return _overlap_loss(logits, labels, alpha=options.training.tversky_alpha)


@register_loss("lovasz")
def lovasz(logits: Tensor, labels: Tensor, options: LossOptions) -> Tensor:
    """Lovasz-softmax loss over the batch, a convex surrogate of 1 - IoU.

    It is the mean over the classes that occur in the batch. Berman, Rannen Triki and
    Blaschko 2018, https://arxiv.org/abs/1705.08790.
    """
    probability = logits.softmax(dim=1)
    counts = labels.bincount(minlength=logits.shape[1])
    present = counts.nonzero().flatten().tolist()
    losses = [_lovasz_of_class(probability[:, k], labels == k) for k in present]
    return torch.stack(losses).mean()


def _overlap_loss(logits: Tensor, labels: Tensor, *, alpha: float) -> Tensor:
    probability = logits.softmax(dim=1)
    target = _one_hot(labels, logits)
    hits = (probability * target).sum(dim=0)
    false_positives = probability.sum(dim=0) - hits
    false_negatives = target.sum(dim=0) - hits
    overlap = (hits + SMOOTH) / (
        hits + alpha * false_positives + (1 - alpha) * false_negatives + SMOOTH
    )
    return 1 - overlap.mean()


def _lovasz_of_class(probability: Tensor, is_class: Tensor) -> Tensor:
    distance = (is_class.to(probability.dtype) - probability).abs()
    errors, order = distance.sort(descending=True)
    truth = is_class[order]
    intersection = truth.sum() - truth.cumsum(0)
    union = truth.sum() + (~truth).cumsum(0)
    # Increase of 1 - intersection / union with each pixel, in closed form: a difference
    # of numbers near 1 would lose precision.
    increase = intersection / (union * (union - 1)).clamp(min=1)
    steps = torch.where(truth, 1 / union, increase)
    return errors @ steps


def _one_hot(labels: Tensor, like: Tensor) -> Tensor:
    """Return one-hot rows (P, K) in float32; torch's function returns int64."""
    return torch.zeros_like(like).scatter_(1, labels[:, None], 1.0)


def _weighted_mean(
    per_pixel: Tensor, labels: Tensor, class_weights: Tensor | None
) -> Tensor:
    if class_weights is None:
        return per_pixel.mean()
    weight = class_weights.to(per_pixel.device)[labels]
    return (per_pixel * weight).sum() / weight.sum()
