"""Decisions of the Predict dock, without Qt: enabled buttons and reasons."""

from __future__ import annotations

from dataclasses import dataclass

from napari_strata.widgets.parts.control import Control


@dataclass(frozen=True)
class PredictState:
    """State of the Predict dock that determines its buttons.

    Parameters
    ----------
    problem
        Reason why image, model and area cannot be used; empty if they can.
    is_running, is_saving
        True while a prediction runs, and while labels are written to a file.
    labels_name
        Name of the newest predicted labels layer, or None.
    """

    problem: str = ""
    is_running: bool = False
    is_saving: bool = False
    labels_name: str | None = None


@dataclass(frozen=True)
class PredictView:
    """Controls that the Predict dock shows for a state."""

    predict: Control
    stop: Control
    save: Control


def resolve(state: PredictState) -> PredictView:
    """Decide which buttons of the Predict dock are enabled."""
    busy = ""
    if state.is_running:
        busy = "A prediction is running: wait for it, or stop it."
    cannot_save = busy
    if not busy and state.is_saving:
        cannot_save = "Labels are being saved."
    elif not busy and state.labels_name is None:
        cannot_save = "There is nothing to save yet: press Predict."
    return PredictView(
        predict=Control(
            purpose="Segment the image with this model.",
            why_not=busy or state.problem,
        ),
        stop=Control(
            purpose="Stop; finished planes are kept.",
            why_not="" if state.is_running else "Nothing is running.",
        ),
        save=Control(
            purpose=f"Write the labels {state.labels_name} to a file.",
            why_not=cannot_save,
        ),
    )
