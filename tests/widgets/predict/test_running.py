"""A running prediction with a real viewer, a real worker and a tiny model."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from weakref import ref

import numpy as np
import pytest
from napari.layers import Image as ImageLayer
from napari.layers import Labels as LabelsLayer
from napari.viewer import Viewer

from napari_strata.plugin import image_layer
from napari_strata.widgets.layers.convert import image_of
from napari_strata.widgets.predict.running import LivePrediction, PredictionOptions
from napari_strata.widgets.session import ViewerSession
from napari_strata.widgets.work.client import Outcome
from widgets.models import rock

PATIENCE = 120_000


@pytest.fixture
def begin(
    make_napari_viewer: Callable[..., Viewer], runs: Path, qtbot: Any
) -> Iterator[Callable[[], ViewerSession]]:
    """Create the session of a new viewer. A fixture of the session itself would keep a reference, which napari reports as a leak."""
    made: list[Any] = []

    def start() -> ViewerSession:
        session = ViewerSession.of(make_napari_viewer())
        made.append(ref(session))
        return session

    yield start
    for one in made:
        if (session := one()) is not None:
            session.close()


def _add(
    session: ViewerSession, shape: tuple[int, ...] = (4, 96, 96), *, seed: int = 1
) -> tuple[ImageLayer, np.ndarray]:
    image, truth = rock(shape, seed=seed)
    data, given, _ = image_layer(image)
    return session.viewer.add_image(data, **given), np.asarray(truth.data)


def _make(
    session: ViewerSession, layer: ImageLayer, runs: Path, **options: Any
) -> LivePrediction:
    model = next(runs.glob("*rock-1"))
    return LivePrediction(
        session,
        layer,
        image=image_of(layer),
        models=(model,),
        options=PredictionOptions(**options),
    )


def _finish(prediction: LivePrediction, qtbot: Any) -> Outcome:
    with qtbot.waitSignal(prediction.ended, timeout=PATIENCE) as caught:
        prediction.start()
    outcome: Outcome = caught.args[0]
    return outcome


def _until_planes(prediction: LivePrediction, count: int, qtbot: Any) -> None:
    seen: list[int] = []
    prediction.progress.connect(lambda done, _total: seen.append(done))
    prediction.start()
    qtbot.waitUntil(lambda: bool(seen) and max(seen) >= count, timeout=PATIENCE)


def test_labels_have_classes_and_position_and_can_be_edited_at_the_end(
    begin: Callable[[], ViewerSession], runs: Path, qtbot: Any
) -> None:
    session = begin()
    layer, truth = _add(session)
    layer.translate = (0, 5, 7)
    prediction = _make(session, layer, runs)
    steps: list[tuple[int, int]] = []
    shown: list[bool] = []
    prediction.progress.connect(lambda *step: steps.append(step))
    prediction.progress.connect(
        lambda *_: shown.append(prediction.labels_layer in session.viewer.layers)
    )
    outcome = _finish(prediction, qtbot)
    assert outcome.status == "finished", outcome.text
    assert (4, 4) in steps
    assert shown[steps.index((1, 4))]  # at once, not at the end
    labels = prediction.labels_layer
    assert labels is not None
    assert labels.name == "rock segmented"
    assert list(labels.features["class"]) == ["unlabelled", "grain", "pore"]
    np.testing.assert_allclose(labels.scale, layer.scale)
    np.testing.assert_allclose(labels.translate, (0, 5, 7))
    assert labels.editable
    assert not isinstance(labels.data, np.memmap)
    assert (np.asarray(labels.data) == truth).mean() > 0.9
    share = (np.asarray(labels.data) == 2).mean()
    assert f"pore {100 * share:.1f} %" in outcome.text


def test_probabilities_and_confidence_agree_with_the_labels(
    begin: Callable[[], ViewerSession], runs: Path, qtbot: Any
) -> None:
    session = begin()
    layer, _ = _add(session)
    prediction = _make(session, layer, runs, probabilities=True, confidence=True)
    session.viewer.layers.selection.active = layer
    assert _finish(prediction, qtbot).status == "finished"
    layers = session.viewer.layers
    names = [
        "rock",
        "p(grain) rock",
        "p(pore) rock",
        "confidence rock",
        "rock segmented",
    ]
    assert [one.name for one in layers] == names
    grain, pore, best = (np.asarray(layers[i].data, np.float32) for i in (1, 2, 3))
    np.testing.assert_allclose(grain + pore, 1, atol=2e-3)
    np.testing.assert_array_equal(best, np.maximum(grain, pore))
    sure = np.abs(grain - pore) > 0.01
    np.testing.assert_array_equal(
        np.where(pore > grain, 2, 1)[sure], np.asarray(layers[4].data)[sure]
    )
    assert not any(layers[i].visible for i in (1, 2, 3))
    assert tuple(layers[3].contrast_limits) == (0, 1)
    assert (
        layers.selection.active is layer
    )  # nothing takes the image away from the docks
    layers[3].visible = True


def test_planes_are_added_to_one_layer_until_it_is_edited(
    begin: Callable[[], ViewerSession], runs: Path, qtbot: Any
) -> None:
    session = begin()
    layer, _ = _add(session)
    first = _make(session, layer, runs, region={"Z": 1})
    assert _finish(first, qtbot).status == "finished"
    labels = first.labels_layer
    assert labels is not None
    assert [bool(plane.any()) for plane in np.asarray(labels.data)] == [
        False,
        True,
        False,
        False,
    ]
    second = _make(session, layer, runs, region={"Z": 2, "X": (0, 50)})
    texts: list[str] = []
    second.message.connect(lambda text, _level: texts.append(text))
    assert _finish(second, qtbot).status == "finished"
    assert second.labels_layer is labels
    assert "rock segmented" in texts[0]
    assert [bool(plane.any()) for plane in np.asarray(labels.data)] == [
        False,
        True,
        True,
        False,
    ]
    assert not np.asarray(labels.data)[2, :, 50:].any()
    labels.data_setitem((np.array([0]), np.array([3]), np.array([3])), 2)
    third = _make(session, layer, runs)
    assert _finish(third, qtbot).status == "finished"
    assert third.labels_layer is not labels
    assert np.asarray(labels.data)[0, 3, 3] == 2
    assert not np.asarray(labels.data)[3].any()


def test_another_model_gets_another_layer(
    begin: Callable[[], ViewerSession], runs: Path, qtbot: Any
) -> None:
    session = begin()
    layer, _ = _add(session)
    first = _make(session, layer, runs)
    _finish(first, qtbot)
    model = next(runs.glob("*rock-1")) / "model.safetensors"
    os.utime(model, ns=(1, 1))  # trained on, under the same name
    second = _make(session, layer, runs)
    _finish(second, qtbot)
    assert second.labels_layer is not first.labels_layer


def test_stopping_a_second_prediction_keeps_the_labels_of_the_first(
    begin: Callable[[], ViewerSession], runs: Path, qtbot: Any
) -> None:
    session = begin()
    layer, _ = _add(session, (40, 256, 256))
    first = _make(session, layer, runs)
    assert _finish(first, qtbot).status == "finished"
    assert first.labels_layer is not None
    before = np.array(first.labels_layer.data)
    second = _make(session, layer, runs)
    _until_planes(second, 2, qtbot)
    with qtbot.waitSignal(second.ended, timeout=PATIENCE):
        second.stop()
    assert second.labels_layer is first.labels_layer
    np.testing.assert_array_equal(second.labels_layer.data, before)


def test_stop_keeps_finished_planes(
    begin: Callable[[], ViewerSession], runs: Path, qtbot: Any
) -> None:
    session = begin()
    layer, truth = _add(session, (800, 256, 256))
    prediction = _make(session, layer, runs)
    _until_planes(prediction, 3, qtbot)
    with qtbot.waitSignal(prediction.ended, timeout=120_000) as caught:
        prediction.stop()
    outcome = caught.args[0]
    assert outcome.status == "stopped"
    labels = np.asarray(prediction.labels_layer.data)  # type: ignore[union-attr]
    done = sum(bool(plane.any()) for plane in labels)
    assert 3 <= done < 800
    assert outcome.text == f"Stopped: {done} of 800 planes are done."
    assert (labels[:done] == truth[:done]).mean() > 0.9


def test_a_stop_at_any_moment_ends_the_prediction_once(
    begin: Callable[[], ViewerSession], runs: Path, qtbot: Any
) -> None:
    session = begin()
    layer, _ = _add(session, (30, 256, 256))
    chance = random.Random(1)
    for _ in range(5):
        prediction = _make(session, layer, runs, confidence=True)
        ends: list[Outcome] = []
        prediction.ended.connect(ends.append)
        prediction.start()
        qtbot.wait(int(chance.random() * 1500))
        prediction.stop()
        qtbot.waitUntil(lambda ends=ends: bool(ends), timeout=120_000)
        qtbot.wait(100)
        assert len(ends) == 1
        assert ends[0].status in ("stopped", "finished")
        layers = [one for one in session.viewer.layers if isinstance(one, LabelsLayer)]
        assert all(
            np.asarray(one.data).any() and one.editable for one in layers
        )  # an empty layer is not left behind
    again = _make(session, layer, runs, region={"Z": 0})
    assert _finish(again, qtbot).status == "finished"


def test_a_worker_that_is_killed_leaves_the_layer_and_the_next_prediction_works(
    begin: Callable[[], ViewerSession], runs: Path, qtbot: Any
) -> None:
    session = begin()
    layer, _ = _add(session, (200, 256, 256))
    prediction = _make(session, layer, runs)
    _until_planes(prediction, 3, qtbot)
    assert session.client.ready is not None
    with qtbot.waitSignal(prediction.ended, timeout=PATIENCE) as caught:
        os.kill(session.client.ready.pid, signal.SIGKILL)
    outcome = caught.args[0]
    assert outcome.status == "died"
    assert "of 200 planes are done" in outcome.text
    assert prediction.labels_layer in session.viewer.layers
    assert np.asarray(prediction.labels_layer.data)[:3].any()  # type: ignore[union-attr]
    again = _make(session, layer, runs, region={"Z": 0})
    assert _finish(again, qtbot).status == "finished"


def test_deleting_the_labels_layer_stops_and_deleting_the_image_does_not(
    begin: Callable[[], ViewerSession], runs: Path, qtbot: Any
) -> None:
    session = begin()
    layer, _ = _add(session, (200, 256, 256))
    prediction = _make(session, layer, runs)
    texts: list[str] = []
    prediction.message.connect(lambda text, _level: texts.append(text))
    _until_planes(prediction, 2, qtbot)
    with qtbot.waitSignal(prediction.ended, timeout=PATIENCE) as caught:
        session.viewer.layers.remove(prediction.labels_layer)
    assert caught.args[0].status == "stopped"
    assert texts == ["The labels layer was deleted, so the prediction stops."]
    second = _make(session, layer, runs)
    second.message.connect(lambda text, _level: texts.append(text))
    _until_planes(second, 2, qtbot)
    with qtbot.waitSignal(second.ended, timeout=PATIENCE) as caught:
        session.viewer.layers.remove(layer)
    assert caught.args[0].status == "finished"
    assert texts[1:] == ["rock was deleted; its prediction continues."]
    assert np.asarray(second.labels_layer.data).all()  # type: ignore[union-attr]


def test_layers_may_be_renamed_and_moved_meanwhile(
    begin: Callable[[], ViewerSession], runs: Path, qtbot: Any
) -> None:
    session = begin()
    layer, _ = _add(session, (30, 256, 256))
    prediction = _make(session, layer, runs)
    texts: list[str] = []
    prediction.message.connect(lambda text, _level: texts.append(text))
    _until_planes(prediction, 2, qtbot)
    with qtbot.waitSignal(prediction.ended, timeout=PATIENCE) as caught:
        session.viewer.layers.move(0, 2)
        layer.name = "other"
        assert prediction.labels_layer is not None
        prediction.labels_layer.name = "mine"
    assert caught.args[0].status == "finished"
    assert texts == []
    assert caught.args[0].text.startswith("mine: 30 planes")


def test_refused_predictions_are_reported_and_leave_no_layer(
    begin: Callable[[], ViewerSession], runs: Path, qtbot: Any
) -> None:
    session = begin()
    layer, _ = _add(session)
    image = image_of(layer)
    prediction = LivePrediction(session, layer, image=image, models=(runs / "gone",))
    outcome = _finish(prediction, qtbot)
    assert outcome.status == "failed"
    assert "no such model file" in outcome.text
    assert [one.name for one in session.viewer.layers] == ["rock"]


def test_closing_the_viewer_in_the_middle_breaks_nothing(
    begin: Callable[[], ViewerSession], runs: Path, qtbot: Any
) -> None:
    session = begin()
    layer, _ = _add(session, (200, 256, 256))
    prediction = _make(session, layer, runs, confidence=True)
    _until_planes(prediction, 1, qtbot)
    with qtbot.waitSignal(prediction.ended, timeout=PATIENCE) as caught:
        session.close()
    assert caught.args[0].status == "stopped"
    qtbot.wait(300)
    assert not list(runs.glob(".session-*"))
