"""Batches hold normalised patches with labels in them, and depend on seed and epoch alone."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from napari_strata.core.classes import IGNORE, ClassMap
from napari_strata.core.errors import ImageError, LabelError
from napari_strata.core.image import AnnotatedImage, Image, LabelImage
from napari_strata.core.recipe import Recipe
from napari_strata.core.spec import resolve
from napari_strata.data import loader
from napari_strata.data import regions as regions_module
from napari_strata.data.loader import Batch, PatchSource, pad, pinned, resize
from napari_strata.data.regions import LabelledRegion, labelled_regions

CLASSES = ClassMap.from_values([0, 1, 3, 7], unlabelled=[0])


@pytest.fixture(autouse=True)
def _no_least(monkeypatch, request):
    if "least" not in request.node.name:
        monkeypatch.setattr(loader, "MIN_PATCHES", 1)


def test_a_small_stack_gives_at_least_so_many_patches():
    assert source(pair(*stack((1, 32, 32))))[0].patches == loader.MIN_PATCHES == 200
    assert source(pair(*stack((1, 32, 32))), patches__per_epoch=3)[0].patches == 3


def pair(image, labels, axes="ZYX", *, label_axes="", name="sand"):
    return AnnotatedImage(
        Image(image, axes, name=name), LabelImage(labels, label_axes or axes), name
    )


def stack(shape=(3, 70, 90), seed=0, dtype=np.uint16):
    rng = np.random.default_rng(seed)
    labels = rng.choice([0, 1, 3, 7], shape, p=[0.5, 0.3, 0.15, 0.05]).astype(np.uint8)
    return (rng.integers(0, 500, shape) + 300 * labels.astype(int)).astype(
        dtype
    ), labels


def recipe(**overrides):
    dotted = {
        "network.kind": "unet",
        "network.widths": (4, 8),
        "patches.size": 32,
        "training.batch_size": 4,
    }
    return Recipe().with_overrides(
        dotted | {k.replace("__", "."): v for k, v in overrides.items()}
    )


def source(pairs, parts=None, *, classes=CLASSES, **overrides):
    chosen = recipe(**overrides)
    spec = resolve(chosen, pairs, classes=classes)
    return PatchSource(
        labelled_regions(pairs, classes) if parts is None else parts, spec, chosen
    ), spec


def test_an_epoch_covers_the_planes_area_once_in_full_batches():
    patches, _ = source(pair(*stack()))
    assert patches.patches == int(np.ceil(3 * 70 * 90 / 32**2)) == 19
    assert len(patches) == 5
    batches = list(patches.epoch(1))
    assert [len(b.images) for b in batches] == [4, 4, 3, 4, 4]
    for images, labels in batches:
        assert images.shape[1:] == (1, 32, 32)
        assert labels.shape[1:] == (32, 32)
        assert (images.dtype, labels.dtype) == (torch.float32, torch.uint8)
        assert ((labels != IGNORE).flatten(1).any(1)).all()
        assert set(labels.unique().tolist()) <= {0, 1, 2, IGNORE}


@pytest.mark.parametrize(
    ("per_epoch", "sizes"), [(10, [3, 4, 3]), (2, [2]), (8, [4, 4])]
)
def test_the_recipe_may_say_how_many_patches(per_epoch, sizes):
    patches, _ = source(pair(*stack()), patches__per_epoch=per_epoch)
    found = [len(b.images) for b in patches.epoch(0)]
    assert sorted(found) == sorted(sizes)
    assert len(patches) == len(sizes)


def test_a_small_picture_still_fills_one_batch():
    patches, _ = source(pair(*stack((1, 40, 40))))
    assert [len(b.images) for b in patches.epoch(0)] == [4]


def test_grey_values_and_labels_lie_where_they_did_and_are_normalised():
    image, labels = stack((1, 64, 64))
    image[0] = np.arange(64 * 64).reshape(64, 64)  # each value tells its place
    patches, spec = source(pair(image, labels), normalization__grey_values="dtype")
    scale = spec.normalization.scale
    for images, codes in patches.epoch(3):
        for one, code in zip(images, codes, strict=True):
            values = np.rint(one[0].numpy() * scale.spread[0] + scale.center[0]).astype(
                int
            )
            top, left = divmod(int(values[0, 0]), 64)
            np.testing.assert_array_equal(
                values, image[0, top : top + 32, left : left + 32]
            )
            encoded = CLASSES.encode(labels[0, top : top + 32, left : left + 32])
            np.testing.assert_array_equal(code.numpy(), encoded)


def same(some, others):
    some, others = list(some), list(others)
    return len(some) == len(others) and all(
        torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels)
        for a, b in zip(some, others, strict=True)
    )


def test_an_epoch_depends_on_seed_and_epoch_alone():
    given = pair(*stack())
    first, _ = source(given)
    again, _ = source(given)
    for epoch in (1, 2):
        list(first.epoch(epoch))
    assert same(first.epoch(6), again.epoch(6))
    assert not same(first.epoch(6), first.epoch(7))
    other, _ = source(given, training__seed=1)
    assert not same(first.epoch(6), other.epoch(6))


def test_reading_patch_by_patch_gives_the_same_batches(monkeypatch):
    image, labels = stack(dtype=np.float32)
    image[1, 20:30] = np.nan
    given = pair(image, labels)
    held, _ = source(given)
    assert held._held is not None
    monkeypatch.setattr(loader, "HELD_BYTES", 1000)
    lazy, _ = source(given)
    assert lazy._held is None
    assert same(held.epoch(2), lazy.epoch(2))
    small_held, _ = source(given, patches__resize=32)
    monkeypatch.setattr(loader, "HELD_BYTES", 10**9)
    assert same(small_held.epoch(2), source(given, patches__resize=32)[0].epoch(2))


def test_holding_planes_read_strip_by_strip_gives_the_same_batches(monkeypatch):
    image, labels = stack(dtype=np.float32)
    image[1, 20:30] = np.nan
    at_once, _ = source(pair(image, labels))
    monkeypatch.setattr(regions_module, "STRIP_PIXELS", 500)
    strips, _ = source(pair(image, labels))
    assert same(at_once.epoch(1), strips.epoch(1))


def test_a_patch_is_read_from_a_large_image_and_not_the_plane(monkeypatch):
    image, labels = stack((1, 200, 200))
    read = []

    class Lazy:
        shape, dtype = image.shape, image.dtype

        def __getitem__(self, key):
            read.append(image[key].shape)
            return image[key]

    monkeypatch.setattr(loader, "HELD_BYTES", 1000)
    patches, _ = source(pair(Lazy(), labels))
    read.clear()
    next(patches.epoch(0))
    assert read
    assert set(read) == {(1, 32, 32)}


def test_pixels_that_are_not_finite_are_unlabelled_and_harmless():
    image, labels = stack((1, 64, 64), dtype=np.float32)
    labels[:] = 3
    image[0, ::3, ::2] = np.nan
    image[0, 1, 1] = np.inf
    patches, _ = source(pair(image, labels))
    for images, codes in patches.epoch(0):
        assert torch.isfinite(images).all()
        assert 0.1 < (codes == IGNORE).float().mean() < 0.3


def test_labels_beneath_unlabelled_change_no_batch():
    """Which of the unlabelled values a pixel has, and whether it has one at all, is the same."""
    image, labels = stack()
    classes = ClassMap(names=("a", "b", "c"), values=(1, 3, 7), unlabelled=(0, 9))
    other = np.where((labels == 0) & (np.arange(90) % 2 == 0), 9, labels)
    one, _ = source(pair(image, labels), classes=classes)
    two, _ = source(pair(image, other), classes=classes)
    assert not np.array_equal(labels, other)
    assert same(one.epoch(0), two.epoch(0))


def test_relative_grey_values_are_scaled_image_by_image():
    (dark, labels), (bright, more) = stack(seed=1), stack(seed=2)
    pairs = [
        pair(dark, labels, name="dark"),
        pair(bright * 10 + 5000, more, name="bright"),
    ]
    patches, _ = source(
        pairs,
        normalization__grey_values="relative",
        patches__balance=0.0,
        patches__per_epoch=60,
    )
    means = torch.cat([b.images.mean((1, 2, 3)) for b in patches.epoch(0)])
    assert means.abs().max() < 0.4  # no image stands out
    fixed, _ = source(
        pairs, normalization__grey_values="physical", patches__per_epoch=60
    )
    means = torch.cat([b.images.mean((1, 2, 3)) for b in fixed.epoch(0)])
    assert (means > 0.5).any()
    assert (means < -0.5).any()


def test_a_block_is_normalised_by_its_whole_image():
    image, labels = stack((1, 64, 64))
    image[0, :, :32] //= 4
    given = pair(image, labels)
    (plane,) = labelled_regions(given, CLASSES)
    patches, _ = source(
        given,
        [plane.block((slice(0, 64), slice(0, 32)))],
        normalization__grey_values="relative",
    )
    assert torch.cat([b.images for b in patches.epoch(0)]).mean() < -0.3


def test_patches_never_leave_their_block():
    image, labels = stack((1, 64, 128))
    image[0, :, 60:] = 60_000
    (plane,) = labelled_regions(pair(image, labels), CLASSES)
    patches, spec = source(
        pair(image, labels),
        [plane.block((slice(0, 64), slice(0, 60)))],
        normalization__grey_values="dtype",
    )
    seen = torch.cat([b.images for e in range(3) for b in patches.epoch(e)])
    assert seen.max() < 59_000 / 65_535
    assert spec.patch == 32


def test_a_plane_smaller_than_a_patch_is_mirrored_and_unlabelled_beyond():
    image = np.arange(20 * 24, dtype=np.uint16).reshape(1, 20, 24)
    labels = np.full_like(image, 3)
    patches, spec = source(pair(image, labels), normalization__grey_values="dtype")
    images, codes = next(patches.epoch(0))
    expected = np.pad(image[0], ((0, 12), (0, 8)), mode="reflect")
    values = images[0, 0].numpy() * spec.normalization.scale.spread[0]
    np.testing.assert_allclose(values, expected, atol=0.01)
    assert (codes[0, :20, :24] == 1).all()
    assert (codes[0] == IGNORE).sum() == 32 * 32 - 20 * 24


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (3, 2), (40, 1)])
def test_even_one_row_or_pixel_can_be_padded(shape):
    image, labels = np.full((2, *shape), 4.0, np.float32), np.zeros(shape, np.uint8)
    grown, codes = pad(image, labels, (16, 16))
    assert grown.shape == (2, max(16, shape[0]), max(16, shape[1]))
    assert (grown == 4).all()
    assert (codes == 0).sum() == labels.size
    assert (codes == IGNORE).sum() == codes.size - labels.size


def test_resized_planes_each_come_once_an_epoch_shuffled():
    image, labels = stack((9, 40, 60))
    labels[:] = 1
    for z in range(9):
        image[z] = 1000 * z
    patches, spec = source(
        pair(image, labels), patches__resize=48, normalization__grey_values="dtype"
    )
    assert len(patches) == 3
    orders = []
    for epoch in (1, 2):
        batches = list(patches.epoch(epoch))
        assert [len(b.images) for b in batches] == [3, 3, 3]
        assert batches[0].images.shape == (3, 1, 48, 48)
        values = (
            torch.cat([b.images.mean((1, 2, 3)) for b in batches])
            * spec.normalization.scale.spread[0]
        )
        orders.append(torch.round(values / 1000).int().tolist())
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(9))
    assert orders[0] != orders[1]


def test_resizing_smooths_the_image_and_takes_the_nearest_label():
    image = np.zeros((1, 64, 64), np.float32)
    image[0, ::4] = 4.0
    labels = np.random.default_rng(0).choice([0, 2, IGNORE], (64, 64)).astype(np.uint8)
    small, codes = resize(image, labels, 16)
    assert small.shape == (1, 16, 16)
    torch.testing.assert_close(small[0, 2:-2], torch.ones(12, 16), atol=0.02, rtol=0)
    assert codes.dtype == torch.uint8
    np.testing.assert_array_equal(codes, labels[2::4, 2::4])
    large, codes = resize(image, labels, 128)
    assert large.shape == (1, 128, 128)
    np.testing.assert_array_equal(codes[::2, 1::2], labels)


def test_another_number_of_channels_is_refused_by_name():
    image, labels = stack((1, 32, 32))
    given = pair(image, labels)
    chosen = recipe()
    spec = resolve(chosen, given, classes=CLASSES)
    rgba = pair(
        np.zeros((4, 32, 32), np.uint8),
        labels[0],
        "CYX",
        label_axes="YX",
        name="photo.png",
    )
    with pytest.raises(
        ImageError, match=r"^photo.png: found 4 channels, the model takes 1"
    ):
        PatchSource(labelled_regions(rgba, CLASSES), spec, chosen)


def test_channels_are_kept_in_order():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 50, (40, 40, 3)).astype(np.uint8) + np.array(
        [0, 80, 160], np.uint8
    )
    labels = np.full((40, 40), 3, np.uint8)
    patches, _ = source(
        pair(image, labels, "YXC", label_axes="YX"), normalization__grey_values="dtype"
    )
    means = next(patches.epoch(0)).images.mean((0, 2, 3))
    assert means[0] < 0.2 < means[1] < 0.5 < means[2]


def test_nothing_to_train_on_is_refused():
    given = pair(*stack())
    with pytest.raises(LabelError, match="nothing to train on"):
        source(given, [])
    empty = pair(stack()[0], np.zeros((3, 70, 90), np.uint8))
    with pytest.raises(LabelError, match="no labelled pixel to train on"):
        source(
            given,
            [LabelledRegion(empty, {"Z": 0}, (slice(None), slice(None)), "empty")],
        )


def test_dropping_the_iterator_ends_its_thread():
    patches, _ = source(pair(*stack()))
    batches = patches.epoch(0)
    next(batches)
    assert any(t.name.startswith("patches") for t in threading.enumerate())
    batches.close()
    assert not any(t.name.startswith("patches") for t in threading.enumerate())
    for _ in patches.epoch(1):
        break
    assert not any(t.name.startswith("patches") for t in threading.enumerate())


def test_an_error_while_reading_reaches_the_caller(monkeypatch):
    patches, _ = source(pair(*stack()))
    monkeypatch.setattr(
        patches, "_patch", lambda place: (_ for _ in ()).throw(OSError("disk gone"))
    )
    with pytest.raises(OSError, match="disk gone"):
        next(patches.epoch(0))


def test_plain_batches_repeat_and_do_not_balance_classes() -> None:
    rare = np.zeros((1, 256, 256), np.uint8)
    rare[0, :8, :8] = 1
    image = Image(np.arange(256 * 256, dtype=np.uint16).reshape(1, 256, 256), "ZYX")
    pair = AnnotatedImage(image, image.labels_like(rare))
    recipe = Recipe().with_overrides(
        {"patches.size": 32, "network.kind": "unet", "patches.balance": 1.0}
    )
    spec = resolve(recipe, [pair])
    source = PatchSource(labelled_regions([pair], spec.classes), spec, recipe)
    first, again = (list(source.plain(40, batch_size=16)) for _ in range(2))
    assert [len(b.images) for b in first] == [16, 16, 8]
    assert all(
        torch.equal(a.images, b.images) for a, b in zip(first, again, strict=True)
    )
    seen = torch.cat([b.labels for b in first])
    drawn = torch.cat([b.labels for b in source.epoch(0)])
    assert (seen == 1).flatten(1).any(1).float().mean() < 0.3
    assert (drawn == 1).flatten(1).any(1).float().mean() > 0.4


def test_batches_stay_where_they_are_when_memory_cannot_be_pinned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batch = Batch(torch.zeros(1, 1, 2, 2), torch.zeros(1, 2, 2, dtype=torch.uint8))

    def fail(tensor: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("CUDA error: OS call failed or operation not supported")

    monkeypatch.setattr(torch.Tensor, "pin_memory", fail)
    assert pinned(batch) is batch
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor + 1)
    assert pinned(batch).labels.max() == 1
