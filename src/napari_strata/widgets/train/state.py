"""Decisions of the Train dock, without Qt: enabled buttons and reasons."""

from __future__ import annotations

from dataclasses import dataclass

from napari_strata.widgets.parts.control import Control


@dataclass(frozen=True)
class TrainState:
    """State of the Train dock that determines its buttons.

    Parameters
    ----------
    data_problem, recipe_problem
        Reasons why the data or the recipe cannot be used; empty if they can.
    is_starting
        True while the layers are written for a requested training.
    is_running
        True while a training of this dock or of an earlier napari runs.
    has_model
        True if the run in the dock has a model.
    start
        Name and epoch of the model that the next training continues from; empty if it
        begins with random weights.
    can_continue
        True if the dock has the request of the run, so that it can be resumed.
    """

    data_problem: str = ""
    recipe_problem: str = ""
    is_starting: bool = False
    is_running: bool = False
    has_model: bool = False
    can_continue: bool = False
    start: str = ""


@dataclass(frozen=True)
class TrainView:
    """Texts and controls that the Train dock shows for a state."""

    problem: str
    """Reason why a training cannot start; empty if it can."""
    problem_text: str
    """Line above the buttons; empty while a training runs."""
    train_text: str
    """Text of the button that trains."""
    train: Control
    start_over: Control
    stop: Control
    predict: Control
    resume: Control
    extend: Control
    open_run: Control


def resolve(state: TrainState) -> TrainView:
    """Decide which buttons of the Train dock are enabled."""
    busy = ""
    if state.is_running:
        busy = "A training is running: stop it first."
    elif state.is_starting:
        busy = "A training is starting."
    problem = busy or state.data_problem or state.recipe_problem
    no_run = busy
    if not busy and not state.can_continue:
        no_run = "Train, or open a run, first."
    no_model = ""
    if not state.has_model:
        no_model = "There is no model yet: train one."
    elif state.is_running or state.is_starting:
        no_model = "Stop the training first."
    return TrainView(
        problem=problem,
        problem_text="" if busy else problem,
        train_text="Train on" if state.start else "Train",
        train=Control(
            purpose=(
                f"Train: continue from {state.start}, with the labels as they are now."
                if state.start
                else "Train a network on this image and these labels."
            ),
            why_not=problem,
        ),
        start_over=Control(
            purpose=(
                "Train a new network from the beginning, with random weights."
                f" {state.start} is kept."
            ),
            why_not=problem,
            visible=bool(state.start),
        ),
        stop=Control(
            purpose=(
                "Stop. The best model so far is kept; in the first epoch, the newest"
                " weights."
            ),
            why_not="" if state.is_running else "Nothing is running.",
        ),
        predict=Control(
            purpose="Segment the whole image with the new model.",
            why_not=no_model,
            visible=not no_model,
        ),
        resume=Control(purpose="Continue where it stopped.", why_not=no_run),
        extend=Control(purpose="Train the same run for more epochs.", why_not=no_run),
        open_run=Control(
            purpose="Open a run on disk, to resume or extend it.", why_not=busy
        ),
    )
