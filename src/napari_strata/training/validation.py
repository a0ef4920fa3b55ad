"""Validation: prediction of whole regions, scored by one confusion matrix.

The tiles are those of a prediction. A large volume is predicted in strips along Z, each
with a halo, so that only one strip is in memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from napari_strata.core.classes import IGNORE
from napari_strata.core.metrics import ConfusionMatrix
from napari_strata.core.normalization import Scale
from napari_strata.core.recipe import LossName
from napari_strata.core.spec import ModelSpec
from napari_strata.core.tiling import read_range, shared_halo, shared_stride
from napari_strata.data.neighbours import own_channels
from napari_strata.data.regions import LabelledRegion
from napari_strata.evaluation.pictures import Example
from napari_strata.models.memory import is_out_of_memory, release_cache
from napari_strata.models.tiled import TiledPredictor, class_indices
from napari_strata.training.losses import Loss

REPORTED_LOSSES: tuple[LossName, ...] = ("bce", "dice")
"""Losses that every validation reports, whatever the recipe trains on."""

STRIP_VOXELS = 2**24
"""Approximate number of voxels of a strip; smaller volumes are predicted whole."""


class Truth(NamedTuple):
    """Region to validate on, and data of it that do not change between epochs.

    Attributes
    ----------
    region
        The region that is scored.
    labels
        Class indices, uint8, of its shape.
    scale
        Scale of the grey values of its image.
    network_input
        Region that the network gets: `region`, or a strip with additional planes, which
        are not scored.
    """

    region: LabelledRegion
    labels: np.ndarray[Any, Any]
    scale: Scale
    network_input: LabelledRegion

    @property
    def keep(self) -> tuple[slice, ...]:
        """Position of the region in the input of the network."""
        starts = [bounds.start for bounds in self.network_input.box]
        return tuple(
            slice(bounds.start - start, bounds.stop - start)
            for bounds, start in zip(self.region.box, starts, strict=True)
        )

    def planes(self) -> Iterator[tuple[int, np.ndarray[Any, Any]]]:
        """Iterate over its planes: number along Z, and class indices (Y, X)."""
        if self.labels.ndim == 2:
            z = self.region.index.get("Z", 0)
            assert isinstance(z, int)
            yield z, self.labels
            return
        yield from enumerate(self.labels, self.region.box[0].start)


@dataclass(frozen=True)
class Validation:
    """Scores of a network on all validation regions.

    Attributes
    ----------
    loss
        Mean over regions, weighted by their labelled pixels; NaN without regions.
    terms
        The same mean for each loss.
    confusion
        Confusion matrix over all regions.
    example
        The first region, to draw a picture.
    """

    loss: float
    terms: dict[str, float]
    confusion: ConfusionMatrix
    example: Example | None = None


def load_truths(regions: Sequence[LabelledRegion], spec: ModelSpec) -> list[Truth]:
    """Read the labels of each region and measure the scale of each image.

    Regions without labels are left out.
    """
    scales: dict[int, Scale] = {}
    truths = []
    for region in regions:
        image = region.pair.image
        if id(image) not in scales:
            samples = np.concatenate(image.samples(), axis=1)
            scales[id(image)] = spec.normalization.scale_for(samples, image.dtype)
        for strip, network_input in _strips(region, spec):
            labels = strip.read_class_indices(spec.classes)
            if (labels != IGNORE).any():
                truths.append(Truth(strip, labels, scales[id(image)], network_input))
    return truths


def _strips(
    region: LabelledRegion, spec: ModelSpec
) -> list[tuple[LabelledRegion, LabelledRegion]]:
    """Cut a large volume into strips along Z; return each with its network input.

    A strip begins at a multiple of the network's stride, like a tile. The network input
    also has the halo. If a network blends its tiles, scores depend slightly on the
    positions of the strips.
    """
    if spec.depth is None or math.prod(region.shape) <= STRIP_VOXELS:
        return [(region, region)]
    depth, *plane = region.shape
    whole = [slice(0, length) for length in plane]
    halo, stride = shared_halo([spec]), shared_stride([spec])
    thickness = max(1, STRIP_VOXELS // math.prod(plane) // stride) * stride
    strips = []
    for begin in range(0, depth, thickness):
        write = slice(begin, min(begin + thickness, depth))
        read = read_range(write, depth, halo=halo, stride=stride)
        first = region.box[0].start
        name = f"{region.name} planes {first + write.start} to {first + write.stop - 1}"
        strips.append(
            (region.block((write, *whole), name=name), region.block((read, *whole)))
        )
    return strips


class Predicted(NamedTuple):
    """Prediction of a region.

    Attributes
    ----------
    truth
        The region and its labels.
    image
        Grey values (C, H, W), or (C, D, H, W) of a volume.
    logits
        float32 (K, H, W), or (K, D, H, W).
    indices
        Predicted class indices, uint8 (H, W), or (D, H, W).
    confusion
        Confusion matrix of this region.
    neighbours
        As in the spec.
    """

    truth: Truth
    image: np.ndarray[Any, Any]
    logits: np.ndarray[Any, Any]
    indices: np.ndarray[Any, Any]
    confusion: ConfusionMatrix
    neighbours: int = 0

    def example(self) -> Example:
        """Return the data for a picture."""
        region = self.truth.region
        return Example.of(
            region.name,
            own_channels(self.image, self.neighbours),
            self.truth.labels,
            prediction=self.indices,
            confusion=self.confusion,
            first=region.box[0].start,
        )


def iter_predicted(
    predictor: TiledPredictor, truths: Sequence[Truth]
) -> Iterator[Predicted]:
    """Predict the regions one by one, so that only one region is in memory."""
    for truth in truths:
        image = truth.network_input.read_image()
        logits = predictor.predict_logits(image, truth.scale)
        if truth.network_input is not truth.region:
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
    """Predict every region and score it on its labelled pixels.

    Overlap losses (Dice, Tversky, Lovasz) are computed over each whole region.
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
        terms = _loss_terms(loss, logits, labels, predictor.device)
        for name, value in (("loss", loss.total(terms)), *terms.items()):
            sums[name] = sums.get(name, 0.0) + value.item() * pixels
        total += pixels
    means = {name: value / total for name, value in sums.items()}
    return Validation(means.pop("loss", float("nan")), means, confusion, example)


def _loss_terms(
    loss: Loss, logits: Tensor, labels: Tensor, device: torch.device
) -> dict[LossName, Tensor]:
    """Compute the losses of a region on the device, or on the CPU without room there.

    They need several times the memory of the logits.
    """
    try:
        return loss.terms(logits.to(device), labels.to(device), also=REPORTED_LOSSES)
    except RuntimeError as error:
        if device.type == "cpu" or not is_out_of_memory(error):
            raise
    release_cache(device)
    return loss.terms(logits, labels, also=REPORTED_LOSSES)
