"""Fractions, profiles and regions of interest, against images that are drawn here."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import napari_strata as ns
from helpers import easy_pair, tiny_model
from napari_strata.cli import app
from napari_strata.core.classes import ClassMap
from napari_strata.core.errors import ImageError, LabelError, RunError
from napari_strata.core.image import LabelImage
from napari_strata.measure.region import find_specimen

ROCK = ClassMap(names=("pore", "clay", "quartz"), values=(1, 2, 3), unlabelled=(0,))


def disc(side: int, radius: float) -> Any:
    y, x = np.indices((side, side)) - (side - 1) / 2
    return np.hypot(y, x) <= radius


def core(side: int = 100, radius: float = 40) -> Any:
    """A specimen of quartz in air (1, as its pores), with a pore that is open to it."""
    plane = np.where(disc(side, radius), 3, 1).astype(np.uint8)
    middle = side // 2
    plane[middle : middle + 6, middle - int(radius) - 1 : middle] = 1
    plane[middle + 8, middle + 8] = 2
    plane[2, 2] = 2  # a wrong pixel in the air
    return plane


def rock(data: Any, axes: str = "", **options: Any) -> LabelImage:
    data = np.asarray(data)
    letters = axes or "TZYX"[-data.ndim :]
    options.setdefault("classes", ROCK)
    return LabelImage(
        data,
        letters,
        scale=(2.0,) * data.ndim,
        units=("micrometer",) * data.ndim,
        name="rock",
        **options,
    )


def test_the_package_measure_is_the_function_too() -> None:
    import napari_strata.measure.objects  # noqa: F401

    assert ns.measure(rock(np.full((2, 2), 3, np.uint8))).voxels == 4


def test_unlabelled_pixels_count_nowhere() -> None:
    data = np.array([[0, 0, 1, 2], [3, 3, 3, 1]], np.uint8)
    measures = ns.measure(rock(data))
    assert measures.voxels == 6
    shares = {name: one.count for name, one in measures.fractions.items()}
    assert shares == {"pore": 2 / 6, "clay": 1 / 6, "quartz": 3 / 6}
    one = measures.fractions["clay"]
    assert (one.estimate, one.low, one.high, one.interval) == (
        1 / 6,
        None,
        None,
        "none",
    )
    assert "no model was given" in one.why
    assert measures.profile is None


def test_labels_without_classes_have_a_class_for_each_value() -> None:
    measures = ns.measure(rock(np.array([[0, 7], [7, 7]]), classes=None))
    assert measures.fractions["class 7"].count == 3 / 4


def test_named_classes_only() -> None:
    data = np.array([[1, 2, 3, 3]], np.uint8)
    measures = ns.measure(rock(data), classes=["clay"])
    assert {name: one.count for name, one in measures.fractions.items()} == {
        "clay": 0.25
    }
    with pytest.raises(LabelError, match="no class 'clai'; did you mean 'clay'"):
        ns.measure(rock(data), classes=["clai"])


def test_the_specimen_is_the_hull_of_what_is_not_outside() -> None:
    plane = core()
    measures = ns.measure(rock(plane), region="specimen")
    assert measures.region == "specimen"
    inside = disc(100, 40).sum()
    assert measures.voxels == pytest.approx(inside, rel=0.01)
    # The pore is open to the air, and counts.
    assert measures.fractions["pore"].count == pytest.approx(6 * 40 / inside, rel=0.1)
    assert ns.measure(rock(plane)).fractions["pore"].count > 0.5


def test_planes_beyond_the_specimen_are_outside() -> None:
    air = np.ones((100, 100), np.uint8)
    stack = np.stack([air, core(), core(), air])
    measures = ns.measure(rock(stack), region="specimen")
    assert measures.profile is not None
    assert measures.profile.voxels[0] == measures.profile.voxels[3] == 0
    assert measures.profile.fractions["pore"][0] is None
    assert measures.profile.voxels[1] == measures.voxels / 2


def test_an_unlabelled_outside_is_an_outside() -> None:
    plane = np.where(disc(60, 20), 3, 0).astype(np.uint8)
    plane[30, 30:34] = 0
    measures = ns.measure(rock(plane), region="specimen")
    assert measures.region == "specimen"
    assert measures.voxels == disc(60, 20).sum() - 4


def test_the_hull_is_that_of_skimage() -> None:
    from skimage.morphology import convex_hull_image

    rng = np.random.default_rng(0)
    rest = np.zeros((60, 50), bool)
    rest[tuple(rng.integers(15, 35, (2, 9)))] = True
    specimen = find_specimen(rest.astype(np.uint8), 0)
    hull = convex_hull_image(rest, offset_coordinates=False)
    np.testing.assert_array_equal(specimen, hull)


@pytest.mark.parametrize("seed", range(3))
def test_a_rock_that_fills_the_image_is_all_specimen(seed: int) -> None:
    from napari_strata.io.samples import sandstone

    labels = sandstone((1, 160, 160), seed=seed).labels
    measures = ns.measure(labels, region="specimen")
    assert measures.region.startswith("all (no outside was found")
    assert measures.voxels == 160 * 160


def masks(tmp_path: Path) -> dict[str, Any]:
    mask = np.zeros((2, 4), np.uint8)
    mask[:, :2] = 9
    stack = np.stack([mask, mask])
    image = LabelImage(stack, "ZYX", name="part")
    ns.write_labels(tmp_path / "part.tif", image)
    return {
        "file": tmp_path / "part.tif",
        "text": str(tmp_path / "part.tif"),
        "plane": mask.astype(bool),
        "array": stack,
        "image": image,
        "layer": SimpleNamespace(data=stack, name="part"),
    }


@pytest.mark.parametrize("kind", ["file", "text", "plane", "array", "image", "layer"])
def test_a_mask_is_a_region(tmp_path: Path, kind: str) -> None:
    data = np.array([[1, 2, 3, 3], [1, 0, 3, 3]], np.uint8)
    labels = rock(np.stack([data, data]))
    measures = ns.measure(labels, region=masks(tmp_path)[kind])
    assert measures.voxels == 6
    assert measures.fractions["pore"].count == 4 / 6
    assert measures.region == ("part" if kind not in ("plane", "array") else "mask")


def test_a_mask_of_other_pixels_is_refused() -> None:
    labels = rock(np.ones((2, 4, 4), np.uint8))
    with pytest.raises(ImageError, match=r"mask of shape \(4, 5\) \(YX\) for labels"):
        ns.measure(labels, region=np.ones((4, 5), bool))
    with pytest.raises(ImageError, match="give one with these dimensions"):
        ns.measure(labels, region=np.ones(4, bool))
    with pytest.raises(LabelError, match="no labelled pixel in the region"):
        ns.measure(labels, region=np.zeros((4, 4), bool))


@pytest.mark.parametrize("axis", ["Z", "Y", "X"])
def test_profile(axis: str) -> None:
    data = np.random.default_rng(0).integers(0, 4, (3, 5, 7)).astype(np.uint8)
    profile = ns.measure(rock(data), along=axis).profile
    assert profile is not None
    at = "ZYX".index(axis)
    others = tuple(i for i in range(3) if i != at)
    totals = (data > 0).sum(axis=others)
    assert profile.voxels == tuple(totals)
    assert profile.positions == tuple(2.0 * i for i in range(data.shape[at]))
    clay = [one.count for one in profile.fractions["clay"] if one]
    assert clay == pytest.approx((data == 2).sum(axis=others) / totals)


def test_profile_over_time() -> None:
    data = np.ones((2, 3, 4, 4), np.uint8)
    data[1, :, :2] = 2
    profile = ns.measure(rock(data), along="T").profile
    assert profile is not None
    assert [one.count for one in profile.fractions["clay"] if one] == [0, 0.5]
    with pytest.raises(ImageError, match="along='C'"):
        ns.measure(rock(data), along="C")


class Watched:
    """Array that keeps the largest part that was read."""

    def __init__(self, data: Any) -> None:
        self.data, self.shape, self.dtype = data, data.shape, data.dtype
        self.largest = 0

    def __getitem__(self, key: Any) -> Any:
        part = self.data[key]
        self.largest = max(self.largest, part.size)
        return part


@pytest.mark.parametrize("region", ["all", "specimen", "mask"])
def test_labels_and_masks_are_read_plane_by_plane(region: str) -> None:
    stack = Watched(np.stack([core(40, 15)] * 30))
    mask = Watched(np.ones(stack.shape, np.uint8))
    labels = LabelImage(stack, "ZYX", classes=ROCK)
    measures = ns.measure(labels, region=mask if region == "mask" else region)
    assert measures.voxels > 0
    assert stack.largest == 40 * 40
    assert mask.largest == (40 * 40 if region == "mask" else 0)


def test_folder_and_command(tmp_path: Path) -> None:
    data = np.stack([core(), core()])
    ns.write_labels(tmp_path / "labels.tif", rock(data))
    out = tmp_path / "out"
    words = ["measure", str(tmp_path / "labels.tif"), "--out", str(out)]
    words += ["--region", "specimen", "--along", "z", "--class", "pore"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert "region: specimen" in result.stdout
    facts = json.loads((out / "measures.json").read_text())
    keys = ["region", "voxels", "fractions", "profile", "connected", "surface"]
    assert [key for key in facts if key in keys] == keys
    assert "about" in facts
    assert facts["region"] == "specimen"
    assert list(facts["fractions"]) == ["pore"]
    assert list(facts["fractions"]["pore"]) == [
        *("count", "estimate", "low", "high", "interval", "why")
    ]
    assert facts["about"]["voxel_size"] == {"Z": 2, "Y": 2, "X": 2}
    assert facts["about"]["unit"] == "micrometer"
    assert facts["profile"]["positions"] == [0, 2]
    rows = list(csv.DictReader((out / "fractions.csv").read_text().splitlines()))
    assert rows[0]["region"] == "specimen"
    pixels = int(rows[0]["voxels"])
    assert float(rows[0]["volume (micrometer^3)"]) == 8 * pixels
    assert pixels / facts["voxels"] == facts["fractions"]["pore"]["count"]
    rows = list(csv.DictReader((out / "profile.csv").read_text().splitlines()))
    assert [float(row["position (micrometer)"]) for row in rows] == [0, 2]
    assert float(rows[1]["pore count"]) == facts["fractions"]["pore"]["count"]
    page = (out / "report.html").read_text()
    assert "Region: specimen" in page
    assert "no model was given" in page
    assert "Profile along Z" in page
    again = CliRunner().invoke(app, [*words, "--json"])
    assert json.loads(again.stdout)["fractions"] == facts["fractions"]


def test_a_damaged_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "measures.json").write_text('{"region": 1}')
    with pytest.raises(RunError, match="measure the labels again"):
        ns.write_page(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="name of a folder"):
        ns.measure(rock(np.ones((2, 2), np.uint8))).save(tmp_path / "file")


def model_with_errors(pair: Any) -> Any:
    """A model that makes one pixel in 20 of class 255 class 0, in two planes apart."""
    from napari_strata.measure.blocks import BlockCounter

    model = tiny_model(pair)
    counter = BlockCounter(model.spec.classes)
    rng = np.random.default_rng(0)
    for number in range(2):
        truth = (rng.random((200, 200)) < 0.5).astype(np.uint8)
        predicted = np.where(rng.random(truth.shape) < 0.05, 0, truth)
        logits = np.stack([predicted == 0, predicted == 1]).astype(np.float32)
        counter.add(
            truth, predicted, logits, name=f"{number}", image=number, position=0
        )
    return replace(model, residuals=counter.residuals())


def test_the_interval_comes_from_the_model() -> None:
    pair = easy_pair((2, 64, 64))
    model = model_with_errors(pair)
    labels = replace(pair.labels, classes=model.spec.classes)
    measures = ns.measure(labels, model=model, along="Z")
    one = measures.fractions["class 255"]
    assert one.interval == "model"
    assert "2 planes and 50 blocks" in one.why
    assert one.low is not None
    assert one.high is not None
    assert one.low < one.estimate < one.high
    assert one.estimate == pytest.approx(one.count + 0.025, abs=0.003)
    assert measures.profile is not None
    plane = measures.profile.fractions["class 255"][0]
    assert plane is not None
    assert plane.high is not None
    assert (
        measures.to_dict()["profile"]["fractions"]["class 255"]["low"][0] == plane.low
    )
    rows = ns.measure(labels, model=model, along="X").profile
    assert rows is not None
    assert "narrower than blocks" in rows.fractions["class 255"][0].why  # type: ignore[union-attr]
    other = ns.measure(labels, model=[model, model]).fractions["class 255"]
    assert "2 models were given" in other.why
    earlier = ns.measure(labels, model=tiny_model(pair)).fractions["class 255"]
    assert "trained by an earlier version" in earlier.why


def test_no_interval_where_the_drift_guard_objects() -> None:
    pair = easy_pair((2, 64, 64))
    model = model_with_errors(pair)
    labels = replace(pair.labels, classes=model.spec.classes)
    bright = replace(pair.image, data=np.full((2, 64, 64), 255, np.uint8))
    one = ns.measure(labels, model=model, image=bright).fractions["class 255"]
    assert one.interval == "none"
    assert "the image is unlike the training images" in one.why
    one = ns.measure(labels, model=model, image=pair.image).fractions["class 255"]
    assert one.interval == "model"
