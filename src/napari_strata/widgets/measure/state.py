"""Decisions of the Measure dock, without Qt: enabled buttons and reasons."""

from __future__ import annotations

from dataclasses import dataclass

from napari_strata.widgets.parts.control import Control

NOTHING_RUNS = "Nothing is running."

WHOLE, SPECIMEN = "whole image", "specimen"
"""Regions that are not a layer."""


@dataclass(frozen=True)
class MeasureState:
    """State of the Measure dock that determines its controls.

    Parameters
    ----------
    labels_problem
        Reason why the labels cannot be measured; empty if they can.
    labels
        Name of the labels; empty without any.
    depth, times
        Number of planes along Z, and of time points.
    region
        `WHOLE`, `SPECIMEN` or the name of a layer.
    is_drawn
        True if the region is a Shapes layer.
    region_problem
        Reason why the region cannot be used; empty if it can.
    model
        Name of the model; empty without one.
    image
        Name of the image; empty without one.
    activity
        Description of the running work; empty if nothing runs.
    is_running
        True while the worker measures.
    has_measures
        True after a measurement.
    """

    labels_problem: str = ""
    labels: str = ""
    depth: int = 1
    times: int = 1
    region: str = WHOLE
    is_drawn: bool = False
    region_problem: str = ""
    model: str = ""
    image: str = ""
    activity: str = ""
    is_running: bool = False
    has_measures: bool = False


@dataclass(frozen=True)
class MeasureView:
    """Texts and controls that the Measure dock shows for a state."""

    problem: str
    """Reason why nothing can be measured; empty if something can."""
    model_text: str
    region_text: str
    measure: Control
    stop: Control
    export: Control
    along: Control


def resolve(state: MeasureState) -> MeasureView:
    """Decide what the Measure dock shows, and which controls are enabled."""
    problem = state.labels_problem
    if not problem and not state.labels:
        problem = "Choose the labels to measure."
    if not problem:
        problem = state.region_problem
    no_measures = state.activity
    if not no_measures and not state.has_measures:
        no_measures = "Measure first."
    return MeasureView(
        problem=problem,
        model_text=_model_text(state),
        region_text=state.region_problem or _region_text(state),
        measure=Control(
            purpose="Measure the labels in the region.",
            why_not=state.activity or problem,
        ),
        stop=Control(
            purpose="Stop the measurement.",
            why_not="" if state.is_running else NOTHING_RUNS,
            visible=state.is_running,
        ),
        export=Control(
            purpose="Write measures.json, tables as CSV and a report into a folder.",
            why_not=no_measures,
        ),
        along=Control(
            purpose="Axis of the profile.",
            why_not="" if state.labels else "Choose the labels first.",
        ),
    )


def _model_text(state: MeasureState) -> str:
    if not state.model:
        return "Without a model, fractions have no interval."
    if not state.image:
        return (
            "The interval comes from the model's errors in its validation. Choose the"
            " image as well, so that it is compared with the training images."
        )
    return "The interval comes from the model's errors in its validation."


def _region_text(state: MeasureState) -> str:
    if state.region == SPECIMEN:
        return (
            "The hull of everything that is not outside. It becomes a layer; if you"
            " edit that, it is the region."
        )
    if state.region == WHOLE:
        return ""
    if state.is_drawn:
        return "The area inside the shapes, in every plane."
    return "The painted area."
