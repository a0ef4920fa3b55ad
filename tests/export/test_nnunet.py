"""The nnU-Net data set has our images, labels, spacing and ignore label."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import napari_strata as ns
from napari_strata.cli import app
from napari_strata.core.errors import ImageError, RunError
from napari_strata.core.image import AnnotatedImage, Image
from napari_strata.export import nnunet
from napari_strata.export.nnunet import make_splits

nibabel = pytest.importorskip("nibabel")


def volume(seed: int, *, channels: int = 0, axes: str = "ZYX") -> AnnotatedImage:
    random = np.random.default_rng(seed)
    shape = {"T": 2, "Z": 3, "C": channels, "Y": 5, "X": 7}
    scale = {"T": 1.0, "Z": 2.0, "C": 1.0, "Y": 0.5, "X": 0.25}
    sizes = [shape[axis] for axis in axes]
    image = Image(
        random.integers(0, 60000, sizes, np.uint16),
        axes,
        scale=tuple(scale[axis] for axis in axes),
        units=tuple("micrometer" if axis in "ZYX" else "pixel" for axis in axes),
    )
    labels = random.choice(np.array([10, 20, 99], np.uint8), image.label_shape)
    return AnnotatedImage(image, image.labels_like(labels))


def read(path: Path) -> tuple[np.ndarray, tuple[float, ...]]:
    """Values in the order Z, Y, X, and the spacing along X, Y and Z."""
    image = nibabel.load(path)
    return np.asarray(image.dataobj).T, tuple(map(float, image.header.get_zooms()))


def facts(folder: Path, name: str = "dataset.json") -> Any:
    return json.loads((folder / name).read_text("utf-8"))


def test_volumes_with_their_ignore_label(tmp_path: Path) -> None:
    pairs = [volume(seed) for seed in range(3)]
    exported = ns.export_nnunet(pairs, tmp_path / "Dataset001_Rock", unlabelled=[99])
    folder = exported.path
    assert facts(folder)["labels"] == {"background": 0, "class 20": 1, "ignore": 2}
    assert facts(folder)["numTraining"] == 3
    assert facts(folder)["channel_names"] == {"0": "channel 0"}
    for number, pair in enumerate(pairs, 1):
        image, spacing = read(folder / f"imagesTr/image_{number:04d}_0000.nii.gz")
        np.testing.assert_array_equal(image, pair.image.data)
        assert image.dtype == np.uint16
        assert spacing == (0.25, 0.5, 2.0)
        labels, spacing = read(folder / f"labelsTr/image_{number:04d}.nii.gz")
        expected = np.select(
            [pair.labels.data == value for value in (10, 20, 99)], [0, 1, 2]
        )
        np.testing.assert_array_equal(labels, expected)
        assert spacing == (0.25, 0.5, 2.0)
    splits = facts(folder, "splits_final.json")
    assert [split["val"] for split in splits] == [
        ["image_0001"],
        ["image_0002"],
        ["image_0003"],
    ]
    assert "class 'class 10' is called background" in exported.notes[1]
    assert list(tmp_path.iterdir()) == [folder]


def test_planes_with_channels_and_times(tmp_path: Path) -> None:
    pair = volume(0, channels=2, axes="TCYX")
    folder = ns.export_nnunet(pair, tmp_path / "Dataset002_Cells").path
    names = sorted(path.name for path in (folder / "imagesTr").iterdir())
    assert names == [
        f"image_0001_t000{t}_000{c}.nii.gz" for t in (0, 1) for c in (0, 1)
    ]
    image, spacing = read(folder / "imagesTr" / "image_0001_t0001_0000.nii.gz")
    np.testing.assert_array_equal(image, np.asarray(pair.image.data)[1, :1])
    assert spacing == (0.25, 0.5, 999.0)
    # All pixels are labelled.
    assert "ignore" not in facts(folder)["labels"]
    # Time points of one image are alike: they are no folds.
    assert not (folder / "splits_final.json").exists()


def test_values_that_are_not_finite_are_ignored(tmp_path: Path) -> None:
    values = np.ones((4, 5))
    values[1, 2] = np.nan
    image = Image(values, "YX")
    labels = image.labels_like(np.tile(np.array([0, 1, 0, 1, 0], np.uint8), (4, 1)))
    pair = AnnotatedImage(image, labels)
    folder = ns.export_nnunet(pair, tmp_path / "Dataset003_a").path
    grey, _ = read(folder / "imagesTr/image_0001_0000.nii.gz")
    assert grey.dtype == np.float32
    assert grey[0, 1, 2] == 0
    written, _ = read(folder / "labelsTr/image_0001.nii.gz")
    assert written[0, 1, 2] == 2 == facts(folder)["labels"]["ignore"]


def test_folds_keep_the_cases_of_an_image_together() -> None:
    groups = [[f"{image}{time}" for time in "ab"] for image in range(7)]
    splits = make_splits(groups)
    assert len(splits) == 5
    validated = [case for split in splits for case in split["val"]]
    assert sorted(validated) == sorted(case for cases in groups for case in cases)
    for split in splits:
        assert not {case[0] for case in split["train"]} & {
            case[0] for case in split["val"]
        }


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="name such as Dataset001_Rock"):
        ns.export_nnunet(volume(0), tmp_path / "rock")
    out = tmp_path / "Dataset001_Rock"
    with pytest.raises(ImageError, match="found images of 1, 2 channels"):
        ns.export_nnunet([volume(0), volume(0, channels=2, axes="ZCYX")], out)
    assert not list(tmp_path.iterdir())
    out.mkdir()
    with pytest.raises(RunError, match="exists already"):
        ns.export_nnunet(volume(0), out)


def test_the_command_line(tmp_path: Path) -> None:
    pair = volume(0)
    ns.write_labels(tmp_path / "labels.tif", pair.labels)
    ns.write_labels(tmp_path / "image.tif", pair.image.labels_like(pair.image.data))
    out = tmp_path / "Dataset001_Rock"
    words = [tmp_path / "image.tif", tmp_path / "labels.tif", "--out", out]
    call = [*map(str, words), "--unlabelled", "99"]
    result = CliRunner().invoke(app, ["export", *call, "--to", "nnunet"])
    assert result.exit_code == 0, repr(result.exception)
    assert result.stdout.splitlines()[0] == str(out)
    assert "ignore label, 2" in result.stdout
    result = CliRunner().invoke(app, ["export", *call, "--to", "onnx"])
    assert "found LABELS, --unlabelled, which only nnunet" in str(result.exception)
    call += ["--to", "nnunet", "--overwrite"]
    result = CliRunner().invoke(app, ["export", *call])
    assert "or --overwrite; an nnU-Net" in str(result.exception)


def test_a_missing_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nnunet, "find_spec", lambda _: None)
    with pytest.raises(RunError, match="without the package nibabel; run pip install"):
        ns.export_nnunet(volume(0), tmp_path / "Dataset001_Rock")
