"""Volumes take the way of planes: read, drawn, padded, varied; a plane is a volume of one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_strata.core.classes import IGNORE, ClassMap
from napari_strata.core.errors import ImageError
from napari_strata.core.image import AnnotatedImage, Image, LabelImage
from napari_strata.core.recipe import Augmentation, Recipe
from napari_strata.core.spec import resolve
from napari_strata.data import loader
from napari_strata.data import regions as regions_module
from napari_strata.data.augmentation import Augmenter
from napari_strata.data.loader import PatchSource, pad
from napari_strata.data.regions import (
    LabelledRegion,
    count_labels,
    labelled_regions,
    spread_planes,
)
from napari_strata.data.sampling import Sampler

CLASSES = ClassMap.from_values([0, 1, 3, 7], unlabelled=[0])
ALL = {
    "rotation": 30, "scale": 0.3, "shear": 10, "elastic": 6, "brightness": 0.3, "contrast": 0.3, "gamma": 0.3,
    "noise": 0.2, "blur": 1.5, "probability": 0.7,
}  # fmt: skip
SHAPES = st.tuples(
    st.sampled_from([1, 2, 3, 7, 12]), st.integers(1, 30), st.integers(1, 30)
)


def pair(image, labels, axes="ZYX", name="sand"):
    return AnnotatedImage(Image(image, axes, name=name), LabelImage(labels, axes), name)


def stack(shape=(7, 20, 24), seed=0, dtype=np.uint16):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 1000, shape).astype(dtype), rng.choice(
        [0, 1, 3, 7], shape
    ).astype(np.uint8)


def volume(image, labels, box=(slice(None),) * 3):
    return LabelledRegion(pair(image, labels), {}, box, "sand")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@settings(deadline=None, max_examples=30)
@given(
    shape=SHAPES, seed=st.integers(0, 1000), strip=st.sampled_from([1, 7, 40, 2**24])
)
def test_a_volume_holds_what_its_planes_hold_however_it_is_read(shape, seed, strip):
    image, labels = stack(shape, seed, np.float32)
    image[tuple(n // 2 for n in shape)] = np.nan
    part = volume(image, labels)
    planes = [
        LabelledRegion(part.pair, {"Z": z}, (slice(None),) * 2, "plane")
        for z in range(shape[0])
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(regions_module, "STRIP_PIXELS", strip)
        found, codes = part.read(CLASSES)
        assert np.array_equal(
            found, np.stack([p.read_image() for p in planes], 1), equal_nan=True
        )
        np.testing.assert_array_equal(
            codes, np.stack([p.read_class_indices(CLASSES) for p in planes])
        )
        np.testing.assert_array_equal(
            count_labels(part, CLASSES).counts,
            sum(count_labels(p, CLASSES).counts for p in planes),
        )
        strips = list(part.strips())
        assert all(np.prod(s.shape) <= max(strip, shape[2]) for s in strips)
        flat = [s.read_class_indices(CLASSES).ravel() for s in strips]
        np.testing.assert_array_equal(np.concatenate(flat), codes.ravel())


def test_a_block_counts_from_its_own_corner():
    image, labels = stack()
    block = volume(image, labels, (slice(2, 6), slice(3, 18), slice(None))).block(
        (slice(1, 3), slice(0, 4), slice(5, 9))
    )
    assert (block.axes, block.shape, block.rows, block.columns) == (
        "ZYX",
        (2, 4, 4),
        slice(3, 7),
        slice(5, 9),
    )
    np.testing.assert_array_equal(block.read_image()[0], image[3:5, 3:7, 5:9])
    assert [plane.index for plane in spread_planes(block, 3)] == [{"Z": 3}, {"Z": 4}]
    np.testing.assert_array_equal(
        spread_planes(block, 1)[0].read_image()[0], image[4, 3:7, 5:9]
    )


def test_whole_gives_a_part_a_time_point_with_labels():
    image, labels = stack((3, 4, 8, 9))
    labels[1] = 0
    found = labelled_regions(pair(image, labels, "TZYX"), CLASSES, "ZYX")
    assert [(p.name, dict(p.index), p.shape) for p in found] == [
        ("sand T=0", {"T": 0}, (4, 8, 9)),
        ("sand T=2", {"T": 2}, (4, 8, 9)),
    ]
    np.testing.assert_array_equal(found[1].read_image()[0], image[2])
    np.testing.assert_array_equal(
        found[1].counts, [(labels[2] == v).sum() for v in (1, 3, 7)]
    )


def test_axes_in_any_order_and_channels():
    image, labels = stack((2, 5, 6, 7))
    given_ = AnnotatedImage(
        Image(image.transpose(3, 0, 1, 2), "XCZY"),
        LabelImage(labels[0].transpose(1, 2, 0), "YXZ"),
    )
    (part,) = labelled_regions(given_, CLASSES, "ZYX")
    np.testing.assert_array_equal(part.read_image(), image)
    np.testing.assert_array_equal(part.read_class_indices(CLASSES) == 2, labels[0] == 7)


def test_a_volume_of_three_planes_is_no_colour():
    classes = ClassMap.from_rgb([(255, 0, 0), (0, 0, 255)])
    labels = np.random.default_rng(0).integers(0, 2, (3, 4, 5)).astype(np.uint8)
    (part,) = labelled_regions(pair(labels, labels), classes, "ZYX")
    np.testing.assert_array_equal(part.read_class_indices(classes), labels)


@pytest.mark.parametrize(
    ("axes", "shape"), [("YX", (8, 9)), ("ZYX", (1, 8, 9)), ("TYX", (4, 8, 9))]
)
def test_a_single_plane_is_no_volume(axes, shape):
    image, labels = stack(shape)
    with pytest.raises(
        ImageError,
        match=r"sand: found a single plane .*3D; give a stack with an axis Z",
    ):
        labelled_regions(pair(image, labels, axes), CLASSES, "ZYX")


def sampler(volumes, size, seed=0):
    counts = np.array([[(v == k).sum() for k in range(3)] for v in volumes], np.int64)
    return Sampler(
        [[v] for v in volumes],
        shapes=[v.shape for v in volumes],
        counts=counts,
        size=size,
        seed=seed,
    )


@settings(deadline=None, max_examples=40)
@given(
    shapes=st.lists(SHAPES, min_size=1, max_size=3),
    size=st.tuples(
        st.integers(1, 9), st.sampled_from([8, 16]), st.sampled_from([8, 16])
    ),
    balance=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_patch_lies_inside_its_volume_and_holds_the_voxel_it_was_drawn_for(
    shapes, size, balance, seed
):
    rng = np.random.default_rng(seed)
    volumes = []
    for shape in shapes:
        one = np.full(shape, IGNORE, np.uint8)
        one[:: rng.integers(1, 4)] = rng.integers(0, 3, shape[1:])
        volumes.append(one)
    for place in sampler(volumes, size, seed).draw(15, rng, balance=balance):
        one = volumes[place.region]
        for along, at, side, length in zip(
            place.box, place.pixel, size, one.shape, strict=True
        ):
            assert 0 <= along.start <= at < along.stop <= length
            assert along.stop - along.start == min(side, length)
        assert one[place.pixel] == place.class_index


def test_voxels_of_one_plane_are_remembered_as_its_pixels():
    plane = np.random.default_rng(0).integers(0, 3, (30, 40)).astype(np.uint8)
    flat, deep = sampler([plane], (8, 8)), sampler([plane[None]], (1, 8, 8))
    for one, other in zip(flat.positions[0], deep.positions[0], strict=True):
        np.testing.assert_array_equal(one, other)


@settings(deadline=None, max_examples=40)
@given(
    shape=SHAPES,
    wanted=st.tuples(st.integers(1, 20), st.integers(1, 40), st.integers(1, 40)),
)
def test_padding_a_volume_is_padding_along_each_axis(shape, wanted):
    image, labels = stack(shape)
    grown, codes = pad(image[None], labels, wanted)
    assert grown.shape[1:] == codes.shape == tuple(np.maximum(shape, wanted))
    inside = tuple(slice(0, n) for n in shape)
    np.testing.assert_array_equal(grown[0][inside], image)
    np.testing.assert_array_equal(codes[inside], labels)
    outside = np.ones(codes.shape, bool)
    outside[inside] = False
    assert (codes[outside] == IGNORE).all()
    # Plane by plane, then repeated by reflection, is the same.
    flat, _ = pad(image[:1], labels[0], wanted[1:])
    np.testing.assert_array_equal(grown[0, 0], flat[0])
    if shape[0] == 1:
        assert (grown[0] == grown[0, :1]).all()


def source(pairs, **overrides):
    dotted = {
        "network.kind": "unet3d", "network.widths": (4, 8), "patches.size": 16, "patches.depth": 4,
        "training.batch_size": 3, "normalization.grey_values": "dtype",
    }  # fmt: skip
    chosen = Recipe().with_overrides(dotted | overrides)
    spec = resolve(chosen, pairs, classes=CLASSES)
    return PatchSource(labelled_regions(pairs, CLASSES, "ZYX"), spec, chosen), spec


def same(some, others):
    return all(
        torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels)
        for a, b in zip(some, others, strict=True)
    )


def test_patches_of_a_sparse_volume_lie_where_it_is_annotated():
    """Each grey value tells its place; slices in between are unlabelled in every patch, and in the counts."""
    shape = (13, 40, 40)
    image = np.arange(np.prod(shape), dtype=np.uint16).reshape(shape)
    full = stack(shape)[1]
    labels = np.zeros_like(full)
    labels[::5] = full[::5]
    patches, spec = source(pair(image, labels), **{"patches.per_epoch": 30})
    assert spec.patch_shape == (4, 16, 16)
    scale, seen = spec.normalization.scale, set()
    for images, codes in patches.epoch(1):
        assert images.shape[1:] == (1, 4, 16, 16)
        for one, code in zip(images, codes, strict=True):
            values = np.rint(one[0].numpy() * scale.spread[0] + scale.center[0]).astype(
                int
            )
            z, y, x = np.unravel_index(values[0, 0, 0], shape)
            box = slice(z, z + 4), slice(y, y + 16), slice(x, x + 16)
            np.testing.assert_array_equal(values, image[box])
            np.testing.assert_array_equal(code.numpy(), CLASSES.encode(labels[box]))
            assert (code != IGNORE).any()
            seen |= set(range(z, z + 4))
    assert seen == set(range(13))
    assert patches.regions[0].counts.sum() == (labels > 0).sum()


def test_a_volume_thinner_than_a_patch_is_padded_with_what_is_unlabelled():
    image, labels = stack((2, 12, 40))
    patches, _ = source(pair(image, np.maximum(labels, 1)))
    for images, codes in patches.plain(6, batch_size=3):
        assert images.shape[1:] == (1, 4, 16, 16)
        assert (codes[:, 2:] == IGNORE).all()
        assert (codes[:, :, 12:] == IGNORE).all()
        assert (codes[:, :2, :12] != IGNORE).all()


def test_an_epoch_covers_the_voxels_once(monkeypatch):
    monkeypatch.setattr(loader, "MIN_PATCHES", 1)
    patches, _ = source(pair(*stack((9, 50, 50))))
    assert patches.patches == int(np.ceil(9 * 50 * 50 / (4 * 16 * 16))) == 22


def test_held_and_lazy_volumes_give_the_same_batches(monkeypatch):
    image, labels = stack((9, 30, 31), dtype=np.float32)
    image[4, 10:20] = np.nan
    given_ = pair(image, labels)
    at_once = list(source(given_)[0].epoch(2))
    with monkeypatch.context() as patch:
        patch.setattr(loader, "HELD_BYTES", 1000)
        lazy, _ = source(given_)
        assert lazy._held is None
        assert same(lazy.epoch(2), at_once)
    monkeypatch.setattr(regions_module, "STRIP_PIXELS", 500)  # less than a plane
    assert same(source(given_)[0].epoch(2), at_once)


@settings(deadline=None, max_examples=20)
@given(
    seed=st.integers(0, 2**31),
    channels=st.integers(1, 3),
    side=st.sampled_from([(24, 24), (17, 30)]),
)
def test_a_volume_of_one_plane_is_varied_as_that_plane(seed, channels, side):
    images = torch.rand(3, channels, *side, generator=seeded(seed))
    labels = torch.randint(0, 3, (3, *side), generator=seeded(seed), dtype=torch.uint8)
    augment = Augmenter(Augmentation(**ALL, flip_depth=False), physical=False)
    flat, codes = augment(images, labels, seeded(seed))
    deep, deep_codes = augment(images[:, :, None], labels[:, None], seeded(seed))
    torch.testing.assert_close(deep[:, :, 0], flat, atol=1e-5, rtol=0)
    assert torch.equal(deep_codes[:, 0], codes)


def test_every_plane_moves_alike_and_labels_with_it():
    coarse = torch.randint(0, 4, (6, 5, 6, 6), generator=seeded(1))
    labels = coarse.repeat_interleave(4, 2).repeat_interleave(4, 3).to(torch.uint8)
    moves = {k: ALL[k] for k in ("rotation", "scale", "shear", "elastic")} | {
        "brightness": 0.0,
        "contrast": 0.0,
    }
    augment = Augmenter(
        Augmentation(**moves, probability=1.0, flip_depth=False), physical=False
    )
    moved, codes = augment(labels[:, None].float(), labels, seeded(3))
    for z in range(5):
        flat, flat_codes = augment(
            labels[:, z][:, None].float(), labels[:, z], seeded(3)
        )
        torch.testing.assert_close(moved[:, :, z], flat, atol=1e-5, rtol=0)
        assert torch.equal(codes[:, z], flat_codes)
    assert (codes == IGNORE).any()
    # Where no edge of a blob is near, the grey value is the label still.
    inside = codes != IGNORE
    assert ((moved[:, 0] - codes)[inside].abs() < 0.01).float().mean() > 0.5


def test_half_of_the_patches_are_mirrored_front_to_back_with_their_labels():
    labels = torch.randint(0, 4, (64, 3, 6, 6), generator=seeded(), dtype=torch.uint8)
    off = {
        "flip_horizontal": False,
        "flip_vertical": False,
        "quarter_turns": False,
        "brightness": 0,
        "contrast": 0,
    }
    moved, codes = Augmenter(Augmentation(**off), physical=False)(
        labels[:, None].float(), labels, seeded()
    )
    assert torch.equal(moved[:, 0], codes.float())
    turned = [torch.equal(a, b.flip(0)) for a, b in zip(codes, labels, strict=True)]
    assert all(
        t or torch.equal(a, b) for t, a, b in zip(turned, codes, labels, strict=True)
    )
    assert 20 < sum(turned) < 44


@settings(deadline=None, max_examples=25)
@given(shape=SHAPES, count_=st.integers(1, 4), seed=st.integers(0, 2**31))
def test_any_volume_keeps_its_shape_and_gets_no_new_label(shape, count_, seed):
    images = torch.rand(count_, 2, *shape, generator=seeded(seed))
    labels = torch.randint(
        0, 2, (count_, *shape), generator=seeded(seed), dtype=torch.uint8
    )
    moved, codes = Augmenter(Augmentation(**ALL), physical=False)(
        images, labels, seeded(seed)
    )
    assert (moved.shape, codes.shape) == (images.shape, labels.shape)
    assert torch.isfinite(moved).all()
    assert set(codes.unique().tolist()) <= {*labels.unique().tolist(), IGNORE}
