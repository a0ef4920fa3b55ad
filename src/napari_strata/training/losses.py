"""Losses: what training minimises, over labelled pixels only.

Logits and labels are reduced to the labelled pixels before anything is computed, so whatever an unlabelled pixel holds
cannot reach the loss or a gradient, not by a bit. All arithmetic is float32, under autocast too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from napari_strata.core.classes import IGNORE
from napari_strata.core.errors import RecipeError
from napari_strata.core.recipe import LossName, Training

SMOOTH = 0.5
"""Pixels added above and below the fraction of the overlap losses (1 in the usual way of writing Dice).

With it, a class that occurs nowhere in the batch has the loss 1 - SMOOTH / (alpha FP + SMOOTH): predicting it costs,
and not predicting it costs nothing. Without it the loss would be 1 however little of it is predicted."""

Term = Callable[[Tensor, Tensor], Tensor]
"""(logits P x K float32, labels P int64) of P > 0 labelled pixels -> scalar."""


@dataclass(frozen=True)
class Loss:
    """Weighted sum of losses over the labelled pixels of a batch."""

    weights: Mapping[LossName, float]
    functions: Mapping[LossName, Term]

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss as a float32 scalar; exactly 0, with a graph, when no pixel is labelled.

        Parameters
        ----------
        logits
            (N, K, H, W), any float dtype.
        labels
            (N, H, W) class indices of an integer dtype, `IGNORE` where unlabelled.
        """
        return self.total(self.terms(logits, labels))

    def total(self, terms: Mapping[LossName, Tensor]) -> Tensor:
        """Weighted sum of what `terms` returned."""
        return torch.stack(
            [weight * terms[name] for name, weight in self.weights.items()]
        ).sum()

    def terms(
        self, logits: Tensor, labels: Tensor, *, also: Sequence[LossName] = ()
    ) -> dict[LossName, Tensor]:
        """Each loss by itself, without its weight; those named in `also` too, which are part of no sum."""
        names = dict.fromkeys((*self.weights, *also))
        with torch.autocast(logits.device.type, enabled=False):
            labelled = labels != IGNORE
            pixels = logits.movedim(1, -1)[labelled].float()
            if not len(pixels):
                return dict.fromkeys(names, pixels.sum())
            index = labels[labelled].long()
            return {name: self.functions[name](pixels, index) for name in names}


def build_loss(
    training: Training, *, classes: int, class_counts: Sequence[int] | None = None
) -> Loss:
    """The loss a recipe asks for.

    Parameters
    ----------
    classes
        K, the number of classes.
    class_counts
        labelled pixels of each class in the training data, for balanced class weights.

    Raises
    ------
    RecipeError
        when the class weights do not fit the classes.
    """
    weights = class_weights(training, classes, class_counts)
    return Loss(
        weights=dict(training.loss),
        functions={
            "ce": partial(cross_entropy, class_weights=weights),
            "bce": partial(binary_cross_entropy, class_weights=weights),
            "focal": partial(focal, gamma=training.focal_gamma, class_weights=weights),
            "dice": dice,
            "tversky": partial(tversky, alpha=training.tversky_alpha),
            "lovasz": lovasz,
        },
    )


def class_weights(
    training: Training, classes: int, class_counts: Sequence[int] | None
) -> Tensor | None:
    """Weight of each class (K, float32), None for equal weights.

    "balanced" is the inverse frequency, scaled so that the classes that occur have mean 1; a class that does not occur
    keeps 1.
    """
    wanted = training.class_weights
    if wanted == "none":
        return None
    if wanted != "balanced":
        if len(wanted) != classes:
            raise RecipeError(
                f"training.class_weights has {len(wanted)} numbers for {classes} classes; give one number each, "
                "or 'balanced', or 'none'."
            )
        return torch.tensor(wanted)
    if class_counts is None:
        raise RecipeError(
            "training.class_weights is 'balanced', but the labels were not counted; give numbers."
        )
    counts = torch.tensor(class_counts, dtype=torch.float64)
    present = counts > 0
    inverse = torch.where(present, 1 / counts.clamp(min=1), 0.0)
    balanced = inverse * (present.sum() / inverse.sum().clamp(min=1e-300))
    return torch.where(present, balanced, 1.0).float()


def cross_entropy(
    logits: Tensor, labels: Tensor, *, class_weights: Tensor | None = None
) -> Tensor:
    """Categorical cross-entropy, the mean over pixels weighted by their true class (as torch does)."""
    return _weighted_mean(
        F.cross_entropy(logits, labels, reduction="none"), labels, class_weights
    )


def binary_cross_entropy(
    logits: Tensor, labels: Tensor, *, class_weights: Tensor | None = None
) -> Tensor:
    """Binary cross-entropy of each class against the rest, the mean over classes, then over pixels.

    The networks end in one logit a class and a softmax; the one-against-rest logit of class k is then its log-odds,
    ``log(p_k / (1 - p_k)) = logit_k - logsumexp(other logits)``. For two classes that is the difference of the two
    logits for one class and its negative for the other, so the loss equals the binary cross-entropy of a network with
    a single logit exactly.
    """
    target = _one_hot(labels, logits)
    others = [
        torch.cat([logits[:, :k], logits[:, k + 1 :]], dim=1)
        for k in range(logits.shape[1])
    ]
    odds = logits - torch.stack([other.logsumexp(dim=1) for other in others], dim=1)
    per_pixel = F.binary_cross_entropy_with_logits(odds, target, reduction="none").mean(
        dim=1
    )
    return _weighted_mean(per_pixel, labels, class_weights)


def focal(
    logits: Tensor, labels: Tensor, *, gamma: float, class_weights: Tensor | None = None
) -> Tensor:
    """Focal loss ``-(1 - p)^gamma log p`` of the true class's softmax probability p.

    Lin, Goyal, Girshick, He and Dollar 2017, https://arxiv.org/abs/1708.02002, with softmax in the place of the
    sigmoid; the two are equal for two classes. With ``gamma=0`` it is cross-entropy.
    """
    surprise = F.cross_entropy(logits, labels, reduction="none")
    # 1 - p from the log keeps its small values; its slope at 0 is not finite for gamma < 1, hence the floor.
    missed = -torch.expm1(-surprise)
    return _weighted_mean(
        missed.clamp(min=1e-12) ** gamma * surprise, labels, class_weights
    )


def dice(logits: Tensor, labels: Tensor) -> Tensor:
    """Soft Dice loss over the batch, the mean over all classes.

    Milletari, Navab and Ahmadi 2016, https://arxiv.org/abs/1606.04797, with plain sums in the denominator:
    ``1 - (2 TP + 1) / (2 TP + FP + FN + 1)`` on softmax probabilities. For absent classes see `SMOOTH`.
    """
    return tversky(logits, labels, alpha=0.5)


def tversky(logits: Tensor, labels: Tensor, *, alpha: float) -> Tensor:
    """Tversky loss over the batch, the mean over all classes: false positives weigh `alpha`, false negatives the rest.

    Salehi, Erdogmus and Gholipour 2017, https://arxiv.org/abs/1706.05721; ``alpha=0.5`` is Dice.
    """
    probability = logits.softmax(dim=1)
    target = _one_hot(labels, logits)
    hits = (probability * target).sum(dim=0)
    false_positives = probability.sum(dim=0) - hits
    false_negatives = target.sum(dim=0) - hits
    overlap = (hits + SMOOTH) / (
        hits + alpha * false_positives + (1 - alpha) * false_negatives + SMOOTH
    )
    return 1 - overlap.mean()


def lovasz(logits: Tensor, labels: Tensor) -> Tensor:
    """Lovasz-softmax over the batch: a convex surrogate of 1 - IoU, the mean over the classes that occur in it.

    Berman, Rannen Triki and Blaschko 2018, https://arxiv.org/abs/1705.08790.
    """
    probability = logits.softmax(dim=1)
    present = labels.bincount(minlength=logits.shape[1]).nonzero().flatten().tolist()
    return torch.stack(
        [_lovasz_of_class(probability[:, k], labels == k) for k in present]
    ).mean()


def _lovasz_of_class(probability: Tensor, is_class: Tensor) -> Tensor:
    errors, order = (
        (is_class.to(probability.dtype) - probability).abs().sort(descending=True)
    )
    truth = is_class[order]
    kept = truth.sum() - truth.cumsum(0)
    union = truth.sum() + (~truth).cumsum(0)
    # How much 1 - kept / union grows with each pixel, written out: a difference of numbers near 1 would be rounding.
    steps = torch.where(truth, 1 / union, kept / (union * (union - 1)).clamp(min=1))
    return errors @ steps


def _one_hot(labels: Tensor, like: Tensor) -> Tensor:
    """P x K of zeros and a one a row, float32: torch's own takes eight bytes a number."""
    return torch.zeros_like(like).scatter_(1, labels[:, None], 1.0)


def _weighted_mean(
    per_pixel: Tensor, labels: Tensor, class_weights: Tensor | None
) -> Tensor:
    if class_weights is None:
        return per_pixel.mean()
    weight = class_weights.to(per_pixel.device)[labels]
    return (per_pixel * weight).sum() / weight.sum()
