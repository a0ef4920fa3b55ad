"""Decisions of the docks, without a viewer: enabled buttons and reasons."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from napari_strata.widgets.evaluate import state as evaluate
from napari_strata.widgets.evaluate.state import EvaluateState, LabelsInfo, ZeroMeaning
from napari_strata.widgets.predict import state as predict
from napari_strata.widgets.predict.state import PredictState
from napari_strata.widgets.train import state as train
from napari_strata.widgets.train.state import TrainState

STACK = LabelsInfo("prediction", {"T": 1, "Z": 2, "Y": 4, "X": 5})
READY = EvaluateState(
    prediction=STACK,
    truth=replace(STACK, name="truth"),
    prediction_ndim=3,
    zero=ZeroMeaning("truth"),
)


def test_the_decisions_load_no_qt() -> None:
    code = (
        "import sys\n"
        "import napari_strata.widgets.train.state\n"
        "import napari_strata.widgets.predict.state\n"
        "import napari_strata.widgets.evaluate.state\n"
        "print(any(name in sys.modules for name in ('qtpy', 'napari', 'magicgui')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


def test_train_starts_only_with_data_and_a_recipe() -> None:
    assert train.resolve(TrainState()).train.enabled
    view = train.resolve(TrainState(data_problem="No image.", recipe_problem="Bad."))
    assert view.train.tooltip == view.problem_text == "No image."
    view = train.resolve(TrainState(recipe_problem="Bad."))
    assert view.train.tooltip == view.problem_text == "Bad."


def test_train_allows_only_stop_while_a_training_runs() -> None:
    state = TrainState(is_running=True, has_model=True, can_continue=True)
    view = train.resolve(state)
    assert view.stop.enabled
    assert not view.problem_text
    for control in (view.train, view.resume, view.extend, view.open_run):
        assert control.tooltip == "A training is running: stop it first."
    assert not view.predict.visible


def test_train_starts_once_while_the_layers_are_written() -> None:
    view = train.resolve(TrainState(is_starting=True, can_continue=True))
    assert not view.problem_text
    for control in (view.train, view.resume, view.extend, view.open_run):
        assert control.tooltip == "A training is starting."


def test_train_continues_and_predicts_an_existing_run() -> None:
    nothing = train.resolve(TrainState())
    assert nothing.resume.tooltip == "Train, or open a run, first."
    assert nothing.open_run.enabled
    assert not nothing.predict.visible
    trained = train.resolve(TrainState(has_model=True, can_continue=True))
    assert trained.resume.enabled
    assert trained.extend.enabled
    assert trained.predict.enabled
    assert trained.predict.visible
    assert not trained.stop.enabled


def test_train_says_that_it_continues_and_offers_to_start_over() -> None:
    new = train.resolve(TrainState())
    assert new.train_text == "Train"
    assert not new.start_over.visible
    view = train.resolve(TrainState(start="2026-11-30-sand, epoch 12"))
    assert view.train_text == "Train on"
    assert "continue from 2026-11-30-sand, epoch 12" in view.train.tooltip
    assert view.start_over.visible
    assert "random weights" in view.start_over.tooltip
    busy = train.resolve(TrainState(start="sand", is_running=True))
    assert not busy.start_over.enabled


def test_predict_waits_for_the_running_prediction() -> None:
    view = predict.resolve(PredictState(is_running=True, labels_name="labels"))
    assert view.stop.enabled
    assert view.predict.tooltip == view.save.tooltip
    assert "is running" in view.predict.tooltip


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (PredictState(), "There is nothing to save yet: press Predict."),
        (
            PredictState(is_saving=True, labels_name="labels"),
            "Labels are being saved.",
        ),
        (PredictState(labels_name="labels"), ""),
    ],
)
def test_predict_saves_labels_that_exist(state: PredictState, reason: str) -> None:
    assert predict.resolve(state).save.why_not == reason


def test_predict_explains_what_is_missing() -> None:
    view = predict.resolve(PredictState(problem="Choose a model."))
    assert view.predict.tooltip == "Choose a model."


def test_evaluate_compares_labels_of_one_size() -> None:
    view = evaluate.resolve(READY)
    assert view.compare.enabled
    assert view.scope.enabled
    assert view.truth_text is None
    flat = LabelsInfo("flat", {"T": 1, "Z": 1, "Y": 4, "X": 5})
    view = evaluate.resolve(replace(READY, truth=flat))
    assert "prediction and flat differ in size (Z: 2 against 1)" in view.problem
    assert view.truth_text == view.compare.tooltip == view.problem


def test_evaluate_needs_two_layers() -> None:
    same = EvaluateState(
        same_layer=True, prediction_ndim=3, zero=ZeroMeaning("prediction")
    )
    assert "the same layer" in evaluate.resolve(same).problem
    missing = evaluate.resolve(EvaluateState(choice_problem="Choose the truth."))
    assert missing.compare.tooltip == "Choose the truth."
    assert missing.truth_text is None
    assert not missing.scope.enabled


def test_evaluate_writes_only_scores_that_exist() -> None:
    assert evaluate.resolve(READY).errors.tooltip == "Compare first."
    view = evaluate.resolve(replace(READY, has_scores=True))
    assert view.errors.enabled
    assert view.export.enabled
    busy = evaluate.resolve(
        replace(READY, has_scores=True, activity="Comparing ...", is_running=True)
    )
    assert busy.stop.visible
    for control in (busy.compare, busy.errors, busy.export):
        assert control.tooltip == "Comparing ..."


@pytest.mark.parametrize(
    ("zero", "is_background", "can_change"),
    [
        (ZeroMeaning("truth"), False, True),
        (ZeroMeaning("truth", suggested=True), True, True),
        (ZeroMeaning("truth", chosen=False, suggested=True), False, True),
        (ZeroMeaning("truth", stored=True, chosen=False), True, False),
        (ZeroMeaning("truth", stored=False, suggested=True), False, False),
    ],
)
def test_evaluate_takes_the_meaning_of_0_from_the_class_map_first(
    zero: ZeroMeaning, is_background: bool, can_change: bool
) -> None:
    view = evaluate.resolve(replace(READY, zero=zero))
    assert view.zero_is_background == is_background
    assert view.zero_can_change == can_change
    assert ("scored as a class" in view.zero_text) == is_background
    assert ("by the classes of truth" in view.zero_text) == (not can_change)
