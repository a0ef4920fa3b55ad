"""Validation compared with sums by hand, for a network with known logits."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers import tiled
from napari_strata.core.classes import IGNORE
from napari_strata.core.image import AnnotatedImage
from napari_strata.core.recipe import Training
from napari_strata.core.recipes import load_recipe
from napari_strata.core.spec import ModelSpec, resolve
from napari_strata.data.regions import LabelledRegion, labelled_regions
from napari_strata.models.device import Precision
from napari_strata.models.tiled import TiledPredictor
from napari_strata.training.losses import build_loss
from napari_strata.training.validation import load_truths, validate

Scene = Callable[..., AnnotatedImage]


class Threshold(nn.Module):
    """Two logits a pixel: the normalised grey value, and its negative."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([-images, images], dim=1)


def partly_labelled(pair: AnnotatedImage) -> AnnotatedImage:
    """9 (unlabelled) over half of the first plane, and all of the second."""
    labels = np.asarray(pair.labels.data).copy()
    labels[0, :, :20] = 9
    labels[1] = 9
    return AnnotatedImage(pair.image, pair.image.labels_like(labels))


def predictor_of(spec: ModelSpec) -> TiledPredictor:
    return tiled(
        Threshold(), spec, device=torch.device("cpu"), precision=Precision("fp32")
    )


def resolved(pair: AnnotatedImage, overrides: dict[str, Any]) -> ModelSpec:
    return resolve(
        load_recipe("default").with_overrides(overrides), pair, unlabelled=(9,)
    )


@pytest.mark.parametrize("grey_values", ["physical", "relative"])
def test_scores_equal_those_of_the_whole_planes_by_hand(
    scene: Scene, small: dict[str, Any], grey_values: str
) -> None:
    pair = partly_labelled(scene())
    spec = resolved(pair, small | {"normalization.grey_values": grey_values})
    training = Training(loss={"ce": 2.0})
    parts = labelled_regions(pair, spec.classes)
    assert len(parts) == 3
    found = validate(
        predictor_of(spec), load_truths(parts, spec), build_loss(training, classes=2)
    )

    scale = spec.normalization.scale_for(
        np.concatenate(pair.image.samples(), axis=1), np.uint8
    )
    total, pixels, counts = 0.0, 0, np.zeros((2, 2), int)
    for part in parts:
        grey = torch.from_numpy(scale.apply(part.read_image()))
        truth = torch.from_numpy(part.read_class_indices(spec.classes)).long()
        logits = torch.cat([-grey, grey])[None]
        total += (
            2
            * F.cross_entropy(
                logits, truth[None], ignore_index=IGNORE, reduction="sum"
            ).item()
        )
        labelled = truth != IGNORE
        pixels += int(labelled.sum())
        predicted = (grey[0] > 0).long()
        for row in (0, 1):
            for column in (0, 1):
                counts[row, column] += int(
                    ((truth == row) & (predicted == column) & labelled).sum()
                )
    assert pixels == 4 * 48 * 48 - 48 * 20 - 48 * 48
    assert found.loss == pytest.approx(total / pixels, rel=1e-5)
    assert found.confusion.counts.tolist() == counts.tolist()
    assert found.terms["ce"] == pytest.approx(total / pixels / 2, rel=1e-5)
    # Two classes: the binary cross-entropy is the cross-entropy. Both are reported though no loss asks for them.
    assert found.terms["bce"] == pytest.approx(found.terms["ce"], rel=1e-5)
    assert set(found.terms) == {"ce", "bce", "dice"}


def test_regions_without_labels_are_left_out(
    scene: Scene, small: dict[str, Any]
) -> None:
    pair = partly_labelled(scene())
    spec = resolved(pair, small)
    parts = [
        LabelledRegion(pair, {"Z": z}, (slice(None), slice(None)), str(z))
        for z in range(4)
    ]
    truths = load_truths(parts, spec)
    assert [truth.region.name for truth in truths] == ["0", "2", "3"]
    none = validate(predictor_of(spec), [], build_loss(Training(), classes=2))
    assert math.isnan(none.loss)
    assert math.isnan(none.confusion.mean_iou)
    assert none.terms == {}


def test_each_image_has_its_own_scale_if_grey_values_are_relative(
    scene: Scene, small: dict[str, Any]
) -> None:
    bright = scene(1)
    brighter = AnnotatedImage(
        bright.image.with_axes("ZYX"), bright.labels, name="brighter"
    )
    object.__setattr__(brighter.image, "data", np.asarray(bright.image.data) // 2 + 100)
    spec = resolved(scene(0), small | {"normalization.grey_values": "relative"})
    truths = load_truths(labelled_regions([bright, brighter], spec.classes), spec)
    centers = [truth.scale.center[0] for truth in truths]
    assert centers[:4] == [centers[0]] * 4
    assert centers[4:] == [pytest.approx(centers[0] / 2 + 100, abs=1)] * 4


def test_losses_that_a_gpu_has_no_room_for_are_computed_on_the_cpu(
    scene: Scene, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = scene(planes=2)
    spec = resolved(pair, small)
    loss = build_loss(Training(), classes=2)
    truths = load_truths(labelled_regions(pair, spec.classes), spec)
    wanted = validate(predictor_of(spec), truths, loss)
    full = predictor_of(spec)
    predict_logits = full.predict_logits

    def predict_then_fill(*arguments: Any) -> np.ndarray:
        logits = predict_logits(*arguments)
        full.predictor.device = torch.device("cuda")
        return logits

    to = Tensor.to

    def no_room(tensor: Tensor, device: Any, **options: Any) -> Tensor:
        if torch.device(device).type == "cpu":
            return to(tensor, device, **options)
        full.predictor.device = torch.device("cpu")  # the next region is predicted
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(full, "predict_logits", predict_then_fill)
    monkeypatch.setattr(Tensor, "to", no_room)
    found = validate(full, truths, loss)
    assert found.loss == wanted.loss
    assert found.terms == wanted.terms
