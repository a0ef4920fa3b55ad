"""Decisions of the Evaluate dock, without Qt: enabled buttons and reasons."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from napari_strata.evaluation.seen_scores import TRAINED_ON
from napari_strata.widgets.parts.control import Control

NOTHING_RUNS = "Nothing is running."


@dataclass(frozen=True)
class LabelsInfo:
    """Name of a labels layer, and its size along each axis letter of TZYX."""

    name: str
    sizes: Mapping[str, int]


@dataclass(frozen=True)
class ZeroMeaning:
    """Meaning of the value 0 in the truth: background (True) or unlabelled (False).

    Parameters
    ----------
    layer_name
        Name of the truth layer.
    stored
        Meaning in the class map of the truth layer; None if it does not have 0.
    chosen
        Choice of the user for this layer, or None.
    suggested
        Meaning by the rule of the class table.
    """

    layer_name: str
    stored: bool | None = None
    chosen: bool | None = None
    suggested: bool = False

    @property
    def is_background(self) -> bool:
        """Meaning by the class map, or the user, or the rule."""
        if self.stored is not None:
            return self.stored
        if self.chosen is not None:
            return self.chosen
        return self.suggested


@dataclass(frozen=True)
class EvaluateState:
    """State of the Evaluate dock that determines its controls.

    Parameters
    ----------
    choice_problem
        Reason why the chosen layers cannot be used as labels; empty if they can.
    prediction, truth
        The chosen labels; None if a layer is missing or cannot be read.
    same_layer
        True if one layer is chosen as both.
    prediction_ndim
        Number of dimensions of the prediction layer; 0 without a layer.
    activity
        Description of the running work; empty if nothing runs.
    is_running
        True while the worker compares.
    has_scores
        True after a comparison.
    zero
        Meaning of the value 0; None without a truth.
    is_trained
        True if the model of the prediction was trained on the truth.
    """

    choice_problem: str = ""
    prediction: LabelsInfo | None = None
    truth: LabelsInfo | None = None
    same_layer: bool = False
    prediction_ndim: int = 0
    activity: str = ""
    is_running: bool = False
    has_scores: bool = False
    zero: ZeroMeaning | None = None
    is_trained: bool = False


@dataclass(frozen=True)
class EvaluateView:
    """Texts and controls that the Evaluate dock shows for a state."""

    problem: str
    """Reason why the layers cannot be compared; empty if they can."""
    truth_text: str | None
    """Text below the truth; None keeps the description of the layer."""
    compare: Control
    stop: Control
    errors: Control
    export: Control
    scope: Control
    zero_is_background: bool
    zero_text: str
    zero_can_change: bool


def resolve(state: EvaluateState) -> EvaluateView:
    """Decide what the Evaluate dock shows, and which controls are enabled."""
    problem = _find_problem(state)
    no_scores = state.activity
    if not no_scores and not state.has_scores:
        no_scores = "Compare first."
    truth_text = None
    both_chosen = state.prediction_ndim > 0 and state.zero is not None
    if problem and both_chosen and not state.activity:
        truth_text = problem
    elif not problem and state.is_trained:
        truth_text = f"⚠ {TRAINED_ON}"
    return EvaluateView(
        problem=problem,
        truth_text=truth_text,
        compare=Control(
            purpose="Score the prediction against the truth.",
            why_not=state.activity or problem,
        ),
        stop=Control(
            purpose="Stop the comparison.",
            why_not="" if state.is_running else NOTHING_RUNS,
            visible=state.is_running,
        ),
        errors=Control(
            purpose="Add a layer with the wrong predicted classes; 0 elsewhere.",
            why_not=no_scores,
        ),
        export=Control(
            purpose=(
                "Write report.html, metrics.json, metrics.csv and confusion.png "
                "into a folder."
            ),
            why_not=no_scores,
        ),
        scope=Control(
            purpose="Compare all planes, or only the visible one.",
            why_not="" if state.prediction_ndim > 2 else "These labels are one plane.",
        ),
        zero_is_background=state.zero is not None and state.zero.is_background,
        zero_text=_zero_text(state),
        zero_can_change=state.zero is None or state.zero.stored is None,
    )


def _find_problem(state: EvaluateState) -> str:
    """Explain why the chosen layers cannot be compared; empty if they can."""
    if state.choice_problem:
        return state.choice_problem
    if state.same_layer:
        return "Prediction and truth are the same layer: choose another truth."
    prediction, truth = state.prediction, state.truth
    if prediction is None or truth is None:
        return "Choose the prediction and the truth."
    differences = []
    for axis in "TZYX":
        predicted_size = prediction.sizes.get(axis, 1)
        true_size = truth.sizes.get(axis, 1)
        if predicted_size != true_size:
            differences.append(f"{axis}: {predicted_size} against {true_size}")
    if not differences:
        return ""
    return (
        f"{prediction.name} and {truth.name} differ in size "
        f"({', '.join(differences)}): choose labels of the same image."
    )


def _zero_text(state: EvaluateState) -> str:
    if state.zero is None:
        return ""
    score = "scored as a class" if state.zero.is_background else "not scored"
    if state.zero.stored is None:
        return f"Where the truth is 0, it is {score}."
    return (
        f"Where the truth is 0, it is {score}, by the classes of"
        f" {state.zero.layer_name} (change them in the Train dock)."
    )
