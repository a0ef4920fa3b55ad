from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from napari_strata.core import spec as spec_module
from napari_strata.core.classes import ClassMap
from napari_strata.core.errors import ImageError, LabelError
from napari_strata.core.image import AnnotatedImage, Image, LabelImage
from napari_strata.core.network_sections import AtrousUNet, Smp, UNet
from napari_strata.core.normalization import fixed, measure
from napari_strata.core.recipe import Recipe
from napari_strata.core.spec import ModelSpec, find_classes, resolve


def _pair(
    seed: int = 0,
    *,
    planes: int = 3,
    dtype: Any = np.uint8,
    center: float = 120,
    channels: int = 0,
    name: str = "a",
) -> AnnotatedImage:
    rng = np.random.default_rng(seed)
    shape = (planes, 40, 50)
    data = (
        rng.normal(center, 20, (*shape, channels) if channels else shape)
        .clip(0, 255)
        .astype(dtype)
    )
    image = Image(
        data,
        "ZYXC" if channels else "ZYX",
        scale=(2,) * data.ndim,
        units=("micrometer",) * data.ndim,
        name=name,
    )
    return AnnotatedImage(
        image, image.labels_like(rng.integers(1, 4, shape).astype(np.uint8))
    )


def _with_labels(
    labels: np.ndarray, classes: ClassMap | None = None, *, name: str = "a"
) -> AnnotatedImage:
    image = Image(np.random.default_rng(0).normal(size=labels.shape), name=name)
    return AnnotatedImage(image, LabelImage(labels, classes=classes))


def test_resolve_collects_the_facts() -> None:
    spec = resolve(Recipe(), _pair(dtype=np.uint16))
    assert (spec.in_channels, spec.dtype, spec.pixel_unit) == (
        1,
        "uint16",
        "micrometer",
    )
    assert spec.pixel_size == {"Z": 2, "Y": 2, "X": 2}
    assert spec.classes.values == (1, 2, 3)
    assert spec.network == Recipe().network
    assert (spec.patch, spec.stride) == (256, 32)
    assert spec.resize is None


def test_resolve_is_without_side_effects_and_repeats() -> None:
    pairs = [_pair(0), _pair(1)]
    before = [np.array(p.image.data) for p in pairs]
    assert resolve(Recipe(), pairs) == resolve(Recipe(), pairs)
    for pair, data in zip(pairs, before, strict=True):
        np.testing.assert_array_equal(pair.image.data, data)


def test_json_round_trip() -> None:
    for network in (UNet(), AtrousUNet(), Smp()):
        spec = resolve(Recipe(network=network), _pair(channels=3))
        assert ModelSpec.model_validate_json(spec.model_dump_json()) == spec


def test_nothing_to_train_on() -> None:
    with pytest.raises(ImageError, match="no pair of image and labels"):
        resolve(Recipe(), [])


def test_channel_counts_must_agree_even_when_names_do_too() -> None:
    with pytest.raises(ImageError, match=r"different channel counts \(a: 1, a: 3\)"):
        resolve(Recipe(), [_pair(), _pair(channels=3)])


NETWORKS = st.one_of(
    st.builds(UNet, widths=st.lists(st.just(4), min_size=2, max_size=6).map(tuple)),
    st.just(AtrousUNet()),
    st.builds(
        Smp, architecture=st.sampled_from(["unet", "deeplabv3plus", "segformer"])
    ),
)


@given(NETWORKS, st.integers(16, 600), st.none() | st.integers(16, 600))
def test_sizes_are_multiples_of_the_stride(
    network: Any, size: int, resize: int | None
) -> None:
    recipe = Recipe(network=network).with_overrides(
        {"patches.size": size, "patches.resize": resize}
    )
    spec = resolve(recipe, _pair(planes=1))
    assert (
        spec.patch % spec.stride
        == spec.tile % spec.stride
        == spec.halo % spec.stride
        == 0
    )
    assert size <= spec.patch < size + spec.stride
    if spec.blend or resize:
        wanted = resize or size
        assert wanted <= spec.tile < wanted + spec.stride
    else:
        assert spec.tile >= spec_module.TILE


def test_geometry() -> None:
    classic = UNet().geometry()
    assert (classic.stride, classic.whole_tile) == (16, False)
    assert UNet(widths=(8, 8, 8)).geometry().stride == 4
    assert (
        UNet(widths=(8, 8)).geometry().reach
        < UNet(widths=(8, 8, 8)).geometry().reach
        < classic.reach
    )
    assert UNet(norm="instance").geometry().whole_tile
    assert not AtrousUNet().geometry().whole_tile
    assert not Smp().geometry().whole_tile
    wide = [
        Smp(architecture="deeplabv3plus"),
        Smp(attention="scse"),
        Smp(encoder="mit_b0"),
        Smp(norm="group"),
    ]
    assert all(n.geometry().whole_tile for n in wide)


@pytest.mark.parametrize("kind", ["dtype", "imagenet"])
def test_grey_values_by_dtype(kind: Any) -> None:
    recipe = Recipe().with_overrides({"normalization.grey_values": kind})
    found = resolve(recipe, _pair(channels=3)).normalization
    assert found.kind == kind
    assert found.scale == fixed(kind, np.uint8, 3)


@pytest.mark.parametrize("kind", ["physical", "relative"])
def test_grey_values_measured_on_all_training_images(kind: Any) -> None:
    recipe = Recipe().with_overrides(
        {"normalization.grey_values": kind, "normalization.percentiles": (1, 99)}
    )
    pairs = [_pair(0), _pair(1, center=60)]
    found = resolve(recipe, pairs).normalization
    assert (found.kind, found.percentiles) == (kind, (1, 99))
    together = np.concatenate(
        [np.asarray(p.image.data).reshape(1, -1) for p in pairs], axis=1
    )
    assert found.scale == measure(together, (1, 99))


@pytest.mark.parametrize(
    ("pairs", "kind", "why"),
    [
        ([_pair(0), _pair(1)], "physical", "agree within"),
        ([_pair(0), _pair(1, center=60)], "relative", "planes differ by"),
        ([_pair(channels=3)], "relative", "several channels"),
        ([_pair(planes=1)], "relative", "one plane only"),
    ],
)
def test_auto_judges_from_the_images_and_says_so(
    pairs: list[AnnotatedImage], kind: str, why: str
) -> None:
    spec = resolve(Recipe(), pairs)
    assert spec.normalization.kind == kind
    assert why in spec.notes[0]
    assert f"grey values: {kind}" in spec.notes[0]


def test_auto_bears_nan_in_the_images() -> None:
    pairs = [_pair(s, dtype=np.float32) for s in range(2)]
    np.asarray(pairs[0].image.data)[0, :10] = np.nan
    np.asarray(pairs[1].image.data)[1, :10] = np.inf
    spec = resolve(Recipe(), pairs)
    assert spec.normalization.kind == "physical"
    np.testing.assert_allclose(spec.normalization.scale.center, 120, atol=1)


def test_many_pixels_are_thinned_not_hoarded(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = resolve(Recipe(), _pair()).normalization.scale
    monkeypatch.setattr(spec_module, "SAMPLES", 8)
    thinned = resolve(Recipe(), _pair()).normalization.scale
    assert thinned != whole
    np.testing.assert_allclose(thinned.center, whole.center, atol=2)
    np.testing.assert_allclose(thinned.spread, whole.spread, rtol=0.1)
    assert spec_module._thin(np.zeros((2, 10_000)), 1).shape == (2, 910)


def test_classes_come_from_the_values_of_all_label_images() -> None:
    pairs = [_with_labels(np.array([[0, 7]])), _with_labels(np.array([[3, 3]]))]
    assert find_classes(pairs).values == (0, 3, 7)
    assert find_classes(pairs, (0,)).values == (3, 7)
    assert find_classes(pairs, (0,)).unlabelled == (0,)
    with pytest.raises(LabelError, match="all unlabelled"):
        find_classes(pairs, (0, 3, 7))


def test_classes_carried_by_a_file_win_and_keep_their_names() -> None:
    carried = ClassMap(
        names=("none", "pore", "clay"),
        values=(0, 1, 2),
        colors=("#000000", "#111111", "#222222"),
    )
    pairs = [
        _with_labels(np.array([[0, 1]]), carried),
        _with_labels(np.array([[1, 1]])),
    ]
    assert find_classes(pairs) == carried
    less = find_classes(pairs, (0,))
    assert (less.names, less.unlabelled, less.colors) == (
        ("pore", "clay"),
        (0,),
        ("#111111", "#222222"),
    )
    other = ClassMap(names=("rock", "hole"), values=(0, 1))
    with pytest.raises(
        LabelError, match=r"different classes: .*rock.*give one class map"
    ):
        find_classes([*pairs, _with_labels(np.array([[0]]), other)])
    assert resolve(Recipe(), pairs, classes=other).classes == other


def test_labels_that_cannot_be_classes() -> None:
    with pytest.raises(LabelError, match="float64"):
        find_classes([_with_labels(np.array([[0.0, 0.33]]))])
    image = Image(np.zeros((4, 5)), name="roof")
    colours = LabelImage(np.zeros((4, 5, 3), np.uint8), "YXC")
    with pytest.raises(
        LabelError, match="roof: found colour-coded labels; name the colours"
    ):
        find_classes([AnnotatedImage(image, colours)])
