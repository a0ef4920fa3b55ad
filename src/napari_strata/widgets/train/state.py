"""Decisions of the Train dock, without Qt: what can be pressed, and why not."""

from __future__ import annotations

from dataclasses import dataclass

from napari_strata.widgets.parts.control import Control


@dataclass(frozen=True)
class TrainState:
    """Everything that the buttons of the Train dock depend on.

    Parameters
    ----------
    data_problem, recipe_problem
        Reasons why these layers or files, and this recipe, cannot be trained on. Empty:
        they can.
    is_starting
        True while the layers are written for a training that was asked for.
    is_running
        True while a training runs, of this dock or of an earlier napari.
    has_model
        True when the run in the dock has a model.
    can_continue
        True when the dock knows how the run was trained, so that it can go on.
    """

    data_problem: str = ""
    recipe_problem: str = ""
    is_starting: bool = False
    is_running: bool = False
    has_model: bool = False
    can_continue: bool = False


@dataclass(frozen=True)
class TrainView:
    """Texts and controls that the Train dock shows for a state."""

    problem: str
    """Reason why a training cannot start; empty when it can."""
    problem_text: str
    """Line above the buttons; empty while a training runs, which speaks for itself."""
    train: Control
    stop: Control
    predict: Control
    resume: Control
    extend: Control
    open_run: Control


def resolve(state: TrainState) -> TrainView:
    """Decide what can be pressed in the Train dock."""
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
        train=Control(
            purpose="Train a network on this image and these labels.",
            why_not=problem,
        ),
        stop=Control(
            purpose=(
                "Stop. The best model so far is kept; there is one from the end of "
                "the first epoch."
            ),
            why_not="" if state.is_running else "Nothing is running.",
        ),
        predict=Control(
            purpose="Segment the whole image with the new model.",
            why_not=no_model,
            visible=not no_model,
        ),
        resume=Control(purpose="Go on where it stopped.", why_not=no_run),
        extend=Control(purpose="Train the same run for more epochs.", why_not=no_run),
        open_run=Control(purpose="Go on with a run on disk.", why_not=busy),
    )
