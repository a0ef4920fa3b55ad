"""Orders: the lines that a worker reads, checked. Jobs use the words and defaults of the Python API.

A client makes the same objects and sends ``order.model_dump_json()``, one a line.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from napari_strata.core.classes import ClassMap
from napari_strata.core.errors import StrataError, nearest


class OrderError(StrataError):
    """A line that is no order; `job` is the job that it speaks of, if that much can be read."""

    def __init__(self, text: str, job: str | None = None) -> None:
        super().__init__(text)
        self.job = job


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Layer(_Strict):
    """An image or labels in a file, and what the viewer knows of it; a path alone means that the file says all.

    ``.npy`` files are memory-mapped and need `axes` unless they are 2D. Of other files `axes`, `scale` (one number a
    dimension), `units`, `name` and `channel_names` replace what the file says, where they are given.
    """

    path: str
    axes: str | None = None
    scale: tuple[float, ...] = ()
    units: tuple[str, ...] = ()
    name: str = ""
    channel_names: tuple[str, ...] = ()
    series: int = 0

    @property
    def is_path(self) -> bool:
        """Whether a file, folder, pattern or table is all that is given, in a format that `read_pairs` knows."""
        return self == Layer(path=self.path) and not self.path.lower().endswith(".npy")


def _as_layer(value: Any) -> Any:
    return (
        {"path": os.fspath(value)} if isinstance(value, (str, os.PathLike)) else value
    )


def _as_tuple(value: Any) -> Any:
    return value if isinstance(value, (list, tuple)) or value is None else (value,)


Source = Annotated[Layer, BeforeValidator(_as_layer)]
"""A path, or a `Layer`."""
Sources = Annotated[tuple[Source, ...], BeforeValidator(_as_tuple)]
"""One or several."""
Models = Annotated[str | tuple[str, ...], Field(min_length=1)]
"""A model file, run folder or cross-validation folder, or several: the mean of their probabilities is taken."""
Range: TypeAlias = int | tuple[int, int]
Axis = Literal["T", "Z", "Y", "X"]


class Pairs(_Strict):
    """Images and labels, as `read_pairs` takes them."""

    images: Sources = Field(min_length=1)
    labels: Sources | None = None
    axes: str | None = None


class _Job(_Strict):
    job: str = Field(min_length=1)
    keep: bool = False
    """Go on to the end when the viewer is gone."""


class _Training(_Job, Pairs):
    recipe: str | dict[str, Any] = "default"
    validation: Pairs | None = None
    classes: ClassMap | None = None
    unlabelled: tuple[int, ...] = ()
    overrides: dict[str, Any] = {}
    device: str = "auto"


class TrainJob(_Training):
    """See `iter_train`."""

    kind: Literal["train"] = "train"
    out: str
    resume: bool = False
    extend: int = Field(0, ge=0)


class PlanJob(_Training):
    """What a `TrainJob` would do: the split in words, classes, warnings, device. Writes nothing."""

    kind: Literal["plan"] = "plan"


class _Predicting(_Job):
    device: str = "auto"
    overwrite: bool = False
    batch: int | None = Field(None, ge=1)
    precision: str = "auto"
    tile: int | None = Field(None, ge=1)
    tta: bool = False
    """Average over the eight flips and quarter turns of each plane."""


class PredictJob(_Predicting):
    """See `iter_predict` (one `image`) and `predict_files` (`inputs`: files, folders, patterns).

    With `out` ending in ``.npy`` label values go into an array of the image's axes (less C) that others may map while
    it fills, probabilities into ``<stem>_probabilities.npy``. Only there a `region` can be given: axis -> index or
    (first, last + 1); with `overwrite`, what lies outside of it stays.
    """

    kind: Literal["predict"] = "predict"
    model: Models
    out: str
    image: Source | None = None
    inputs: tuple[str, ...] = ()
    axes: str | None = None
    probabilities: bool = False
    ortho: bool = False
    """Average over the XY, XZ and YZ planes of a volume."""
    region: dict[Axis, Range] | None = None
    aside: bool = False
    """Answered between the events of a running job, as info is: a preview while a training runs."""

    @model_validator(mode="after")
    def _check(self) -> PredictJob:
        if (self.image is None) == (not self.inputs):
            raise OrderError(
                "predict job: needed is either image, or inputs with one or more paths.",
                self.job,
            )
        if self.region is not None and (self.inputs or not self.is_array):
            raise OrderError(
                "predict job: a region can be predicted of one image into a .npy file only.",
                self.job,
            )
        return self

    @property
    def is_array(self) -> bool:
        """Whether the result goes into a .npy file."""
        return self.out.lower().endswith(".npy")


class EvaluateJob(_Predicting):
    """See `iter_evaluate` (`model`, `images`) and `score_labels` (`prediction`: labels that are there already)."""

    kind: Literal["evaluate"] = "evaluate"
    model: Models | None = None
    prediction: Source | None = None
    images: Sources | None = None
    labels: Sources | None = None
    axes: str | None = None
    classes: ClassMap | None = None
    unlabelled: tuple[int, ...] = ()
    out: str | None = None

    @model_validator(mode="after")
    def _check(self) -> EvaluateJob:
        by_model = (
            self.model is not None and bool(self.images) and self.prediction is None
        )
        by_labels = (
            self.prediction is not None
            and self.labels is not None
            and len(self.labels) == 1
        )
        if by_model == by_labels or (
            by_labels and (self.model is not None or self.images)
        ):
            raise OrderError(
                "evaluate job: needed are model and images, or prediction and labels.",
                self.job,
            )
        return self


class InfoJob(_Job):
    """What a file, model or run folder is; with `image`, whether that fits the model. Answered between events."""

    kind: Literal["info"] = "info"
    path: str
    axes: str | None = None
    image: Source | None = None


class Stop(_Strict):
    """Stop a job, running or waiting; answered by its JobEnded."""

    stop: str


class Keep(_Strict):
    """Let a job go on to its end (or not) when the viewer is gone."""

    keep: str
    on: bool = True


class Changed(_Strict):
    """News for a running job: its labels, or what the viewer looks at. The latest value of each counts."""

    changed: Literal["labels", "view"]
    job: str
    value: dict[str, Any] = {}


Job: TypeAlias = TrainJob | PlanJob | PredictJob | EvaluateJob | InfoJob
Order: TypeAlias = Job | Stop | Keep | Changed

JOBS: dict[str, type[Job]] = {
    "train": TrainJob,
    "plan": PlanJob,
    "predict": PredictJob,
    "evaluate": EvaluateJob,
    "info": InfoJob,
}
MESSAGES: dict[str, type[Stop | Keep | Changed]] = {
    "stop": Stop,
    "keep": Keep,
    "changed": Changed,
}


def is_aside(order: Job) -> bool:
    """Whether a job is done between the events of another."""
    return isinstance(order, InfoJob) or (isinstance(order, PredictJob) and order.aside)


def parse_order(line: bytes | str) -> Order:
    """The order that a line holds.

    Raises
    ------
    OrderError
        saying what is wrong with it, and what is needed.
    """
    try:
        raw = json.loads(line)
    except ValueError:
        raise OrderError(
            f"found a line that is not JSON ({_shown(line)}); needed is one JSON object a line."
        ) from None
    if not isinstance(raw, dict):
        raise OrderError(
            f"found a line that is not a JSON object ({_shown(line)}); needed is a job or a message."
        )
    if "kind" in raw:
        return _parse_job(raw)
    for key, message in MESSAGES.items():
        if key in raw and (key != "keep" or "job" not in raw):
            return _validate(message, raw, f"message {key!r}", None)
    if isinstance(job := raw.get("job"), str):
        raise OrderError(
            f"job {job!r}: kind is missing; needed is one of {', '.join(JOBS)}.", job
        )
    raise OrderError(
        f"found a message with {list(raw)}; known: a job (job, kind), {', '.join(MESSAGES)}."
    )


def _parse_job(raw: Mapping[str, Any]) -> Order:
    job, kind = raw.get("job"), raw["kind"]
    if not isinstance(job, str) or not job:
        raise OrderError(
            f"found a {kind} job without an id; needed is job, a text of your own."
        )
    if kind not in JOBS:
        raise OrderError(
            f"job {job!r}: there is no kind {kind!r}; {nearest(str(kind), JOBS)}", job
        )
    return _validate(JOBS[kind], raw, f"{kind} job", job)


def _validate(
    form: type[Order], raw: Mapping[str, Any], what: str, job: str | None
) -> Order:
    try:
        return form.model_validate(raw)
    except ValidationError as error:
        problems = {
            str(item["loc"][0]): _explain(form, item)
            for item in reversed(error.errors())
        }
        raise OrderError(
            f"{what}: {'; '.join(reversed(problems.values()))}.", job
        ) from None
    except OrderError:
        raise
    except StrataError as error:  # of a class map
        raise OrderError(str(error), job) from None


def _explain(form: type[BaseModel], item: Mapping[str, Any]) -> str:
    """One problem in words; `loc` also holds names that pydantic gives to the branches of a union."""
    names = [
        str(part)
        for part in item["loc"]
        if isinstance(part, int) or part.isidentifier()
    ]
    key = ".".join(name for name in names if name not in ("str", "int", "dict"))
    if item["type"] == "extra_forbidden":
        fields = form.model_fields if len(item["loc"]) == 1 else Layer.model_fields
        return f"unknown key {key!r}, {nearest(str(item['loc'][-1]), fields)}"
    if item["type"] == "missing":
        return f"{key} is missing"
    return f"{key} is {_shown(repr(item['input']))}: {item['msg'][0].lower()}{item['msg'][1:]}"


def _shown(line: bytes | str) -> str:
    text = line.decode("utf-8", "replace") if isinstance(line, bytes) else line
    return text if len(text) <= 60 else f"{text[:60]}..."
