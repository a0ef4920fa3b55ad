"""Validation: prediction of whole images, scored by one global confusion matrix.

The tiles are those of a prediction.

A large volume goes through in strips along Z, each with the planes that inform it, so
that memory holds one of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from napari_strata.core.classes import IGNORE
from napari_strata.core.metrics import ConfusionMatrix
from napari_strata.core.normalization import Scale
from napari_strata.core.recipe import LossName
from napari_strata.core.spec import ModelSpec
from napari_strata.core.tiling import read_range, shared_halo, shared_stride
from napari_strata.data.neighbours import own_channels
from napari_strata.data.regions import LabelledRegion
from napari_strata.evaluation.pictures import Example
from napari_strata.models.tiled import TiledPredictor, class_indices
from napari_strata.training.losses import Loss

ALSO: tuple[LossName, ...] = ("bce", "dice")
"""Losses that are reported of every validation, whatever the recipe minimises, so
that runs can be compared.
"""


STRIP = 2**24
"""Voxels of a volume that are predicted at a time, about.

A smaller one is predicted whole.
"""


class Truth(NamedTuple):
    """A part to validate on, with what does not change between epochs.

    `labels` class indices uint8 of its shape, `scale` of its grey values; `around` is
    what the network is shown: the part itself, or of a strip more planes, which do not
    count.
    """

    part: LabelledRegion
    labels: np.ndarray[Any, Any]
    scale: Scale
    around: LabelledRegion

    @property
    def keep(self) -> tuple[slice, ...]:
        """Position of the region in the input of the network."""
        starts = [outer.start for outer in self.around.box]
        return tuple(
            slice(p.start - start, p.stop - start)
            for p, start in zip(self.part.box, starts, strict=True)
        )


@dataclass(frozen=True)
class Validation:
    """Scores of one network on all validation parts.

    `loss` and `terms` (each loss by itself) are means over parts, weighted by their
    labelled pixels; NaN without any. `example` is the first part, for a picture.
    """

    loss: float
    terms: dict[str, float]
    confusion: ConfusionMatrix
    example: Example | None = None


def load_truths(parts: Sequence[LabelledRegion], spec: ModelSpec) -> list[Truth]:
    """Read the labels of each part and measure the scale of each image, once.

    Parts without labels are left out.
    """
    scales: dict[int, Scale] = {}
    truths = []
    for part in parts:
        image = part.pair.image
        if id(image) not in scales:
            samples = np.concatenate(image.samples(), axis=1)
            scales[id(image)] = spec.normalization.scale_for(samples, image.dtype)
        for strip, around in _strips(part, spec):
            labels = strip.read_labels(spec.classes)
            if (labels != IGNORE).any():
                truths.append(Truth(strip, labels, scales[id(image)], around))
    return truths


def _strips(
    part: LabelledRegion, spec: ModelSpec
) -> list[tuple[LabelledRegion, LabelledRegion]]:
    """A part, or strips of a large volume along Z.

    Each with what the network is to see for it.

    They begin at multiples of the network's stride, as tiles do, and are seen with its
    halo, which comes on top. (Where a network blends its tiles, scores depend a little
    on where strips are cut.)
    """
    if spec.depth is None or math.prod(part.shape) <= STRIP:
        return [(part, part)]
    depth, *plane = part.shape
    whole = [slice(0, length) for length in plane]
    halo, stride = shared_halo([spec]), shared_stride([spec])
    thick = max(1, STRIP // math.prod(plane) // stride) * stride
    strips = []
    for begin in range(0, depth, thick):
        write = slice(begin, min(begin + thick, depth))
        read = read_range(write, depth, halo=halo, stride=stride)
        first = part.box[0].start
        name = f"{part.name} planes {first + write.start} to {first + write.stop - 1}"
        strips.append(
            (part.block((write, *whole), name=name), part.block((read, *whole)))
        )
    return strips


class Predicted(NamedTuple):
    """A part as a network sees it.

    `image` grey values (C, H, W), `logits` float32 (K, H, W), `indices` of the classes
    uint8 (H, W), or (D, H, W) each of a volume; `confusion` of this part alone;
    `neighbours` as in the spec.
    """

    truth: Truth
    image: np.ndarray[Any, Any]
    logits: np.ndarray[Any, Any]
    indices: np.ndarray[Any, Any]
    confusion: ConfusionMatrix
    neighbours: int = 0

    def example(self) -> Example:
        """For a picture."""
        truth = self.truth
        image = own_channels(self.image, self.neighbours)
        part, indices, first = truth.part, self.indices, truth.part.box[0].start
        return Example.of(
            part.name,
            image,
            truth.labels,
            prediction=indices,
            confusion=self.confusion,
            first=first,
        )


def iter_predicted(
    predictor: TiledPredictor, truths: Sequence[Truth]
) -> Iterator[Predicted]:
    """Predict every part whole, tile by tile; memory holds one part's logits."""
    for truth in truths:
        image = truth.around.read_image()
        logits = predictor.predict_logits(image, truth.scale)
        if truth.around is not truth.part:
            image, logits = (
                image[:, *truth.keep],
                np.ascontiguousarray(logits[:, *truth.keep]),
            )
        indices = class_indices(torch.from_numpy(logits)[None])[0].numpy()
        confusion = ConfusionMatrix(predictor.spec.classes)
        confusion.update(truth.labels, indices)
        yield Predicted(
            truth, image, logits, indices, confusion, predictor.spec.neighbours
        )


@torch.inference_mode()
def validate(
    predictor: TiledPredictor, truths: Sequence[Truth], loss: Loss
) -> Validation:
    """Predict every part whole and score it on its labelled pixels.

    Overlap losses (Dice, Tversky, Lovasz) are taken over each part as a whole; memory
    holds one part's logits.
    """
    confusion = ConfusionMatrix(predictor.spec.classes)
    sums: dict[str, float] = {}
    total, example = 0, None
    for predicted in iter_predicted(predictor, truths):
        confusion += predicted.confusion
        example = example or predicted.example()
        logits, labels = (
            torch.from_numpy(predicted.logits)[None],
            torch.from_numpy(predicted.truth.labels)[None],
        )
        pixels = int((predicted.truth.labels != IGNORE).sum())
        terms = loss.terms(
            logits.to(predictor.device), labels.to(predictor.device), also=ALSO
        )
        for name, value in (("loss", loss.total(terms)), *terms.items()):
            sums[name] = sums.get(name, 0.0) + value.item() * pixels
        total += pixels
    means = {name: value / total for name, value in sums.items()}
    return Validation(means.pop("loss", float("nan")), means, confusion, example)
