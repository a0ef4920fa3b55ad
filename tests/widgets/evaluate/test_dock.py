"""The Evaluate dock in a real viewer with a real worker; expected numbers are computed by hand or by numpy."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qtpy.QtCore import Qt

from napari_strata.core.classes import ClassMap
from napari_strata.core.metrics import ConfusionMatrix
from napari_strata.core.runs import RunFolder
from napari_strata.evaluation.seen_scores import TRAINED_ON
from napari_strata.plugin import METADATA
from napari_strata.widgets.evaluate.dock import PLANE, EvaluateDock
from napari_strata.widgets.evaluate.scores import IOU, PIXELS
from napari_strata.widgets.layers.live import MODEL, PREDICTED
from napari_strata.widgets.settings import Settings
from widgets.models import make_run, rock

LONG = 180_000
CLASSES = ClassMap(
    names=("pore", "clay", "grain"),
    values=(1, 2, 3),
    colors=("#4477aa", "#ee8866", "#ddcc77"),
    unlabelled=(0,),
)
TRUTH = np.array([[[1, 1, 2, 2], [1, 1, 2, 0]], [[1, 2, 2, 2], [0, 0, 0, 0]]], np.uint8)
FOUND = np.array([[[1, 2, 2, 2], [1, 1, 1, 1]], [[2, 2, 2, 2], [1, 1, 1, 1]]], np.uint8)
"""3 of 5 pixels of pore are found, 1 of clay is predicted as pore: IoU 3 / 6 and 5 / 8; grain does not occur."""


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    real = Settings.load()
    monkeypatch.setattr(Settings, "load", lambda: replace(real, runs=tmp_path / "runs"))
    return tmp_path / "runs"


@pytest.fixture
def make(
    make_napari_viewer: Any, qtbot: Any, runs: Path
) -> Iterator[Callable[..., EvaluateDock]]:
    sessions = []

    def build(
        found: Any = FOUND,
        truth: Any = TRUTH,
        *,
        classes: ClassMap | None = CLASSES,
        **more: Any,
    ) -> EvaluateDock:
        viewer = make_napari_viewer()
        stored = (
            {METADATA: classes.model_dump(mode="json")} if classes is not None else {}
        )
        known = {
            "axis_labels": "zyx"[-truth.ndim :],
            "scale": (2.0, 0.5, 0.5)[-truth.ndim :],
            "units": "um",
        } | more
        viewer.add_labels(truth, name="rock labels", metadata=stored, **known)
        viewer.add_labels(
            found, name="rock segmented", metadata={PREDICTED: True}, **known
        )
        dock = EvaluateDock(viewer)
        viewer.window.add_dock_widget(dock, name="Evaluate", area="right")
        qtbot.waitUntil(lambda: not dock._counter.busy)
        sessions.append(dock.session)
        return dock

    yield build
    # A window that was never shown does not tell its session that it closes.
    while sessions:
        sessions.pop().close()


def _click(qtbot: Any, button: Any) -> None:
    assert button.enabled, button.tooltip
    qtbot.mouseClick(button.native, Qt.MouseButton.LeftButton)


def _compare(qtbot: Any, dock: EvaluateDock) -> None:
    before = dock.written
    _click(qtbot, dock.compare_button)
    assert not dock.compare_button.enabled
    qtbot.waitUntil(
        lambda: (
            not dock._activity
            and (dock.written is not before or dock.notice.level == "error")
        ),
        timeout=LONG,
    )


def _errors(qtbot: Any, dock: EvaluateDock) -> Any:
    _click(qtbot, dock.errors_button)
    qtbot.waitUntil(lambda: not dock._activity, timeout=LONG)
    return dock._errors


def test_scores_errors_and_the_report_are_right(
    make: Any, qtbot: Any, tmp_path: Path
) -> None:
    dock = make()
    assert (dock.prediction.layer.name, dock.truth.layer.name) == (
        "rock segmented",
        "rock labels",
    )
    assert (
        not dock.zero.background.isEnabled()
    )  # the class map says that 0 is unlabelled
    assert dock.errors_button.tooltip == "Compare first."
    _compare(qtbot, dock)
    table = dock.scores.table
    assert [table.item(row, IOU).text() for row in range(3)] == [
        ".500",
        ".625",
        "\N{EN DASH}",
    ]
    assert [table.item(row, PIXELS).text() for row in range(3)] == ["5", "6", "0"]
    assert (
        dock.scores.headline.text()
        == f"Mean IoU {(0.5 + 0.625) / 2:.3f} over the 2 of 3 classes in the truth, pixel accuracy {100 * 8 / 11:.1f}\N{NO-BREAK SPACE}%"
    )
    assert (
        "rock segmented against rock labels: 11 labelled pixels"
        in dock.scores.caption.text()
    )

    layer = _errors(qtbot, dock)
    assert layer.name == "errors: rock segmented against rock labels"
    assert np.array_equal(
        layer.data, np.where((TRUTH != 0) & (TRUTH != FOUND), FOUND, 0)
    )
    assert tuple(layer.scale) == (2.0, 0.5, 0.5)
    assert tuple(layer.axis_labels) == ("z", "y", "x")
    assert np.allclose(
        layer.colormap.color_dict[2][:3], np.array([0xEE, 0x88, 0x66]) / 255, atol=0.01
    )
    assert layer not in dock.prediction._candidates()

    report = tmp_path / "report"
    report.mkdir()
    (report / "mine.txt").write_text("keep")
    dock.export_to(report)
    qtbot.waitUntil(lambda: "Written to" in dock.notice.text(), timeout=LONG)
    out = report / "scores-rock-segmented"
    assert sorted(path.name for path in out.iterdir()) == [
        "confusion.png",
        "metrics.csv",
        "metrics.json",
        "report.html",
    ]
    assert "Report of an evaluation" in (out / "report.html").read_text(
        encoding="utf-8"
    )
    expected = ConfusionMatrix(
        CLASSES, np.array([[3, 2, 0], [1, 5, 0], [0, 0, 0]])
    ).as_dict()
    scores = json.loads((out / "metrics.json").read_text())
    assert (
        "not known whether these labels were trained on"
        in scores.pop("trained_on")["text"]
    )
    assert scores == expected
    assert (report / "mine.txt").read_text() == "keep"


def test_comparing_again_updates_the_errors(make: Any, qtbot: Any) -> None:
    dock = make()
    _compare(qtbot, dock)
    layer, count = _errors(qtbot, dock), len(dock.viewer.layers)
    dock.prediction.layer.data = TRUTH.copy()
    _click(qtbot, dock.compare_button)
    qtbot.waitUntil(lambda: not dock._activity and not layer.data.any(), timeout=LONG)
    assert "pixel accuracy 100.0\N{NO-BREAK SPACE}%" in dock.scores.headline.text()
    assert len(dock.viewer.layers) == count


def test_a_plane_is_compared_and_a_square_shows_another(make: Any, qtbot: Any) -> None:
    dock = make()
    dock.viewer.dims.set_current_step(0, 1)
    dock.scope.value = PLANE
    _compare(qtbot, dock)
    assert "plane Z = 1 only: 4 labelled pixels" in dock.scores.caption.text()
    expected = np.where((TRUTH != 0) & (TRUTH != FOUND), FOUND, 0)
    expected[0] = 0
    assert np.array_equal(_errors(qtbot, dock).data, expected)
    dock.viewer.dims.set_current_step(0, 0)
    picture = dock.scores.picture
    qtbot.mouseClick(
        picture, Qt.MouseButton.LeftButton, pos=picture.cell_rect(0, 1).center()
    )
    assert dock.viewer.dims.current_step[0] == 1
    assert (
        "1 pixel of pore was predicted as clay: 100\N{NO-BREAK SPACE}% of pore. Most of them: plane Z = 1."
        in dock.notice.text()
    )


@pytest.mark.parametrize("background", [False, True])
def test_without_classes_the_user_chooses_the_meaning_of_0(
    make: Any, qtbot: Any, background: bool
) -> None:
    truth, found = np.array([[0, 0, 1, 1]]), np.array([[0, 1, 1, 1]])
    dock = make(found, truth, classes=None)
    button = dock.zero.background if background else dock.zero.unlabelled
    assert button.isEnabled()
    button.click()
    _compare(qtbot, dock)
    names = [
        dock.scores.table.item(row, 0).text()
        for row in range(dock.scores.table.rowCount())
    ]
    assert names == (["background", "class 1"] if background else ["class 1"])
    iou = [dock.scores.table.item(row, IOU).text() for row in range(len(names))]
    assert iou == ([".500", ".667"] if background else ["1.00"])


def test_labels_that_do_not_fit_are_explained(make: Any, qtbot: Any) -> None:
    dock = make(found=FOUND[:1])
    assert dock.truth.layer is None
    assert "No other labels have the prediction's size" in dock.compare_button.tooltip
    dock.truth.combo.value = dock.viewer.layers["rock labels"]
    assert "differ in size (Z: 1 against 2)" in dock.compare_button.tooltip
    assert "Z: 1 against 2" in dock.truth.text.text()
    assert not dock.compare_button.enabled
    dock.truth.combo.value = dock.viewer.layers["rock segmented"]
    assert "the same layer" in dock.compare_button.tooltip


def test_among_several_labels_none_is_chosen(make: Any, qtbot: Any) -> None:
    dock = make()
    dock.viewer.layers.remove("rock labels")
    for name in ("one", "two"):
        dock.viewer.add_labels(TRUTH, name=name)
    qtbot.waitUntil(lambda: dock.truth.text.text().startswith("2 label layers"))
    assert dock.truth.layer is None
    dock.truth.combo.value = dock.viewer.layers["two"]
    assert dock.compare_button.enabled


@pytest.mark.parametrize(
    ("truth", "found", "words"),
    [
        (np.zeros((1, 4), int), np.ones((1, 4), int), "found no labelled pixel"),
        (
            np.array([[1, 2, 1, 2]]),
            np.array([[1, 0, 1, 2]]),
            "1 pixels that the prediction leaves unlabelled",
        ),
    ],
)
def test_labels_that_cannot_be_scored_are_explained(
    make: Any, qtbot: Any, truth: Any, found: Any, words: str
) -> None:
    dock = make(found, truth)
    _compare(qtbot, dock)
    assert words in dock.notice.text()
    assert dock.compare_button.enabled


def test_objects_are_refused_and_classes_missing_in_the_truth_are_reported(
    make: Any, qtbot: Any
) -> None:
    dock = make(np.arange(1, 201).reshape(2, 100), np.ones((2, 100), int), classes=None)
    _compare(qtbot, dock)
    assert "too many for classes" in dock.notice.text()
    dock.truth.layer.metadata = {METADATA: CLASSES.model_dump(mode="json")}
    dock.prediction.layer.data = np.full((2, 100), 7)
    _compare(qtbot, dock)
    assert "The truth does not know class (7)" in dock.notice.text()
    assert dock.scores.headline.text() == (
        "Mean IoU 0.000 over the 1 of 4 classes in the truth (0.000 with those only"
        " predicted), pixel accuracy 0.0\N{NO-BREAK SPACE}%"
    )


def test_layers_may_be_removed_while_they_are_compared(make: Any, qtbot: Any) -> None:
    dock = make()
    _click(qtbot, dock.compare_button)
    dock.viewer.layers["rock labels"].name = "other"
    dock.viewer.layers.remove("rock segmented")
    qtbot.waitUntil(
        lambda: not dock._activity and dock.written is not None, timeout=LONG
    )
    assert "rock segmented against rock labels" in dock.scores.caption.text()
    assert not dock.compare_button.enabled
    assert np.array_equal(
        _errors(qtbot, dock).data, np.where((TRUTH != 0) & (TRUTH != FOUND), FOUND, 0)
    )


def test_the_copied_script_and_command_name_both_files(make: Any, qtbot: Any) -> None:
    dock = make()
    copied: list[str] = []
    dock.copy = lambda text, what: copied.append(
        text
    )  # the clipboard belongs to the whole display
    for form, start in (
        ("Copy as Python", "import napari_strata as ns"),
        ("Copy as command", "napari-strata evaluate"),
    ):
        button = next(
            one for one in dock._magic_widgets if getattr(one, "text", "") == form
        )
        _click(qtbot, button)
        qtbot.waitUntil(
            lambda: "kept until napari closes" in dock.notice.text(), timeout=LONG
        )
        assert copied[-1].startswith(start)
        assert "prediction-rock-segmented.ome.tif" in copied[-1]
        assert "truth-rock-labels.ome.tif" in copied[-1]
        dock.notice.clear()


def test_a_closed_dock_keeps_its_state(make: Any, qtbot: Any) -> None:
    dock = make()
    _compare(qtbot, dock)
    viewer, shown = dock.viewer, dock.scores.isVisibleTo(dock)
    viewer.window.remove_dock_widget(dock)
    viewer.add_labels(TRUTH, name="later")
    qtbot.wait(50)
    _, again = viewer.window.add_plugin_dock_widget("napari-strata", "Evaluate")
    assert again.written is dock.written
    assert again.scores.isVisibleTo(again) == shown
    assert again.parent() is not None


def _panel(dock: EvaluateDock, number: int) -> Any:
    """Return the colour in the middle of a panel of the picture."""
    pixels = dock.scores.cases._shown.panels[number]  # type: ignore[union-attr]
    return pixels.pixelColor(pixels.width() // 2, pixels.height() // 2)


def test_the_worst_and_the_best_planes_are_shown_in_pictures_and_viewer(
    make: Any, qtbot: Any
) -> None:
    truth = np.ones((12, 16, 16), np.uint8)
    truth[:, :2] = 2
    found = truth.copy()
    for plane in range(12):  # the later, the worse
        found[plane, 2 : 2 + plane] = 2
    dock = make(found, truth)
    image = np.broadcast_to(
        np.linspace(0, 200, 12).astype(np.uint8)[:, None, None], truth.shape
    )
    dock.viewer.add_image(np.array(image), name="rock", scale=(2.0, 0.5, 0.5))
    dock.viewer.add_image(np.zeros((3, 16, 16)), name="other", scale=(2.0, 0.5, 0.5))
    _compare(qtbot, dock)
    cases = dock.scores.cases
    qtbot.waitUntil(lambda: cases.index == 0, timeout=LONG)
    assert len(cases._shown.files) == 8  # type: ignore[union-attr]
    # Pore 3 of 14 rows, clay 2 of 13: all errors are pore that was predicted as clay.
    assert cases.caption.text() == f"Worst: Z = 11, IoU {(3 / 14 + 2 / 13) / 2:.2f}"
    assert not cases.back.isEnabled()
    _truth, prediction = _panel(dock, 1), _panel(dock, 2)
    assert _truth.blue() > _truth.red()  # pore, #4477aa
    assert prediction.red() > prediction.blue()  # clay, #ee8866
    assert abs(_panel(dock, 0).red() - _panel(dock, 0).blue()) < 3  # the image is grey
    qtbot.mouseClick(cases.go, Qt.MouseButton.LeftButton)
    assert dock.viewer.dims.current_step[0] == 11
    qtbot.mouseClick(cases.forth, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(
        lambda: cases.caption.text().startswith("2 of 8: Z = 10"), timeout=LONG
    )
    cases.step(100)
    qtbot.waitUntil(
        lambda: cases.caption.text() == "Best: Z = 0, IoU 1.00", timeout=LONG
    )
    assert _panel(dock, 2).blue() > _panel(dock, 2).red()
    assert not cases.forth.isEnabled()
    qtbot.mouseClick(cases.picture, Qt.MouseButton.LeftButton)
    assert cases._large is not None
    assert "Best: Z = 0" in cases._large.caption.text()
    cases._large.close()

    dock.viewer.dims.set_current_step(0, 5)
    dock.scope.value = PLANE
    dock.viewer.layers.remove("rock")
    _compare(qtbot, dock)
    qtbot.waitUntil(
        lambda: cases.caption.text().startswith("Z = 5, IoU 0."), timeout=LONG
    )
    assert (
        len(cases.picture.panel_areas()) == 2
    )  # no image of that size is there any more
    dock.viewer.dims.set_current_step(0, 0)
    qtbot.mouseClick(cases.go, Qt.MouseButton.LeftButton)
    assert dock.viewer.dims.current_step[0] == 5


def test_labels_that_were_trained_on_are_told_and_proposed_last(
    make: Any, qtbot: Any, tmp_path: Path
) -> None:
    run = make_run(tmp_path)
    image, labels = rock()
    truth = np.asarray(labels.data)
    dock = make(truth.copy(), truth.copy(), classes=labels.classes)
    viewer, trained, prediction = dock.viewer, dock.truth.layer, dock.prediction.layer
    prediction.metadata[MODEL] = (str(run / "model.safetensors"),)
    dock.prediction.changed.emit()
    # The only labels: they are proposed, with a warning.
    qtbot.waitUntil(lambda: TRAINED_ON in dock.truth.text.text(), timeout=LONG)
    assert dock.truth.layer is trained
    other = viewer.add_labels(
        np.roll(truth, 7, axis=1), name="other", axis_labels="zyx", units="um"
    )
    qtbot.waitUntil(lambda: dock.truth.layer is other, timeout=LONG)
    assert TRAINED_ON not in dock.truth.text.text()
    _compare(qtbot, dock)
    assert "None of these planes was trained on." in dock.scores.caption.text()
    dock.truth.choose(trained)
    assert TRAINED_ON in dock.truth.text.text()
    _compare(qtbot, dock)
    caption = dock.scores.caption.text()
    record = RunFolder(run).data()
    count = len(record["training"])
    assert f"⚠ {count} of 4 planes were trained on: there, the score says" in caption
    assert count == 3
    assert "On the other one, held back in training: mean IoU 1.000" in caption
    # With the image, other labels of the same planes are recognised, too.
    viewer.add_image(image.data, name="rock", axis_labels="zyx", units="um")
    dock.truth.choose(other)
    _compare(qtbot, dock)
    assert "4 planes were trained on" in dock.scores.caption.text()
