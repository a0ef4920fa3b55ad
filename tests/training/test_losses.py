"""Losses against oracles: torch, segmentation-models-pytorch, and sums done by hand."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
import segmentation_models_pytorch as smp
import torch
from torch import Tensor
from torch.nn import functional as F

from napari_strata.core.classes import IGNORE
from napari_strata.core.errors import RecipeError
from napari_strata.core.recipe import LossName, Training
from napari_strata.report.sections import LOSS_TITLES
from napari_strata.training import losses
from napari_strata.training.losses import LOSSES, Loss, build_loss

NAMES: tuple[LossName, ...] = get_args(LossName)


def some_batch(
    classes: int = 3, *, unlabelled: float = 0.4, seed: int = 0
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn((2, classes, 7, 9), generator=generator)
    labels = torch.randint(0, classes, (2, 7, 9), generator=generator).to(torch.uint8)
    labels[torch.rand(labels.shape, generator=generator) < unlabelled] = IGNORE
    return logits.requires_grad_(), labels


def loss_of(name: LossName, classes: int = 3, **training: Any) -> Loss:
    return build_loss(Training(loss={name: 1.0}, **training), classes=classes)


def test_every_loss_has_a_function_and_a_name_in_reports() -> None:
    assert set(LOSSES) == set(NAMES)
    assert set(LOSS_TITLES) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_unlabelled_pixels_influence_neither_loss_nor_gradient(name: LossName) -> None:
    loss = loss_of(name)
    logits, labels = some_batch()
    changed = logits.detach().clone()
    changed.movedim(1, -1)[labels == IGNORE] = torch.tensor(
        [float("nan"), float("inf"), -1e30]
    )
    changed.requires_grad_()
    first, second = loss(logits, labels), loss(changed, labels)
    first.backward()
    second.backward()
    assert torch.equal(first, second)
    assert logits.grad is not None
    assert changed.grad is not None
    assert torch.equal(logits.grad, changed.grad)
    assert not logits.grad.movedim(1, -1)[labels == IGNORE].any()
    assert logits.grad.movedim(1, -1)[labels != IGNORE].any()


@pytest.mark.parametrize("name", NAMES)
def test_batch_without_labels_is_exactly_zero_with_a_graph(name: LossName) -> None:
    logits = torch.full((2, 3, 4, 4), math.inf, requires_grad=True)
    value = loss_of(name)(logits, torch.full((2, 4, 4), IGNORE, dtype=torch.uint8))
    value.backward()
    assert value.item() == 0
    assert logits.grad is not None
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [1e4, 1e-4])
def test_extreme_logits_give_finite_losses_and_gradients(
    name: LossName, size: float
) -> None:
    logits = (
        size * torch.randn((1, 4, 6, 6), generator=torch.Generator().manual_seed(1))
    ).requires_grad_()
    labels = torch.arange(36).reshape(1, 6, 6) % 4
    for gamma in (0.5, 2.0):
        value = loss_of(name, 4, focal_gamma=gamma)(logits, labels)
        (gradient,) = torch.autograd.grad(value, logits)
        assert torch.isfinite(value)
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("name", NAMES)
def test_losses_are_float32_under_autocast(name: LossName) -> None:
    logits, labels = some_batch()
    plain = loss_of(name)(logits, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss_of(name)(logits, labels)
        half = loss_of(name)(logits.bfloat16(), labels)
    assert torch.equal(value, plain)
    assert half.dtype == torch.float32


@pytest.mark.parametrize("name", NAMES)
def test_a_certain_and_correct_network_has_no_loss_and_a_wrong_one_has(
    name: LossName,
) -> None:
    labels = torch.arange(64).reshape(1, 8, 8) % 3
    right = 60 * F.one_hot(labels, 3).movedim(-1, 1).float()
    assert loss_of(name)(right, labels).item() == pytest.approx(0, abs=1e-6)
    assert loss_of(name)(right.roll(1, dims=1), labels).item() > 0.9


@pytest.mark.parametrize("weights", ["none", (0.5, 2.0, 3.0)])
def test_cross_entropy_equals_torch(weights: Any) -> None:
    logits, labels = some_batch()
    given = None if weights == "none" else torch.tensor(weights)
    expected = F.cross_entropy(logits, labels.long(), weight=given, ignore_index=IGNORE)
    torch.testing.assert_close(
        loss_of("ce", class_weights=weights)(logits, labels), expected
    )


def test_binary_cross_entropy_of_two_classes_equals_that_of_one_logit() -> None:
    logits, labels = some_batch(2, unlabelled=0)
    expected = F.binary_cross_entropy_with_logits(
        logits[:, 1] - logits[:, 0], labels.float()
    )
    torch.testing.assert_close(loss_of("bce", 2)(logits, labels), expected)


def test_binary_cross_entropy_of_more_classes_equals_that_of_the_probabilities() -> (
    None
):
    logits, labels = some_batch(4, unlabelled=0)
    truth = F.one_hot(labels.long(), 4).movedim(-1, 1).double()
    expected = F.binary_cross_entropy(logits.double().softmax(1), truth)
    torch.testing.assert_close(
        loss_of("bce", 4)(logits, labels).double(), expected, rtol=1e-5, atol=0
    )


def test_class_weights_count_in_binary_cross_entropy_of_two_classes() -> None:
    logits, labels = some_batch(2, unlabelled=0)
    each = F.binary_cross_entropy_with_logits(
        logits[:, 1] - logits[:, 0], labels.float(), reduction="none"
    )
    weight = torch.where(labels == 1, 3.0, 1.0)
    expected = (each * weight).sum() / weight.sum()
    torch.testing.assert_close(
        loss_of("bce", 2, class_weights=(1.0, 3.0))(logits, labels), expected
    )


@pytest.mark.parametrize("gamma", [1.0, 2.0, 3.5])
def test_focal_of_two_classes_equals_smp(gamma: float) -> None:
    logits, labels = some_batch(2, unlabelled=0)
    oracle = smp.losses.FocalLoss("binary", gamma=gamma)
    expected = oracle((logits[:, 1] - logits[:, 0])[:, None], labels[:, None].float())
    torch.testing.assert_close(
        loss_of("focal", 2, focal_gamma=gamma)(logits, labels),
        expected,
        rtol=1e-5,
        atol=1e-7,
    )


def test_focal_with_gamma_zero_is_cross_entropy() -> None:
    logits, labels = some_batch()
    torch.testing.assert_close(
        loss_of("focal", focal_gamma=0.0)(logits, labels), loss_of("ce")(logits, labels)
    )


def test_lovasz_equals_smp_on_labelled_data_and_with_classes_missing() -> None:
    for seed, classes in ((0, 3), (1, 6)):
        logits, labels = some_batch(classes, unlabelled=0, seed=seed)
        labels[labels == 1] = 0
        expected = smp.losses.LovaszLoss("multiclass")(logits, labels.long())
        torch.testing.assert_close(loss_of("lovasz", classes)(logits, labels), expected)
        (ours,) = torch.autograd.grad(
            loss_of("lovasz", classes)(logits, labels), logits, retain_graph=True
        )
        (theirs,) = torch.autograd.grad(expected, logits)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)


def one_pixel_each() -> tuple[Tensor, Tensor]:
    """Two pixels and two classes, with probabilities 3/4 and 1/4 for class 0; both are of class 0."""
    return torch.tensor([[3.0, 1.0], [1.0, 3.0]]).log().T.reshape(
        1, 2, 1, 2
    ), torch.zeros((1, 1, 2), dtype=torch.int64)


def test_dice_by_hand_and_false_positives_of_an_absent_class_count() -> None:
    logits, labels = one_pixel_each()
    # Class 0: TP 1, FP 0, FN 1. Class 1, absent: TP 0, FP 1, FN 0. With 1 added above and below.
    expected = 1 - ((2 * 1 + 1) / (2 * 1 + 1 + 1) + (0 + 1) / (0 + 1 + 1)) / 2
    assert loss_of("dice", 2)(logits, labels).item() == pytest.approx(expected)
    surer = logits + torch.tensor([5.0, 0.0]).reshape(1, 2, 1, 1)
    probability = surer.softmax(1)[0, 1].sum().item()
    absent = 1 - 1 / (probability + 1)
    hits = surer.softmax(1)[0, 0].sum().item()
    present = 1 - (2 * hits + 1) / (hits + 2 + 1)
    assert loss_of("dice", 2)(surer, labels).item() == pytest.approx(
        (absent + present) / 2, rel=1e-5
    )


@pytest.mark.parametrize("alpha", [0.1, 0.7])
def test_tversky_by_hand(alpha: float) -> None:
    logits, labels = one_pixel_each()
    present = (1 + 0.5) / (1 + (1 - alpha) * 1 + 0.5)
    absent = 0.5 / (alpha * 1 + 0.5)
    value = loss_of("tversky", 2, tversky_alpha=alpha)(logits, labels).item()
    assert value == pytest.approx(1 - (present + absent) / 2)


SOME = {
    "ce": -(math.log(0.75) + math.log(0.5) + math.log(0.8)) / 3,
    "bce": -(math.log(0.75) + math.log(0.5) + math.log(0.8)) / 3,
    "focal": -(
        0.25**2 * math.log(0.75) + 0.5**2 * math.log(0.5) + 0.2**2 * math.log(0.8)
    )
    / 3,
    # Class 1 has TP 1.25, FP 0.2, FN 0.75; class 0 has TP 0.8, FP 0.75, FN 0.2.
    "dice": 1
    - (
        (2 * 1.25 + 1) / (2 * 1.25 + 0.2 + 0.75 + 1)
        + (2 * 0.8 + 1) / (2 * 0.8 + 0.75 + 0.2 + 1)
    )
    / 2,
    "tversky": 1
    - (
        1.75 / (1.25 + 0.3 * 0.2 + 0.7 * 0.75 + 0.5)
        + 1.3 / (0.8 + 0.3 * 0.75 + 0.7 * 0.2 + 0.5)
    )
    / 2,
    # Errors in falling order: of class 1 .5, .25 (hers), .2, where 1 - IoU rises by 1/2, 1/2, 0; of class 0
    # .5, .25, .2 (hers), where it rises by 1/2, 1/6, 1/3.
    "lovasz": (0.5 / 2 + 0.25 / 2 + 0.5 / 2 + 0.25 / 6 + 0.2 / 3) / 2,
}
"""Losses by hand of three labelled pixels of classes 1, 1, 0 with probabilities .75, .5, .2 of class 1."""


@pytest.mark.parametrize("name", NAMES)
def test_every_loss_by_hand_with_unlabelled_pixels(name: LossName) -> None:
    """The unlabelled pixels would change each loss: they are certain, and of both classes."""
    ones = torch.tensor([[0.75, 0.99, 0.5], [0.2, 0.01, 0.5]], dtype=torch.float64)
    labels = torch.tensor([[[1, IGNORE, 1], [0, IGNORE, IGNORE]]], dtype=torch.uint8)
    logits = torch.stack([1 - ones, ones]).log()[None].float()
    found = loss_of(name, 2, tversky_alpha=0.3, focal_gamma=2.0)(logits, labels)
    assert found.item() == pytest.approx(SOME[name], rel=1e-5)


@pytest.mark.parametrize("alpha", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("unlabelled", [0.0, 0.5])
def test_tversky_and_dice_equal_smp_on_labelled_pixels(
    alpha: float, unlabelled: float
) -> None:
    logits, labels = some_batch(3, unlabelled=unlabelled)
    options: dict[str, Any] = {"smooth": losses.SMOOTH, "ignore_index": IGNORE}
    expected = smp.losses.TverskyLoss(
        "multiclass", alpha=alpha, beta=1 - alpha, **options
    )(logits, labels.long())
    torch.testing.assert_close(
        loss_of("tversky", tversky_alpha=alpha)(logits, labels), expected
    )
    dice = smp.losses.DiceLoss("multiclass", **options)(logits, labels.long())
    torch.testing.assert_close(loss_of("dice")(logits, labels), dice)


def test_lovasz_and_focal_equal_smp_on_labelled_pixels() -> None:
    logits, labels = some_batch(2, unlabelled=0.5)
    lovasz = smp.losses.LovaszLoss("multiclass", ignore_index=IGNORE)(
        logits, labels.long()
    )
    torch.testing.assert_close(loss_of("lovasz", 2)(logits, labels), lovasz)
    focal = smp.losses.FocalLoss("binary", gamma=2.0, ignore_index=IGNORE)
    expected = focal((logits[:, 1] - logits[:, 0])[:, None], labels[:, None].float())
    torch.testing.assert_close(
        loss_of("focal", 2)(logits, labels), expected, rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize("weight", [0.5, 0.2])
def test_a_weighted_sum_of_bce_and_dice_equals_two_weights(weight: float) -> None:
    """Check w x BCE + (1 - w) x Dice."""
    logits, labels = some_batch(2)
    both = build_loss(Training(loss={"bce": weight, "dice": 1 - weight}), classes=2)(
        logits, labels
    )
    expected = weight * loss_of("bce", 2)(logits, labels) + (1 - weight) * loss_of(
        "dice", 2
    )(logits, labels)
    torch.testing.assert_close(both, expected)


def test_dice_equals_smp_where_every_class_occurs() -> None:
    logits, labels = some_batch(3, unlabelled=0)
    expected = smp.losses.DiceLoss("multiclass", smooth=losses.SMOOTH)(
        logits, labels.long()
    )
    torch.testing.assert_close(loss_of("dice")(logits, labels), expected)


def test_the_total_is_the_weighted_sum_of_the_terms() -> None:
    logits, labels = some_batch()
    loss = build_loss(Training(loss={"ce": 0.6, "dice": 0.4}), classes=3)
    terms = loss.terms(logits, labels, also=("bce", "ce"))
    assert list(terms) == ["ce", "dice", "bce"]
    for name, value in terms.items():
        assert torch.equal(value, loss_of(name)(logits, labels))
    torch.testing.assert_close(
        loss(logits, labels), 0.6 * terms["ce"] + 0.4 * terms["dice"]
    )


def test_balanced_weights_are_inverse_frequencies_of_mean_one() -> None:
    training = Training(class_weights="balanced")
    found = losses.class_weights(training, 3, (100, 300, 600))
    assert found is not None
    assert found.mean().item() == pytest.approx(1)
    assert (found * torch.tensor([100, 300, 600])).tolist() == pytest.approx(
        [found[0].item() * 100] * 3
    )
    absent = losses.class_weights(training, 3, (100, 0, 300))
    assert absent is not None
    assert absent.tolist() == pytest.approx([1.5, 1.0, 0.5])


def test_class_weights_that_do_not_fit_are_refused() -> None:
    with pytest.raises(RecipeError, match="2 numbers for 3 classes"):
        loss_of("ce", 3, class_weights=(1.0, 2.0))
    with pytest.raises(RecipeError, match="balanced"):
        loss_of("ce", 3, class_weights="balanced")


def test_all_names_of_the_recipe_have_a_loss() -> None:
    assert set(LOSSES) == set(NAMES)


def test_a_loss_can_be_registered_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "LOSSES", dict(LOSSES))

    @losses.register_loss("toy")
    def toy(logits: Tensor, labels: Tensor, options: losses.LossOptions) -> Tensor:
        return logits.sum() * 0 + options.training.focal_gamma * len(labels)

    training = Training(focal_gamma=2.0)
    training = training.model_copy(update={"loss": {"toy": 3.0, "ce": 1.0}})
    logits, labels = some_batch()
    labelled = int((labels != IGNORE).sum())
    expected = 6 * labelled + loss_of("ce")(logits, labels)
    total = build_loss(training, classes=3)(logits, labels)
    torch.testing.assert_close(total, expected)
