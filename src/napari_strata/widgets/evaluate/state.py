"""Decisions of the Evaluate dock, without Qt: what can be pressed, and why not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from napari_strata.widgets.parts.control import Control

NOTHING_RUNS = "Nothing is running."


@dataclass(frozen=True)
class LabelsInfo:
    """Name of a labels layer, and its size along each axis letter of TZYX."""

    name: str
    sizes: Mapping[str, int]


@dataclass(frozen=True)
class ZeroMeaning:
    """Sources that say whether the value 0 of the truth is background (True) or
    unlabelled (False).

    Parameters
    ----------
    layer_name
        Name of the truth layer.
    stored
        Meaning in the class map of the truth layer. None: no class map names 0.
    chosen
        Choice of the user for this layer. None: the user has not chosen.
    suggested
        Meaning that the rule of the class table suggests.
    """

    layer_name: str
    stored: bool | None = None
    chosen: bool | None = None
    suggested: bool = False

    @property
    def is_background(self) -> bool:
        """Meaning by the first source that knows one.

        The class map, the user, the rule.
        """
        if self.stored is not None:
            return self.stored
        if self.chosen is not None:
            return self.chosen
        return self.suggested


@dataclass(frozen=True)
class EvaluateState:
    """Everything that the controls of the Evaluate dock depend on.

    Parameters
    ----------
    choice_problem
        Reason why the chosen layers cannot be read as labels. Empty: they can.
    prediction, truth
        The chosen labels. None while a layer is missing or cannot be read.
    same_layer
        True when one layer is chosen as both.
    prediction_ndim
        Number of dimensions of the prediction layer. 0: no layer is chosen.
    activity
        Sentence about the work in progress. Empty: the dock is idle.
    is_running
        True while the worker compares.
    has_scores
        True once a comparison has ended.
    zero
        Meaning of the value 0. None while no truth is chosen.
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


@dataclass(frozen=True)
class EvaluateView:
    """Texts and controls that the Evaluate dock shows for a state."""

    problem: str
    """Reason why the two layers cannot be compared; empty when they can."""
    truth_text: str | None
    """Text under the truth; None leaves the description of the layer."""
    compare: Control
    stop: Control
    errors: Control
    export: Control
    scope: Control
    zero_is_background: bool
    zero_text: str
    zero_can_change: bool


def resolve(state: EvaluateState) -> EvaluateView:
    """Decide what the dock shows and what can be pressed."""
    problem = _find_problem(state)
    no_scores = state.activity
    if not no_scores and not state.has_scores:
        no_scores = "Compare first."
    truth_text = None
    both_chosen = state.prediction_ndim > 0 and state.zero is not None
    if problem and both_chosen and not state.activity:
        truth_text = problem
    return EvaluateView(
        problem=problem,
        truth_text=truth_text,
        compare=Control(
            purpose="Score the prediction against the truth.",
            why_not=state.activity or problem,
        ),
        stop=Control(
            purpose="Stop comparing.",
            why_not="" if state.is_running else NOTHING_RUNS,
            visible=state.is_running,
        ),
        errors=Control(
            purpose="The predicted classes where they are wrong; 0 elsewhere.",
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
            purpose="All planes, or only the one that you see.",
            why_not="" if state.prediction_ndim > 2 else "These labels are one plane.",
        ),
        zero_is_background=state.zero is not None and state.zero.is_background,
        zero_text=_zero_text(state),
        zero_can_change=state.zero is None or state.zero.stored is None,
    )


def _find_problem(state: EvaluateState) -> str:
    """Explain why the chosen layers cannot be compared; empty when they can."""
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
        f"({', '.join(differences)}): choose labels of the same pixels."
    )


def _zero_text(state: EvaluateState) -> str:
    if state.zero is None:
        return ""
    score = "scored as a class" if state.zero.is_background else "not scored"
    if state.zero.stored is None:
        return f"Where the truth is 0, it is {score}."
    return (
        f"Where the truth is 0, it is {score}, as the classes of"
        f" {state.zero.layer_name} say (the Train dock changes them)."
    )
