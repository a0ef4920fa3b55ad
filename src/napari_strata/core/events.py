"""Events: the frozen values that a job yields.

They are the same for the API, the command line and the viewer. Each is plain data:
`to_json` writes one line, and `from_json` reads the event back.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from napari_strata.core.text import describe_mean_iou


@dataclass(frozen=True)
class Event:
    """Base of all events."""


@dataclass(frozen=True)
class Message(Event):
    """Something the user should read. `level` is "info" or "warning"."""

    text: str
    level: str = "info"


@dataclass(frozen=True)
class TrainingStarted(Event):
    """Training is about to take its first step."""

    run: str
    device: str
    precision: str
    parameters: int
    first_epoch: int
    epochs: int
    batches: int
    training_images: tuple[str, ...]
    validation_images: tuple[str, ...]
    validation_text: str
    class_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class BatchEnd(Event):
    """One optimiser step.

    `epoch` and `batch` count from 1; `seconds` is the time of the step.
    """

    epoch: int
    batch: int
    batches: int
    loss: float
    learning_rate: float
    seconds: float


@dataclass(frozen=True)
class LabelsUpdated(Event):
    """From the next step on, a training uses labels that were painted meanwhile.

    `pixels` labelled pixels train; `held_back` others only measure.
    """

    epoch: int
    pixels: int
    held_back: int
    left_out: tuple[str, ...] = ()
    """Planes that are not used, because they lie beside one that is held back."""
    resumed: bool = False
    """True if they were painted since the run stopped, not while it runs."""

    @property
    def text(self) -> str:
        """The event in words."""
        text = "The labels have changed since the run stopped. " if self.resumed else ""
        text += (
            "Training uses the strokes painted until now:"
            f" {self.pixels:,} labelled pixels."
        )
        if self.held_back:
            text += f" {self.held_back:,} others are held back, and only measure."
        if self.left_out:
            names = ", ".join(self.left_out[:8])
            more = " and others" if len(self.left_out) > 8 else ""
            text += f" Not used, beside what is held back: {names}{more}."
        return text


@dataclass(frozen=True)
class EpochEnd(Event):
    """One epoch and its validation.

    Scores are NaN (None in JSON) where there is nothing to score.
    """

    epoch: int
    epochs: int
    train_loss: float
    validation_loss: float
    mean_iou: float
    pixel_accuracy: float
    class_iou: tuple[float, ...]
    learning_rate: float
    seconds: float
    best_iou: bool
    best_loss: bool
    weights: str
    """The weights that validated better, which are kept: "raw" or "averaged"."""
    stroke_pixels: int = 0
    """Number of labelled pixels that validated, where these are strokes; else 0."""
    mean_iou_in_truth: float = math.nan
    """Mean IoU over the classes that occur in the validation labels."""
    classes_in_truth: int = 0
    """Number of these classes; 0 in events of earlier versions, which do not tell."""
    pixels: int = 0
    """Number of labelled pixels that validated; 0 in events of earlier versions."""

    @property
    def comparable_iou(self) -> float:
        """Mean IoU by which the best epoch is chosen: over the classes in the truth.

        They are the same in all epochs, while `mean_iou` changes with every class of
        which a stray pixel is predicted. Events of earlier versions have the latter.
        """
        return self.mean_iou_in_truth if self.classes_in_truth else self.mean_iou

    @property
    def agreement(self) -> str:
        """Agreement with held-out strokes in words; empty where none validated."""
        return describe_agreement(self.pixel_accuracy, self.stroke_pixels)

    @property
    def score(self) -> str:
        """Score in words: agreement with strokes, or mean IoU; empty without any."""
        if self.agreement or math.isnan(self.reported_iou):
            return self.agreement
        return describe_mean_iou(
            self.mean_iou,
            self.mean_iou_in_truth,
            in_truth=self.classes_in_truth,
            scored=sum(math.isfinite(iou) for iou in self.class_iou),
            classes=len(self.class_iou),
        )

    @property
    def reported_iou(self) -> float:
        """Mean IoU to show: over the classes in the truth; NaN for strokes.

        Strokes keep away from edges, where errors are. Their IoU would mislead, and
        only serves to compare epochs.
        """
        return math.nan if self.stroke_pixels else self.comparable_iou

    @property
    def reported_class_iou(self) -> tuple[float, ...]:
        """IoU of each class to show: NaN for strokes, as above."""
        if self.stroke_pixels:
            return (math.nan,) * len(self.class_iou)
        return self.class_iou


def describe_agreement(share: float, pixels: int) -> str:
    """Describe how many pixels of held-out strokes are predicted as painted.

    Returns
    -------
    Such as ``agrees with 93 % of 2,137 held-out stroke pixels``; empty without pixels.
    """
    if not pixels or math.isnan(share):
        return ""
    # Rounded down, because 100 % means all of them.
    return (
        f"agrees with {math.floor(100 * share)} % of {pixels:,} held-out stroke pixels"
    )


STROKES_ARE_EASY = "strokes are easy places: whole images may well score lower"
"""Remark beside an agreement with strokes."""


@dataclass(frozen=True)
class TreesCompared(Event):
    """A network is compared with trees of the same strokes, on held-out strokes.

    Parameters
    ----------
    strokes, pixels
        Number of held-out strokes, and of their pixels.
    network, trees, both
        Share of the pixels that each predicts as painted; both: by the mean of their
        probabilities.
    low, high
        95 % interval of the difference between network and trees.
    better
        "network" or "trees"; "mean" where the mean of both is clearly better than each
        of them; empty where no difference is clear.
    trees_run
        Run folder of the trees.
    mean_low, mean_high
        95 % interval of the difference between the mean and the better one of both.
    """

    strokes: int
    pixels: int
    network: float
    trees: float
    both: float
    low: float
    high: float
    better: str
    trees_run: str = ""
    mean_low: float = math.nan
    mean_high: float = math.nan

    def better_runs(self, network_run: Path) -> tuple[Path, ...]:
        """Return the runs to predict with; of two, the mean is taken.

        It is the network where no difference is clear.
        """
        trees_run = Path(self.trees_run)
        if self.better == "mean":
            return network_run, trees_run
        return (trees_run,) if self.better == "trees" else (network_run,)

    @property
    def text(self) -> str:
        """Result in words."""
        text = (
            f"On {self.pixels:,} pixels of {self.strokes} held-out strokes, the network"
            f" agrees with {self.network:.1%}, trees with {self.trees:.1%}, the mean of"
            f" both with {self.both:.1%}. Network minus trees: {_points(self.low)} to"
            f" {_points(self.high)} points (95 % interval)."
        )
        if self.better == "mean":
            single = "network" if self.network >= self.trees else "trees"
            text += (
                f" Mean minus {single}: {_points(self.mean_low)} to"
                f" {_points(self.mean_high)} points. The mean is better than each of"
                f" both; the run of the trees is {self.trees_run}."
            )
        elif self.better == "trees":
            text += f" The trees are better; their run is {self.trees_run}."
        elif self.better == "network":
            text += " The network is better."
        else:
            text += " No difference is clear, so the network predicts."
        return text


def _points(share: float) -> str:
    return f"{100 * share:+.1f}"


@dataclass(frozen=True)
class TrainingEnd(Event):
    """Training is over. `reason`: "finished", "early stopping" or "stopped"."""

    reason: str
    epoch: int
    best_epoch: int
    mean_iou: float
    model: str
    seconds: float
    agreement: str = ""
    """Of the best epoch; see `EpochEnd.agreement`."""
    score: str = ""
    """Of the best epoch; see `EpochEnd.score`. Empty in events of earlier versions."""


@dataclass(frozen=True)
class PredictionStarted(Event):
    """Prediction is about to begin.

    `done` of the `regions` were written by an interrupted run.
    """

    name: str
    device: str
    regions: int
    done: int


@dataclass(frozen=True)
class RegionEnd(Event):
    """One region of the output is written.

    `region` maps axis letters to an index or (start, stop).
    """

    region: dict[str, Any]
    done: int
    regions: int
    seconds: float


@dataclass(frozen=True)
class PredictionEnd(Event):
    """Prediction is complete; `path` is its file, or empty when it stayed in memory."""

    name: str
    path: str
    seconds: float


@dataclass(frozen=True)
class FileEnd(Event):
    """One file of a batch.

    `status` is "done", "skipped" or "failed"; `text` says why it failed, or how an
    image that is done differs from the training images.
    """

    source: str
    path: str
    status: str
    text: str
    seconds: float


@dataclass(frozen=True)
class FoldStarted(Event):
    """One fold of a cross-validation, a run of its own, is about to train.

    `text` says what it holds back.
    """

    fold: int
    folds: int
    run: str
    text: str


@dataclass(frozen=True)
class FoldEnd(Event):
    """One fold is trained and scored on what it held back.

    `seconds` is the time of training, in this session and before.
    """

    fold: int
    folds: int
    run: str
    mean_iou: float
    pixel_accuracy: float
    class_iou: tuple[float, ...]
    class_names: tuple[str, ...]
    seconds: float
    agreement: str = ""
    """See `EpochEnd.agreement`."""
    score: str = ""
    """See `EpochEnd.score`."""


@dataclass(frozen=True)
class CrossvalEnd(Event):
    """All folds are scored.

    Scores are means over folds and standard deviations (NaN for one fold).
    """

    out: str
    folds: int
    mean_iou: float
    mean_iou_std: float
    class_iou: tuple[float, ...]
    class_iou_std: tuple[float, ...]
    class_names: tuple[str, ...]
    agreement: str = ""
    """Of all folds together; see `EpochEnd.agreement`."""


@dataclass(frozen=True)
class TrialStarted(Event):
    """One combination of a search is about to train `epochs` in each of `folds`."""

    trial: int
    trials: int
    name: str
    epochs: int
    folds: int


@dataclass(frozen=True)
class TrialEnd(Event):
    """One combination is scored: mean IoU over its folds and its standard deviation.

    `text` says why it failed.
    """

    trial: int
    trials: int
    name: str
    mean_iou: float
    mean_iou_std: float
    seconds: float
    text: str
    agreement: str = ""
    """Of all folds together; see `EpochEnd.agreement`."""


@dataclass(frozen=True)
class TuneEnd(Event):
    """A search is over.

    `best` is the name of the best trial, `recipe` its recipe file, and `model` the
    model trained on all data, or "".
    """

    out: str
    best: str
    mean_iou: float
    mean_iou_std: float
    recipe: str
    model: str
    agreement: str = ""
    """Of the best trial; see `EpochEnd.agreement`."""


_KINDS = {kind.__name__: kind for kind in Event.__subclasses__()}


def to_json(event: Event) -> str:
    """Write one line of JSON; NaN and infinities become null, as the format asks."""
    return json.dumps(
        {"event": type(event).__name__}
        | {k: to_plain(v) for k, v in asdict(event).items()}
    )


def from_json(line: str) -> Event:
    """Read an event written by `to_json`; a null in place of a float becomes NaN.

    Raises
    ------
    ValueError, TypeError, KeyError
        When the line is no such event.
    """
    raw = json.loads(line)
    if not isinstance(raw, dict):
        raise TypeError(f"found {type(raw).__name__}; needed is an object")
    kind = _KINDS[raw.pop("event")]
    hints = kind.__annotations__
    return kind(**{k: _typed(v, hints[k]) for k, v in raw.items()})


def to_plain(value: Any) -> Any:
    """Replace floats that JSON lacks by None, and tuples by lists."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (list, tuple)):
        return [to_plain(v) for v in value]
    if isinstance(value, dict):
        return {k: to_plain(v) for k, v in value.items()}
    return value


def _typed(value: Any, hint: str) -> Any:
    kinds: dict[str, Any] = {
        "str": str,
        "int": int,
        "bool": (bool, int),
        "dict": dict,
        "tuple": list,
    }
    kind = kinds.get(hint.split("[")[0])
    if kind is not None and not isinstance(value, kind):
        raise TypeError(f"found {value!r}; needed is {hint}")
    if hint == "float":
        return math.nan if value is None else float(value)
    if hint.startswith("tuple[float"):
        return tuple(math.nan if v is None else float(v) for v in value)
    if hint.startswith("dict"):  # JSON has no tuples, events have no lists
        return {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}
    return tuple(value) if hint.startswith("tuple") else value
