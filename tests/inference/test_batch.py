from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile

from helpers import easy_pair, tiny_model
from napari_strata.core.classes import ClassMap
from napari_strata.core.errors import ImageError, ModelError, RunError
from napari_strata.core.events import Event, FileEnd, PredictionStarted, RegionEnd
from napari_strata.core.options import PredictOptions
from napari_strata.inference import batch
from napari_strata.inference.batch import Report, find_images, predict_files
from napari_strata.inference.predict import predict
from napari_strata.io import read_labels, write_labels
from napari_strata.models.model import Model

PAIR = easy_pair((2, 40, 40))
OPTIONS = PredictOptions(device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model(PAIR)


@pytest.fixture
def scans(tmp_path) -> Path:
    """A folder of three images, a text file and a hidden one."""
    for number in (10, 2, 1):
        data = PAIR.image.data + np.uint8(number)
        write_labels(
            tmp_path / "scans" / f"s{number}.tif", PAIR.image.labels_like(data)
        )
    (tmp_path / "scans" / "notes.txt").write_text("")
    (tmp_path / "scans" / ".hidden.tif").write_text("")
    return tmp_path / "scans"


def run(model, inputs, out, **changes) -> list[Event]:
    return list(
        predict_files(
            model,
            inputs,
            out,
            options=PredictOptions(**{"device": "cpu", "precision": "fp32"} | changes),
        )
    )


def ends(events: list[Event]) -> list[tuple[str, str]]:
    return [(Path(e.source).name, e.status) for e in events if isinstance(e, FileEnd)]


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "report.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_a_folder_is_predicted_file_by_file_in_natural_order(
    model, scans, tmp_path, monkeypatch
):
    built = []
    monkeypatch.setattr(
        batch,
        "build_ensemble_predictor",
        lambda *a, real=batch.build_ensemble_predictor: built.append(1) or real(*a),
    )
    out = tmp_path / "out"
    events = run(model, [scans], out)
    assert ends(events) == [("s1.tif", "done"), ("s2.tif", "done"), ("s10.tif", "done")]
    assert len([e for e in events if isinstance(e, RegionEnd)]) == 6
    assert built == [1]
    assert sorted(p.name for p in out.iterdir()) == [
        "report.csv",
        "s10_labels.tif",
        "s1_labels.tif",
        "s2_labels.tif",
    ]
    for name in ("s1", "s10"):
        labels = read_labels(out / f"{name}_labels.tif")
        want = predict(model, scans / f"{name}.tif", options=OPTIONS)
        assert np.array_equal(labels.data, want.data)
        row = next(r for r in rows(out) if r["source"].endswith(f"{name}.tif"))
        counts = [int(row["pixels class 0"]), int(row["pixels class 255"])]
        assert counts == [(want.data == 0).sum(), (want.data == 255).sum()]
        assert (row["status"], row["output"]) == (
            "done",
            str(out / f"{name}_labels.tif"),
        )


def test_what_is_done_is_skipped_and_the_report_keeps_what_it_knew(
    model, scans, tmp_path
):
    out = tmp_path / "out"
    run(model, [scans / "s1.tif"], out)
    (before,) = rows(out)
    events = run(model, [scans], out)
    assert ends(events) == [
        ("s1.tif", "skipped"),
        ("s2.tif", "done"),
        ("s10.tif", "done"),
    ]
    after = rows(out)
    assert len(after) == 3
    assert after[0]["status"] == "skipped"
    assert after[0]["pixels class 0"] == before["pixels class 0"]
    assert ends(run(model, [scans], out, overwrite=True))[0] == ("s1.tif", "done")


def test_a_bad_file_is_named_and_the_rest_goes_on(model, scans, tmp_path):
    (scans / "s2.tif").write_bytes(b"II*\x00 no tiff at all")
    tifffile.imwrite(scans / "s3.tif", np.zeros((8, 8, 3), np.uint8), photometric="rgb")
    events = run(model, [scans, scans / "missing.tif"], tmp_path / "out")
    assert ends(events) == [
        ("missing.tif", "failed"),
        ("s1.tif", "done"),
        ("s2.tif", "failed"),
        ("s3.tif", "failed"),
        ("s10.tif", "done"),
    ]
    texts = {Path(e.source).name: e.text for e in events if isinstance(e, FileEnd)}
    assert "no such file" in texts["missing.tif"]
    assert "s2.tif" in texts["s2.tif"]
    assert "found 3 channels" in texts["s3.tif"]
    report = {Path(r["source"]).name: r for r in rows(tmp_path / "out")}
    assert report["s3.tif"]["message"] == texts["s3.tif"]
    assert report["s3.tif"]["pixels class 0"] == ""
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "report.csv",
        "s10_labels.tif",
        "s1_labels.tif",
    ]


def test_a_fault_of_ours_in_one_file_does_not_stop_the_night(
    model, scans, tmp_path, monkeypatch
):
    def odd(path, *, real=batch.read_image, **options):
        if path.name == "s2.tif":
            raise KeyError("strip")
        return real(path, **options)

    monkeypatch.setattr(batch, "read_image", odd)
    events = run(model, [scans], tmp_path / "out")
    assert ends(events)[1] == ("s2.tif", "failed")
    assert (
        next(e.text for e in events if isinstance(e, FileEnd) and e.text)
        == "unexpected KeyError: 'strip'"
    )


def test_a_single_bad_file_is_an_error_and_nothing_is_written(model, scans, tmp_path):
    (scans / "s2.tif").write_bytes(b"II*\x00 no tiff at all")
    for out in (tmp_path / "out", tmp_path / "out.tif"):
        with pytest.raises(ImageError, match=r"s2\.tif"):
            run(model, [scans / "s2.tif"], out)
        with pytest.raises(ImageError, match=r"no such file; did you mean 's1\.tif'"):
            run(model, [scans / "s1.tiff"], out)
        assert not out.exists()


def test_one_input_can_go_to_one_file(model, scans, tmp_path):
    out = tmp_path / "new" / "labels.tif"
    events = run(model, [str(scans / "s1.tif")], str(out), probabilities=True)
    assert ends(events) == [("s1.tif", "done")]
    assert sorted(p.name for p in out.parent.iterdir()) == [
        "labels.tif",
        "labels_probabilities.tif",
    ]
    with pytest.raises(RunError, match="exists already"):
        run(model, [scans / "s1.tif"], out)
    run(model, [scans / "s1.tif"], out, overwrite=True)


def test_axes_can_be_named_for_files_that_do_not_say(model, scans, tmp_path):
    events = list(
        predict_files(
            model, [scans / "s1.tif"], tmp_path / "x.tif", options=OPTIONS, axes="TYX"
        )
    )
    assert [e.region for e in events if isinstance(e, RegionEnd)] == [
        {"T": 0},
        {"T": 1},
    ]


def test_an_interrupted_batch_goes_on_within_the_file(model, scans, tmp_path):
    events = predict_files(model, [scans], tmp_path / "out", options=OPTIONS)
    regions = 0
    for event in events:
        regions += isinstance(event, RegionEnd)
        if regions == 3:
            events.close()
            break
    rest = run(model, [scans], tmp_path / "out")
    assert ends(rest) == [
        ("s1.tif", "skipped"),
        ("s2.tif", "done"),
        ("s10.tif", "done"),
    ]
    assert [e.done for e in rest if isinstance(e, PredictionStarted)] == [1, 0]


def test_outputs_that_would_collide_are_refused_together(model, scans, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "s1.tif").write_bytes((scans / "s1.tif").read_bytes())
    with pytest.raises(
        RunError, match=r"s1\.tif and .*s1\.tif to s1_labels\.tif.*separate folders"
    ):
        run(model, [scans, other], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_several_inputs_need_a_folder(model, scans, tmp_path):
    with pytest.raises(RunError, match="names one file, and there are 3 inputs"):
        run(model, [scans], tmp_path / "x.tif")
    one = next(iter(scans.glob("*.tif")))
    for name in ("x.jpg", "x.gif", "x.btf"):
        with pytest.raises(RunError, match=f"{name}: found the suffix"):
            run(model, [one], tmp_path / name)
        assert not (tmp_path / name).exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="is a file"):
        run(model, [scans], tmp_path / "file")


def test_a_model_that_cannot_be_loaded_fails_before_anything(scans, tmp_path):
    with pytest.raises(ModelError):
        run(tmp_path / "none", [scans], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_labels_written_beside_their_images_are_no_images_the_next_time(model, scans):
    run(model, [scans], scans, probabilities=True)
    assert ends(run(model, [scans], scans)) == [
        ("s1.tif", "skipped"),
        ("s2.tif", "skipped"),
        ("s10.tif", "skipped"),
    ]
    # Elsewhere a file of such a name is an image like any other.
    assert len(find_images([scans])) == 9


def test_inputs_may_be_patterns_and_each_file_counts_once(scans, monkeypatch):
    monkeypatch.chdir(scans)
    assert [p.name for p in find_images(["s*.tif", scans / "s2.tif", "s10.tif"])] == [
        "s2.tif",
        "s10.tif",
        "s1.tif",
    ]


@pytest.mark.parametrize("inputs", [["nothing*.tif"], [], ["empty"]])
def test_no_image_at_all_is_an_error(inputs, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ImageError, match="found no image in"):
        find_images(inputs)


def test_a_report_of_someone_else_is_not_replaced(model, scans, tmp_path):
    (tmp_path / "report.csv").write_text("patient,diagnosis\n")
    with pytest.raises(RunError, match="was not written by napari-strata"):
        run(model, [scans], tmp_path)
    assert (tmp_path / "report.csv").read_text() == "patient,diagnosis\n"


def test_a_report_holds_the_classes_of_several_models(tmp_path):
    path = tmp_path / "report.csv"
    one, two = (
        ClassMap(names=names, values=(0, 1)) for names in (("a", "b"), ("b", "c, d"))
    )
    Report.open(path, one).add(
        FileEnd("x", "x_labels", "done", "", 1.0), {"a": 1, "b": 2}
    )
    Report.open(path, two).add(
        FileEnd("y", "y_labels", "failed", "two\nlines", 1.0), {"b": 3, "c, d": 4}
    )
    first, second = rows(tmp_path)
    assert (first["pixels a"], first["pixels b"], first["pixels c, d"]) == (
        "1",
        "2",
        "",
    )
    assert (second["pixels a"], second["pixels b"], second["pixels c, d"]) == (
        "",
        "3",
        "4",
    )
    assert second["message"] == "two lines"


def test_several_models_and_turns_go_through_all_files(model, scans, tmp_path):
    weights = {
        name: value.flip(0) if name.endswith("bias") else value
        for name, value in model.weights.items()
    }
    group = [model, replace(model, weights=weights)]
    assert ends(run(group, [scans], tmp_path / "out", tta=True))[0] == (
        "s1.tif",
        "done",
    )
    for name in ("s1", "s10"):
        want = predict(group, scans / f"{name}.tif", options=OPTIONS, tta=True)
        assert np.array_equal(
            read_labels(tmp_path / "out" / f"{name}_labels.tif").data, want.data
        )


def test_a_folder_or_a_pattern_may_be_one_stack(tmp_path):
    model = tiny_model(PAIR)
    for name in ("left", "right"):
        for number, plane in enumerate(PAIR.image.data):
            path = tmp_path / name / f"slice{number}.tif"
            path.parent.mkdir(exist_ok=True)
            tifffile.imwrite(path, plane)
    inputs = [tmp_path / "left", tmp_path / "right" / "*.tif"]
    out = tmp_path / "out"
    events = list(predict_files(model, inputs, out, options=OPTIONS, stack=True))
    assert ends(events) == [("left", "done"), ("*.tif", "done")]
    expected = predict(model, PAIR.image, options=OPTIONS)
    for name in ("left", "right"):
        labels = read_labels(out / f"{name}_labels.tif")
        assert labels.axes == "ZYX"
        np.testing.assert_array_equal(labels.data, expected.data)
    file = tmp_path / "one.tif"
    [*_, end] = predict_files(model, inputs[:1], file, options=OPTIONS, stack=True)
    assert (end.path, end.status) == (str(file), "done")
