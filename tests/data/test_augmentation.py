"""Augmentation moves image and labels alike, makes no labels up, and does nothing when told nothing."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_strata.core.classes import IGNORE
from napari_strata.core.normalization import fixed
from napari_strata.core.recipe import Augmentation
from napari_strata.data import augmentation as module
from napari_strata.data.augmentation import Augmenter

OFF = {
    "flip_horizontal": False,
    "flip_vertical": False,
    "quarter_turns": False,
    "brightness": 0.0,
    "contrast": 0.0,
}
TURNS = {"flip_horizontal": True, "flip_vertical": True, "quarter_turns": True}
ALL = TURNS | {
    "rotation": 30, "scale": 0.3, "shear": 10, "elastic": 6, "brightness": 0.3, "contrast": 0.3, "gamma": 0.3,
    "noise": 0.2, "blur": 1.5, "probability": 0.7,
}  # fmt: skip


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def augmenter(*, physical=False, **items):
    return Augmenter(Augmentation(**(OFF | items)), physical=physical)


def alike(count=8, side=24, width=None, seed=0, blob=4):
    """Images whose grey values are their labels, in square blobs, so that both can be compared."""
    coarse = torch.randint(
        0, 4, (count, side // blob, (width or side) // blob), generator=seeded(seed)
    )
    labels = (
        coarse.repeat_interleave(blob, 1).repeat_interleave(blob, 2).to(torch.uint8)
    )
    return labels[:, None].float(), labels


def smooth(count=4, channels=1, side=32, seed=0):
    """Images without sharp edges, and labels that are all 0."""
    coarse = torch.rand(count, channels, 5, 5, generator=seeded(seed))
    images = torch.nn.functional.interpolate(
        coarse, (side, side), mode="bicubic", align_corners=True
    )
    return images, torch.zeros(count, side, side, dtype=torch.uint8)


def test_with_everything_off_nothing_is_touched_or_copied():
    images, labels = alike()
    generator = seeded()
    before = generator.get_state()
    out = augmenter()(images, labels, generator)
    assert out[0] is images
    assert out[1] is labels
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("name", ["flip_horizontal", "flip_vertical", "quarter_turns"])
def test_flips_and_turns_move_image_and_labels_alike(name):
    images, labels = alike(32)
    moved, codes = augmenter(**{name: True})(images, labels, seeded())
    assert torch.equal(moved[:, 0], codes.float())
    choices = {
        "flip_horizontal": [labels, labels.flip(-1)],
        "flip_vertical": [labels, labels.flip(-2)],
        "quarter_turns": [torch.rot90(labels, k, (-2, -1)) for k in range(4)],
    }[name]
    found = [[torch.equal(codes[i], c[i]) for c in choices] for i in range(32)]
    assert all(any(row) for row in found)
    assert all(any(row[k] for row in found) for k in range(len(choices)))


def test_all_eight_symmetries_come_up_evenly():
    images, labels = (
        torch.rand(1, 1, 6, 6).repeat(800, 1, 1, 1),
        torch.zeros(800, 6, 6, dtype=torch.uint8),
    )
    moved, _ = augmenter(**TURNS)(images, labels, seeded())
    expected = [module._symmetry(images[0], kind) for kind in range(8)]
    counts = [sum(torch.equal(m, e) for m in moved) for e in expected]
    assert sum(counts) == 800
    assert min(counts) > 60


def test_both_flips_make_half_a_turn():
    images, labels = alike(16)
    moved, _ = augmenter(flip_horizontal=True, flip_vertical=True)(
        images, labels, seeded()
    )
    for one, other in zip(images, moved, strict=True):
        assert any(
            torch.equal(other, c)
            for c in (one, one.flip(-1), one.flip(-2), one.flip((-1, -2)))
        )


def test_oblong_patches_turn_by_halves_only():
    images, labels = alike(32, 16, 24)
    moved, codes = augmenter(quarter_turns=True)(images, labels, seeded())
    assert moved.shape == images.shape
    turned = [torch.equal(codes[i], labels[i].flip((0, 1))) for i in range(32)]
    assert 0 < sum(turned) < 32
    assert all(t or torch.equal(codes[i], labels[i]) for i, t in enumerate(turned))


def test_what_is_given_is_not_changed():
    images, labels = alike()
    kept = images.clone(), labels.clone()
    augmenter(**ALL)(images, labels, seeded())
    assert torch.equal(images, kept[0])
    assert torch.equal(labels, kept[1])


def test_beyond_the_picture_is_unlabelled_and_not_background():
    images, labels = smooth(8, side=64)
    images += 5
    moved, codes = augmenter(rotation=45, probability=1)(images, labels, seeded(1))
    assert set(codes.unique().tolist()) == {0, IGNORE}
    assert (codes[:, 24:40, 24:40] == 0).all()  # the middle never leaves the picture
    assert (codes[:, 0, 0] == IGNORE).sum() >= 6
    assert torch.isfinite(moved).all()
    assert moved.min() >= images.min()  # continued by reflection, nothing made up
    assert moved.max() <= images.max()


def test_a_rotation_by_a_known_angle_takes_pixels_from_where_it_should():
    side = 33
    rows, columns = torch.meshgrid(
        torch.arange(side) - 16.0, torch.arange(side) - 16.0, indexing="ij"
    )
    turn = math.radians(30)
    matrix = torch.tensor(
        [[[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]]]
    )
    grid = module._grid((side, side), matrix, None, [])
    found = module._sampled(
        torch.stack([rows, columns])[None], grid, "bilinear", "border"
    )[0]
    wanted = torch.einsum("ij,jyx->iyx", matrix[0], torch.stack([rows, columns]))
    inside = wanted.abs().amax(0) <= 16
    assert inside.sum() > 700
    torch.testing.assert_close(found[:, inside], wanted[:, inside], atol=1e-4, rtol=0)


def test_the_grid_of_no_change_is_no_change_for_any_number_of_axes():
    for shape in ((9,), (6, 11), (4, 6, 5)):
        grid = module._grid(shape, torch.eye(len(shape))[None], None, [])
        assert grid.shape == (1, *shape, len(shape))
        for axis, length in enumerate(shape):
            centres = (2 * torch.arange(length) + 1) / length - 1
            found = (
                grid[0]
                .movedim(axis, 0)
                .reshape(length, -1, len(shape))[:, 0, len(shape) - 1 - axis]
            )
            torch.testing.assert_close(found, centres)


def test_scale_enlarges_and_shrinks_by_no_more_than_asked():
    matrices = module._matrices(500, Augmentation(scale=0.25, probability=1), seeded())
    zoom = matrices[:, 0, 0]
    assert torch.equal(matrices[:, 0, 1], torch.zeros(500))
    assert zoom.min() >= 1 / 1.25 - 1e-6
    assert zoom.max() <= 1.25 + 1e-6
    assert zoom.min() < 0.82
    assert zoom.max() > 1.23


def test_rotation_and_shear_stay_within_their_angles():
    turned = module._matrices(500, Augmentation(rotation=20, probability=1), seeded())
    angles = torch.rad2deg(torch.atan2(turned[:, 1, 0], turned[:, 0, 0]))
    assert 19 < angles.abs().max() <= 20.001
    assert angles.min() < 0 < angles.max()
    torch.testing.assert_close(torch.linalg.det(turned), torch.ones(500))
    slanted = module._matrices(500, Augmentation(shear=15, probability=1), seeded())
    assert 14 < torch.rad2deg(torch.atan(slanted[:, 1, 0])).abs().max() <= 15.001
    torch.testing.assert_close(torch.linalg.det(slanted), torch.ones(500))


def test_probability_is_the_share_of_samples_that_change():
    images, labels = smooth(400, side=16)
    for item in (
        {"rotation": 90},
        {"elastic": 5},
        {"noise": 1.0},
        {"gamma": 0.9},
        {"brightness": 1.0},
        {"blur": 3.0},
    ):
        moved, _ = augmenter(probability=0.3, **item)(images, labels, seeded())
        share = (moved != images).flatten(1).any(1).float().mean()
        assert share == pytest.approx(0.3, abs=0.07), item


def test_samples_that_are_not_chosen_stay_bit_for_bit():
    images, labels = alike(64)
    moved, codes = augmenter(
        rotation=40, elastic=4, noise=0.5, blur=2, gamma=0.5, probability=0.15
    )(images, labels, seeded())
    same = [
        (torch.equal(moved[i], images[i]), torch.equal(codes[i], labels[i]))
        for i in range(64)
    ]
    assert sum(a and b for a, b in same) > 20
    assert sum(not a for a, b in same) > 10


def test_image_and_labels_are_bent_alike():
    images, labels = alike(8, 128, blob=32)
    moved, codes = augmenter(
        elastic=6, rotation=25, scale=0.2, shear=10, probability=1
    )(images, labels, seeded())
    known = codes != IGNORE
    # Nearest and linear interpolation agree but for edges between blobs.
    agree = (moved[:, 0] - codes.float()).abs()[known] < 0.5
    assert agree.float().mean() > 0.98
    assert not torch.equal(codes, labels)
    assert set(codes.unique().tolist()) <= {0, 1, 2, 3, IGNORE}


def test_a_bend_moves_no_pixel_further_than_asked_and_never_folds():
    shape, most = (96, 80), 12.0
    knots = module._knots(shape, most)
    for weights, length in zip(knots, shape, strict=True):
        torch.testing.assert_close(weights.sum(1), torch.ones(length))
    for seed in range(20):
        bends = (
            module._within(
                (1, 2, knots[0].shape[1], knots[1].shape[1]), most, seeded(seed)
            ).sign()
            * most
        )
        grid = module._grid(shape, torch.eye(2)[None], bends, knots)[0]
        still = module._grid(shape, torch.eye(2)[None], None, [])[0]
        moved = (grid - still) * torch.tensor([shape[1], shape[0]]) / 2
        assert moved.abs().max() <= most + 1e-3
        across = (grid[:, 1:, 0] - grid[:, :-1, 0])[:-1]
        down = (grid[1:, :, 1] - grid[:-1, :, 1])[:, :-1]
        slant = (grid[1:, :, 0] - grid[:-1, :, 0])[:, :-1] * (
            grid[:, 1:, 1] - grid[:, :-1, 1]
        )[:-1]
        assert (across * down - slant > 0).all()  # the Jacobian determinant


def test_brightness_shifts_and_contrast_stretches_about_the_mean():
    images, labels = smooth(300)
    shifted, _ = augmenter(brightness=0.5, probability=1)(images, labels, seeded())
    difference = (shifted - images).flatten(1)
    torch.testing.assert_close(difference.std(1), torch.zeros(300), atol=1e-5, rtol=0)
    assert 0.48 < difference[:, 0].abs().max() <= 0.5001
    stretched, _ = augmenter(contrast=0.4, probability=1)(images, labels, seeded())
    torch.testing.assert_close(stretched.mean((1, 2, 3)), images.mean((1, 2, 3)))
    ratio = stretched.flatten(1).std(1) / images.flatten(1).std(1)
    assert 0.599 <= ratio.min() < 0.62
    assert 1.38 < ratio.max() <= 1.401


@pytest.mark.parametrize(("scale", "times"), [("dtype", 1.0), ("imagenet", 4.4)])
def test_brightness_in_albumentations_terms(scale, times):
    """RandomBrightnessContrast(brightness_limit=b, contrast_limit=0) adds up to b * 255 to 8-bit grey values."""
    limit = 0.2
    picture = torch.randint(
        0, 256, (3, 16, 16), generator=seeded(), dtype=torch.uint8
    ).numpy()
    spread = torch.tensor(fixed(scale, "uint8", 3).spread).reshape(3, 1, 1)
    images = torch.from_numpy(fixed(scale, "uint8", 3).apply(picture)).expand(
        400, 3, 16, 16
    )
    labels = torch.zeros(400, 16, 16, dtype=torch.uint8)
    shifted, _ = augmenter(brightness=limit * times, probability=1)(
        images, labels, seeded()
    )
    moved = ((shifted - images) * spread).amax((1, 2, 3))  # in grey values of the file
    assert moved.max() == pytest.approx(limit * 255, rel=0.02)
    assert moved.std() == pytest.approx(
        2 * limit * 255 / 12**0.5, rel=0.1
    )  # evenly spread, as theirs


def test_contrast_in_albumentations_terms_stretches_by_the_same_share():
    """contrast_limit=c multiplies by 1 - c to 1 + c about black; ours about the mean, which stays."""
    images, labels = smooth(400)
    stretched, _ = augmenter(contrast=0.2, probability=1)(images, labels, seeded())
    mean = images.mean((2, 3), keepdim=True)
    factor = ((stretched - mean) / (images - mean)).flatten(1).median(1).values
    assert 0.8 <= factor.min() < 0.81
    assert 1.19 < factor.max() <= 1.2001
    theirs = images * factor.reshape(-1, 1, 1, 1)
    torch.testing.assert_close(
        stretched - theirs, (mean * (1 - factor.reshape(-1, 1, 1, 1))).expand_as(images)
    )


def test_flips_are_those_of_albumentations():
    """HorizontalFlip(p=0.5) mirrors left and right, VerticalFlip(p=0.5) top and bottom."""
    images, labels = alike(200, side=8, blob=1)
    for name, axis in (("flip_horizontal", -1), ("flip_vertical", -2)):
        flipped, codes = augmenter(**{name: True})(images, labels, seeded())
        mirrored = [
            torch.equal(a, b.flip(axis)) for a, b in zip(flipped, images, strict=True)
        ]
        assert 70 < sum(mirrored) < 130
        for i, yes in enumerate(mirrored):
            assert torch.equal(codes[i], labels[i].flip(axis) if yes else labels[i])


def test_gamma_keeps_order_and_ends_of_each_channel():
    images, labels = smooth(50, channels=2)
    bent, _ = augmenter(gamma=0.8, probability=1)(images, labels, seeded())
    torch.testing.assert_close(bent.amin((2, 3)), images.amin((2, 3)))
    torch.testing.assert_close(bent.amax((2, 3)), images.amax((2, 3)))
    order = images.flatten(2).argsort(2)
    assert (bent.flatten(2).gather(2, order).diff(dim=2) >= -1e-6).all()
    assert (bent - images).abs().max() > 0.05


def test_a_constant_image_stays_finite_and_constant_under_grey_items():
    images, labels = (
        torch.full((8, 1, 20, 20), 3.0),
        torch.zeros(8, 20, 20, dtype=torch.uint8),
    )
    out, _ = augmenter(gamma=0.5, contrast=0.5, blur=2, probability=1)(
        images, labels, seeded()
    )
    torch.testing.assert_close(out, images)


def test_noise_is_as_strong_as_asked():
    images, labels = (
        torch.zeros(200, 1, 32, 32),
        torch.zeros(200, 32, 32, dtype=torch.uint8),
    )
    noisy, _ = augmenter(noise=0.8, probability=1)(images, labels, seeded())
    spread = noisy.flatten(1).std(1)
    assert 0.7 < spread.max() < 0.88
    assert spread.min() < 0.05
    assert abs(float(noisy.mean())) < 0.01


def test_noise_does_not_depend_on_the_number_of_threads(monkeypatch):
    images, labels = smooth(6, side=17)
    once = augmenter(**ALL)(images, labels, seeded())
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    again = augmenter(**ALL)(images, labels, seeded())
    torch.testing.assert_close(once[0], again[0])
    assert torch.equal(once[1], again[1])


def test_blur_is_a_gaussian_that_keeps_the_sum():
    images = torch.zeros(2, 1, 41, 41)
    images[:, :, 20, 20] = 1
    sigma = torch.tensor([1.5, 3.0])
    blurred = module._blurred(images, sigma)[:, 0]
    torch.testing.assert_close(blurred.sum((1, 2)), torch.ones(2))
    offsets = torch.arange(41.0) - 20
    for one, wanted in zip(blurred, sigma, strict=True):
        for axis in (0, 1):
            profile = one.sum(axis)
            assert (profile * offsets).sum() == pytest.approx(0, abs=1e-5)
            assert (profile * offsets**2).sum().sqrt() == pytest.approx(
                float(wanted), rel=0.03
            )


def test_physical_grey_values_are_left_alone():
    images, labels = smooth(16)
    items = {"brightness": 1.0, "contrast": 0.9, "gamma": 0.9, "probability": 1.0}
    out, _ = augmenter(physical=True, **items)(images, labels, seeded())
    assert out is images
    assert not torch.equal(augmenter(**items)(images, labels, seeded())[0], images)
    turned, codes = augmenter(physical=True, **items, **TURNS)(*alike(), seeded())
    assert torch.equal(turned[:, 0], codes.float())
    assert not torch.equal(
        augmenter(physical=True, noise=1.0, probability=1)(images, labels, seeded())[0],
        images,
    )


@settings(deadline=None, max_examples=30)
@given(
    channels=st.integers(1, 5),
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    count=st.integers(1, 5),
    seed=st.integers(0, 2**31),
)
def test_any_size_and_channel_count_keeps_its_shape_and_makes_no_label_up(
    channels, shape, count, seed
):
    images = torch.rand(count, channels, *shape, generator=seeded(seed))
    labels = torch.randint(
        0, 3, (count, *shape), generator=seeded(seed), dtype=torch.uint8
    )
    labels[labels == 1] = IGNORE
    moved, codes = augmenter(**ALL)(images, labels, seeded(seed))
    assert moved.shape == images.shape
    assert moved.dtype == images.dtype
    assert codes.shape == labels.shape
    assert codes.dtype == torch.uint8
    assert torch.isfinite(moved).all()
    assert set(codes.unique().tolist()) <= {*labels.unique().tolist(), IGNORE}


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**31))
def test_grey_values_beneath_ignore_and_labels_do_not_touch_each_other(seed):
    """Labels decide nothing about the image, and what lies beneath IGNORE nothing about the labels."""
    images, labels = alike(seed=seed % 97)
    other = labels.clone()
    other[:, 5:9] = IGNORE
    first, again = (
        augmenter(**ALL)(images, codes, seeded(seed)) for codes in (labels, other)
    )
    assert torch.equal(first[0], again[0])
    assert ((first[1] == again[1]) | (again[1] == IGNORE)).all()


def test_the_generator_alone_decides_and_goes_on_from_its_state():
    images, labels = smooth(6)
    generator = seeded(5)
    augmenter(**ALL)(images, labels, generator)
    state = generator.get_state()
    second = augmenter(**ALL)(images, labels, generator)
    resumed = torch.Generator()
    resumed.set_state(state)
    torch.manual_seed(123)  # the global one has no say
    again = augmenter(**ALL)(images, labels, resumed)
    assert torch.equal(second[0], again[0])
    assert torch.equal(second[1], again[1])


@pytest.mark.gpu
def test_choices_are_the_same_on_a_gpu():
    images, labels = smooth(16)
    items = ALL | {"noise": 0.0}
    here = augmenter(**items)(images, labels, seeded())
    there = augmenter(**items)(images.cuda(), labels.cuda(), seeded())
    torch.testing.assert_close(there[0].cpu(), here[0], atol=1e-3, rtol=0)
    assert (there[1].cpu() == here[1]).float().mean() > 0.999
