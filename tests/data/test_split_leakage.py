"""A split that leaks, or validates on too little, is told; ordinary pictures raise no alarm."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow
from scipy.ndimage import gaussian_filter

from napari_strata.core.classes import ClassMap
from napari_strata.core.image import AnnotatedImage, Image
from napari_strata.data import leakage
from napari_strata.data.leakage import Traces, find_leaks, too_small
from napari_strata.data.regions import labelled_regions
from napari_strata.data.split import split_given, split_pairs

CLASSES = ClassMap(names=("dark", "bright"), values=(0, 1))
DATA = Path(__file__).parents[3] / "shared" / "data"


def texture(shape, seed=0, *, blur=1.5, bits=8):
    """Correlated noise with a little noise on it, as scanners make it."""
    rng = np.random.default_rng(seed)
    field = gaussian_filter(rng.normal(size=shape), blur)
    grey = 128 + 40 * field / field.std() + rng.normal(0, 3, shape)
    return grey.clip(0, 255).astype(np.uint8) if bits == 8 else grey.astype(np.float32)


def parts(stack, name="sand", axes="ZYX"):
    image = Image(stack, axes, name=name)
    grey = stack if "C" not in axes else stack.mean(axis=axes.index("C"))
    return labelled_regions(
        AnnotatedImage(image, image.labels_like((grey > 128).astype(np.uint8))), CLASSES
    )


def patches(seed, side=64, count=5):
    """`count` x `count` patches of one picture, row by row."""
    whole_picture = texture((side * count, side * count), seed)
    return [
        whole_picture[y * side : (y + 1) * side, x * side : (x + 1) * side]
        for y in range(count)
        for x in range(count)
    ]


def shuffled(ones, share=0.2, seed=0):
    order = np.random.default_rng(seed).permutation(len(ones))
    held = round(share * len(ones))
    return [ones[i] for i in order[held:]], [ones[i] for i in order[:held]]


def test_patches_of_one_picture_on_both_sides_are_found():
    learn, check = shuffled(parts(np.stack(patches(0) + patches(1))))
    (text,) = find_leaks(learn, check)
    assert text.startswith(
        "10 of 10 validation patches continue a patch that trains, such as sand Z="
    )
    assert "cut from the same picture" in text


def test_patches_split_by_their_picture_are_not():
    stack = parts(np.stack(patches(0) + patches(1)))
    assert find_leaks(stack[:25], stack[25:]) == []


def test_patches_in_colour_and_float_with_holes_are_found_as_well():
    grey = np.stack(patches(0)).astype(np.float32)
    grey[:, 30, 30] = np.nan
    coloured = np.stack([np.stack(patches(0)), 255 - np.stack(patches(0))], axis=1)
    coloured[:, 1] //= 2
    for stack, axes in ((grey, "ZYX"), (coloured, "ZCYX")):
        learn, check = shuffled(
            parts(np.nan_to_num(stack) if axes == "ZCYX" else stack, axes=axes)
        )
        assert len(find_leaks(learn, check)) == 1


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("blur", [0.7, 2, 6])
def test_independent_pictures_raise_no_alarm(seed, blur):
    stack = np.stack([texture((64, 64), 1000 * seed + i, blur=blur) for i in range(40)])
    learn, check = shuffled(parts(stack), seed=seed)
    assert find_leaks(learn, check) == []


def test_pictures_with_the_same_frame_shading_and_bar_raise_no_alarm():
    ramp = np.linspace(0, 60, 96)[:, None] + np.linspace(0, 30, 96)
    bar = (
        np.random.default_rng(5).integers(0, 2, (9, 96)) * 255
    )  # a scale bar with text, a tenth of the height
    stack = np.stack(
        [(0.6 * texture((96, 96), i) + ramp).astype(np.uint8) for i in range(30)]
    )
    stack[:, -9:] = bar
    stack[:, :3] = stack[:, :, :3] = 0
    assert find_leaks(*shuffled(parts(stack))) == []


def test_empty_and_flat_pictures_raise_no_alarm():
    stack = np.zeros((20, 48, 48), np.uint8)
    stack[:, 20:24, 20:24] = 200  # one dead spot, at the same place in all
    image = Image(stack, "ZYX")
    ones = labelled_regions(
        AnnotatedImage(image, image.labels_like((stack > 0).astype(np.uint8))), CLASSES
    )
    assert find_leaks(ones[:15], ones[15:]) == []


def test_overlapping_patches_are_found_and_where():
    picture = texture((96, 400))
    strides = np.stack([picture[:, x : x + 96] for x in range(0, 305, 48)])
    ones = parts(strides)
    (text,) = find_leaks(ones[::2], ones[1::2])
    assert text.startswith(
        "3 of 3 validation planes hold pixels that train as well, such as sand Z=1 "
        "(also in sand Z="
    )


def test_a_copy_under_another_name_is_found():
    one, other = texture((3, 64, 64), 1), texture((4, 64, 64), 2)
    other[2] = one[1]
    (text,) = find_leaks(parts(one, "first"), parts(other, "second"))
    assert text.startswith(
        "1 of 4 validation planes hold pixels that train as well, such as second Z=2 "
        "(also in first Z=1)"
    )


def test_a_compressed_copy_is_found():
    one, other = texture((3, 128, 128), 1), texture((4, 128, 128), 2)
    file = io.BytesIO()
    Pillow.fromarray(one[1]).save(file, "JPEG", quality=85)
    other[2] = np.asarray(Pillow.open(file))
    assert not np.array_equal(other[2], one[1])
    (text,) = find_leaks(parts(one, "first"), parts(other, "second"))
    assert text.startswith(
        "1 of 4 validation planes look nearly like one that trains, such as second Z=2 "
        "and first Z=1"
    )


def test_neighbours_in_a_thin_stack_are_alike_and_in_a_coarse_one_are_not():
    for thickness, leaks in ((0.5, False), (6, True)):
        field = gaussian_filter(
            np.random.default_rng(0).normal(size=(12, 96, 96)), (thickness, 2, 2)
        )
        stack = (128 + 40 * field / field.std()).clip(0, 255).astype(np.uint8)
        ones = parts(stack)
        assert bool(find_leaks(ones[::2], ones[1::2])) is leaks


def test_what_is_known_of_parts_serves_another_split(monkeypatch):
    ones = parts(np.stack(patches(0)))
    traces = Traces(ones)
    first = find_leaks(*shuffled(ones, seed=1), traces=traces)
    monkeypatch.setattr(leakage, "_trace", lambda part: pytest.fail("looked at again"))
    assert find_leaks(*shuffled(ones, seed=1), traces=traces) == first
    assert find_leaks(*shuffled(ones, seed=2), traces=traces)


def test_of_very_many_pixels_evenly_chosen_planes_are_looked_at(monkeypatch):
    ones = parts(np.stack(patches(0)))
    looked = []
    monkeypatch.setattr(leakage, "PIXELS_READ", 64 * 64 * 10)
    known = leakage._trace
    monkeypatch.setattr(
        leakage, "_trace", lambda part: looked.append(part) or known(part)
    )
    find_leaks(ones[:20], ones[20:])
    assert len(looked) == 7 + 2


def test_a_split_says_what_leaks():
    stack = np.stack(
        patches(0)[:8]
    )  # eight in a row are taken for slices, and scattered
    image = Image(stack, "ZYX", name="sand")
    pair = AnnotatedImage(image, image.labels_like((stack > 128).astype(np.uint8)))
    copy = AnnotatedImage(
        Image(stack[:2].copy(), "ZYX", name="copy"),
        image.labels_like(pair.labels.data[:2]),
    )
    assert any(
        "2 of 2 validation planes hold pixels" in w
        for w in split_given(pair, copy, CLASSES).warnings
    )
    thick = np.repeat(texture((4, 64, 64)), 2, axis=0) + np.random.default_rng(
        0
    ).integers(0, 3, (8, 64, 64), np.uint8)
    image = Image(thick, "ZYX", name="sand")
    pair = AnnotatedImage(image, image.labels_like((thick > 128).astype(np.uint8)))
    found = split_pairs(pair, fraction=0.25, seed=0, classes=CLASSES)
    assert any("look nearly like one that trains" in text for text in found.warnings)


def test_too_little_to_validate_on():
    large, small = parts(texture((9, 80, 80))), parts(texture((1, 60, 60)))
    assert too_small(large[2:], large[:2], CLASSES) == []
    assert too_small(large, [], CLASSES) == []
    (few, one) = too_small(large, small, CLASSES)
    assert few.startswith(
        "validation has 3600 labelled pixels in all, too few to say much (below 5000"
    )
    assert one.startswith("one plane of 10 validates")
    (alone,) = too_small(large[1:], large[:1], CLASSES)
    assert alone.startswith("one plane of 9 validates")
    assert too_small(large[2:], large[:1], CLASSES) == []  # one of eight


def test_a_class_with_few_pixels_is_named():
    labels = np.zeros((2, 80, 80), np.uint8)
    labels[:, :1, :60] = 1
    image = Image(texture(labels.shape), "ZYX")
    ones = labelled_regions(AnnotatedImage(image, image.labels_like(labels)), CLASSES)
    (text,) = too_small([], ones, CLASSES)
    assert text.startswith(
        "validation has fewer than 200 labelled pixels of 'bright' (120)"
    )


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no real data in {DATA}")
def test_the_patches_of_the_sandstone_are_found_and_the_satellite_pictures_are_not():
    from napari_strata.core.spec import find_classes
    from napari_strata.io import read_pairs

    for folder, images, masks, leaks in (
        ("sandstone", "patches_images.tif", "patches_masks.tif", True),
        ("water", "images.tif", "masks.tif", False),
    ):
        pairs = read_pairs(DATA / folder / images, DATA / folder / masks)
        ones = labelled_regions(pairs, find_classes(pairs))
        assert bool(find_leaks(*shuffled(ones))) is leaks
        if leaks:
            table = np.loadtxt(
                DATA / folder / "patches.csv", delimiter=",", skiprows=1, dtype=int
            )
            for number in np.unique(table[:, 1]):
                rest, slice_ = ([one for one, z in zip(ones, table[:, 1], strict=True) if (z == number) == held]
                                for held in (False, True))  # fmt: skip
                assert len(rest) > 100
                assert len(slice_) > 20
                assert find_leaks(rest, slice_) == []
