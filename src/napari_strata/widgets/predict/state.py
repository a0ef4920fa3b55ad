"""Decisions of the Predict dock, without Qt: enabled buttons and reasons."""

from __future__ import annotations

from dataclasses import dataclass

from napari_strata.core.text import format_count
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
    files
        Number of files to predict; None for the selected layer.
    doubt
        Sentence about an image for which wrong labels are likely; empty otherwise.
    """

    problem: str = ""
    files: int | None = None
    is_running: bool = False
    is_saving: bool = False
    labels_name: str | None = None
    doubt: str = ""


@dataclass(frozen=True)
class PredictView:
    """Controls that the Predict dock shows for a state."""

    predict_text: str
    predict: Control
    stop: Control
    save: Control
    doubt: str


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
    text, purpose = "Predict", "Segment the image with this model."
    kept = "planes"
    if state.files is not None:
        text = f"Predict {format_count(state.files, 'file')}"
        purpose = "Segment these files with this model, one after another."
        kept = "files"
    return PredictView(
        predict_text=text,
        predict=Control(purpose=purpose, why_not=busy or state.problem),
        stop=Control(
            purpose=f"Stop; finished {kept} are kept.",
            why_not="" if state.is_running else "Nothing is running.",
        ),
        save=Control(
            purpose=f"Write the labels {state.labels_name} to a file.",
            why_not=cannot_save,
            visible=state.files is None,
        ),
        # Files are compared one by one, when they are predicted.
        doubt=state.doubt if state.files is None and not state.problem else "",
    )
