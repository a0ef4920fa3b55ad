"""Messages between a client and its worker: requests go in, events come out.

Each message is one line of JSON. Nothing here imports torch or Qt.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, TypeAlias, Union

from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PlainSerializer,
    PlainValidator,
    Tag,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from napari_strata.core.classes import ClassMap
from napari_strata.core.errors import StrataError, nearest
from napari_strata.core.events import Event, from_json, to_json, to_plain

PROTOCOL = 1
"""Version of the messages. It changes if older clients could not understand them."""


class RequestError(StrataError):
    """A line is not a valid request.

    `job` is the id of the job that the line names, if any.
    """

    def __init__(self, text: str, job: str | None = None) -> None:
        super().__init__(text)
        self.job = job


def _union(members: Mapping[str, Any], find_tag: Callable[[Any], str | None]) -> Any:
    """Build a discriminated union of `members`, a mapping from tags to types."""
    tagged = tuple(Annotated[kind, Tag(tag)] for tag, kind in members.items())
    return Annotated[Union[tagged], Discriminator(find_tag)]  # noqa: UP007


# Requests


class _Request(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Layer(_Request):
    """File of an image or of labels, and metadata that the client provides.

    ``.npy`` files are memory-mapped. They need `axes` unless they are 2D. For other
    files, `axes`, `scale` (one number for each dimension), `units`, `name` and
    `channel_names` replace the file's metadata.
    """

    path: str
    axes: str | None = None
    scale: tuple[float, ...] = ()
    units: tuple[str, ...] = ()
    name: str = ""
    channel_names: tuple[str, ...] = ()
    series: int | None = None

    @property
    def is_path(self) -> bool:
        """True if only a path is given and `read_pairs` can read the file."""
        is_array = self.path.lower().endswith(".npy")
        return self == Layer(path=self.path) and not is_array


def _as_layer(value: Any) -> Any:
    if isinstance(value, (str, os.PathLike)):
        return {"path": os.fspath(value)}
    return value


def _as_tuple(value: Any) -> Any:
    if value is None or isinstance(value, (list, tuple)):
        return value
    return (value,)


Source = Annotated[Layer, BeforeValidator(_as_layer)]
"""A path, or a `Layer`."""
Sources = Annotated[tuple[Source, ...], BeforeValidator(_as_tuple)]
"""One source or several."""
Models = Annotated[str | tuple[str, ...], Field(min_length=1)]
"""Model file, run folder or cross-validation folder, or several of them.

The probabilities of several models are averaged.
"""
Range: TypeAlias = int | tuple[int, int]
"""Index, or first index and last index + 1, along an axis."""
Axis = Literal["T", "Z", "Y", "X"]


class Pairs(_Request):
    """Images and labels, as in `read_pairs`."""

    images: Sources = Field(min_length=1)
    labels: Sources | None = None
    axes: str | None = None


class _Job(_Request):
    job: str = Field(min_length=1)
    """Id of the job, chosen by the client."""
    keep: bool = False
    """Finish the job even if the client ends."""

    @property
    def runs_between_events(self) -> bool:
        """True if the job may run before the running job has ended."""
        return False


class _Training(_Job, Pairs):
    recipe: str | dict[str, Any] = "default"
    validation: Pairs | None = None
    classes: ClassMap | None = None
    unlabelled: tuple[int, ...] = ()
    overrides: dict[str, Any] = {}
    device: str = "auto"


class TrainJob(_Training):
    """Train a network; see `iter_train`."""

    kind: Literal["train"] = "train"
    out: str
    resume: bool = False
    extend: int = Field(0, ge=0)
    snapshot_s: float = Field(0, ge=0)
    """Seconds between snapshots of the newest weights, for previews; 0: none."""


class PlanJob(_Training):
    """Describe a training without starting it: split, classes, device and memory."""

    kind: Literal["plan"] = "plan"


class _Prediction(_Job):
    device: str = "auto"
    overwrite: bool = False
    batch: int | None = Field(None, ge=1)
    precision: str = "auto"
    tile: int | None = Field(None, ge=1)
    tta: bool = False
    """Average over the eight flips and quarter turns of each plane."""


class PredictJob(_Prediction):
    """Predict one `image` or several files (`inputs`: files, folders, patterns).

    See `iter_predict` and `predict_files`. If `out` ends in ``.npy``, the label values
    go into an array with the axes of the image (without C), which other processes may
    map while it is being filled. Probabilities go into ``<stem>_probabilities.npy``.
    Only such an array can be limited to a `region`; with `overwrite`, the array outside
    the region is kept.
    """

    kind: Literal["predict"] = "predict"
    model: Models
    out: str
    image: Source | None = None
    inputs: tuple[str, ...] = ()
    stack: bool = False
    """Take each folder and pattern of `inputs` as one image, a stack of slices."""
    axes: str | None = None
    probabilities: bool = False
    ortho: bool = False
    """Average over the XY, XZ and YZ planes of a volume."""
    strict: bool = False
    """Refuse images whose grey values hardly occur in the training images."""
    region: dict[Axis, Range] | None = None
    preview: bool = Field(
        False,
        validation_alias=AliasChoices("preview", "aside"),
        serialization_alias="aside",
    )
    """Predict between the events of a running job."""

    @model_validator(mode="after")
    def _check(self) -> PredictJob:
        if (self.image is None) == (not self.inputs):
            raise RequestError(
                "predict job: needed is either image, or inputs with at least one "
                "path.",
                self.job,
            )
        if self.region is not None and (self.inputs or not self.is_array):
            raise RequestError(
                "predict job: a region can be given only for one image and a .npy "
                "file as output.",
                self.job,
            )
        return self

    @property
    def is_array(self) -> bool:
        """True if the labels go into a ``.npy`` file."""
        return self.out.lower().endswith(".npy")

    @property
    def runs_between_events(self) -> bool:
        """True for a preview."""
        return self.preview


class KnownPlane(_Request):
    """Plane that a model was trained on or that was held back; see `Seen`."""

    index: dict[str, int]
    kind: Literal["trained", "held back"]
    pixels: int = 0


class KnownPlanes(_Request):
    """Planes that a model knows; see `SeenScores`."""

    planes: tuple[KnownPlane, ...] = ()
    why_unknown: str = ""


class EvaluateJob(_Prediction):
    """Score a model on labelled images, or a label file against reference labels.

    See `iter_evaluate` (`model`, `images`) and `score_labels` (`prediction`, `labels`).
    `known` has the planes that the model of a prediction knows; their scores come
    apart.
    """

    kind: Literal["evaluate"] = "evaluate"
    model: Models | None = None
    prediction: Source | None = None
    images: Sources | None = None
    labels: Sources | None = None
    axes: str | None = None
    classes: ClassMap | None = None
    unlabelled: tuple[int, ...] = ()
    known: KnownPlanes | None = None
    out: str | None = None

    @model_validator(mode="after")
    def _check(self) -> EvaluateJob:
        if self.prediction is None:
            is_complete = self.model is not None and bool(self.images)
        else:
            has_truth = self.labels is not None and len(self.labels) == 1
            is_complete = has_truth and self.model is None and not self.images
        if not is_complete:
            raise RequestError(
                "evaluate job: needed are model and images, or prediction and labels.",
                self.job,
            )
        return self


class MeasureJob(_Job):
    """Measure labels; see `measure`.

    `region` is "all", "specimen" or the path of a mask. If it is "specimen" and `mask`
    is a path of a ``.npy`` file, the mask of the specimen is written there, with the
    axes of the labels. The fractions in cubes (classes, Z, Y, X) go into the ``.npy``
    file `maps`. `rock` also estimates the error because the specimen is small.
    """

    kind: Literal["measure"] = "measure"
    labels: Source
    model: Models | None = None
    image: Source | None = None
    region: str = "all"
    along: Axis | None = None
    rock: bool = False
    mask: str = ""
    maps: str = ""
    out: str | None = None


class InfoJob(_Job):
    """Describe a file, a model or a run, or several models that predict together.

    With `image`, also check whether the image fits the model.
    """

    kind: Literal["info"] = "info"
    path: Models
    axes: str | None = None
    image: Source | None = None

    @property
    def runs_between_events(self) -> bool:
        """True, because the job takes little time."""
        return True


class LabelledPlane(_Request):
    """Plane with labels. Another `version` means that its labels have changed."""

    index: dict[str, int] = {}
    version: int


class LiveJob(_Job):
    """Job for a pixel classifier of the strokes on one image.

    The labels are a ``.npy`` array with the axes of the image (without C), which the
    client changes while somebody paints. What a worker computed for earlier jobs on
    the same image is used again.
    """

    image: Source
    axes: str | None = None
    labels: Source
    planes: tuple[LabelledPlane, ...]
    """All planes with labels."""
    classes: ClassMap
    recipe: str | dict[str, Any] = "instant"
    overrides: dict[str, Any] = {}
    plane: dict[str, int] = {}
    """T and Z of the plane in view, those that the image has."""
    device: str = "auto"
    threads: int = Field(0, ge=0, le=1024)
    """Threads on a CPU; 0: as many as torch uses."""


class SegmentJob(LiveJob):
    """Fit a pixel classifier on strokes, and segment the plane in view.

    The label values of the mask go into a ``.npy`` array with the axes of the labels,
    `out`.
    """

    kind: Literal["segment"] = "segment"
    visible: tuple[tuple[int, int], tuple[int, int]] | None = None
    """Rows and columns in view, first and last + 1; they are segmented first."""
    out: str


class PlaneBox(_Request):
    """Rows and columns of a plane, first and last + 1."""

    index: dict[str, int] = {}
    rows: tuple[int, int]
    columns: tuple[int, int]


class NextWindowJob(LiveJob):
    """Find the small window where the mask is least certain, to be painted next.

    It is on one of the planes that earlier jobs segmented, and keeps away from labels
    and from skipped windows.
    """

    kind: Literal["next_window"] = "next_window"
    side: int = Field(11, ge=11, le=31)
    skipped: tuple[PlaneBox, ...] = ()


class ChooseLevelsJob(LiveJob):
    """Choose the octave levels of the features by held-out strokes.

    For other jobs they are an override, ``network.levels``.
    """

    kind: Literal["choose_levels"] = "choose_levels"


class Stop(_Request):
    """Stop a running or waiting job; the worker then sends its `JobEnded`."""

    stop: str


class Keep(_Request):
    """Set whether a job is finished if the client ends."""

    keep: str
    on: bool = True


class LabelsChanged(_Request):
    """New labels of a running training, which uses them from its next step on."""

    changed: Literal["labels"] = "labels"
    job: str
    value: Source


Job: TypeAlias = (
    TrainJob
    | PlanJob
    | PredictJob
    | EvaluateJob
    | MeasureJob
    | InfoJob
    | SegmentJob
    | NextWindowJob
    | ChooseLevelsJob
)
Request: TypeAlias = Job | Stop | Keep | LabelsChanged

_JOBS: dict[str, type[Job]] = {
    "train": TrainJob,
    "plan": PlanJob,
    "predict": PredictJob,
    "evaluate": EvaluateJob,
    "measure": MeasureJob,
    "info": InfoJob,
    "segment": SegmentJob,
    "next_window": NextWindowJob,
    "choose_levels": ChooseLevelsJob,
}
_MESSAGES: dict[str, type[Stop | Keep | LabelsChanged]] = {
    "stop": Stop,
    "keep": Keep,
    "labels": LabelsChanged,
}
_REQUESTS: dict[str, type[Request]] = {**_JOBS, **_MESSAGES}


def _request_tag(raw: Mapping[str, Any]) -> str | None:
    """Return the tag of a request; None if it is unknown."""
    if "kind" in raw:
        tag, tags = raw["kind"], list(_JOBS)
    elif "stop" in raw:
        tag, tags = "stop", ["stop"]
    elif "keep" in raw and "job" not in raw:
        tag, tags = "keep", ["keep"]
    else:
        tag, tags = raw.get("changed"), ["labels"]
    return tag if tag in tags else None


REQUESTS: TypeAdapter[Request] = TypeAdapter(_union(_REQUESTS, _request_tag))


def encode_request(request: Request) -> str:
    """Format a request as one line, without the line break."""
    return json.dumps(to_plain(request.model_dump(mode="json", by_alias=True)))


def decode_request(line: bytes | str) -> Request:
    """Parse a line as a request.

    Raises
    ------
    RequestError
        When the line is not a valid request.
    """
    job = None
    try:
        raw = _read_json(line)
        job = _job_id(raw)
        return _read_request(raw, job)
    except RecursionError:
        text = f"found JSON that is nested too deeply ({_shorten(line)})."
        raise RequestError(text, job) from None


def _read_request(raw: dict[str, Any], job: str | None) -> Request:
    try:
        return REQUESTS.validate_python(raw)
    except ValidationError as error:
        raise RequestError(_describe(raw, error), job) from None
    except RequestError:
        raise
    except StrataError as error:  # from a class map
        raise RequestError(str(error), job) from None


def _read_json(line: bytes | str) -> dict[str, Any]:
    try:
        raw = json.loads(line)
    except ValueError:
        raise RequestError(
            f"found a line that is not JSON ({_shorten(line)}); "
            "needed is one JSON object per line."
        ) from None
    if not isinstance(raw, dict):
        raise RequestError(
            f"found a line that is not a JSON object ({_shorten(line)}); "
            "needed is a job or a message."
        )
    return raw


def _job_id(raw: Mapping[str, Any]) -> str | None:
    """Return the id of the job that a request starts, if it has one."""
    job = raw.get("job")
    if "kind" not in raw and any(key in raw for key in ("stop", "changed")):
        return None
    return job if isinstance(job, str) and job else None


def _describe(raw: Mapping[str, Any], error: ValidationError) -> str:
    """Describe the errors of a request."""
    job, tag = _job_id(raw), _request_tag(raw)
    kind = _shorten(str(raw.get("kind")))
    if "kind" in raw and job is None:
        return (
            f"found a {kind} job without an id; needed is job, a text of your choice."
        )
    if tag is None:
        return _describe_unknown(raw, job)
    subject = f"message {tag!r}"
    if tag in _JOBS:
        subject = f"{kind} job"
    problems: dict[str, str] = {}
    for problem in error.errors():
        # The first part of the location is the tag.
        key = str(problem["loc"][1])
        problems.setdefault(key, _explain(_REQUESTS[tag], problem))
    return f"{subject}: {'; '.join(problems.values())}."


def _describe_unknown(raw: Mapping[str, Any], job: str | None) -> str:
    """Describe the error of a request of unknown kind."""
    if job is None:
        return (
            f"found a message with {_shorten(str(list(raw)))}; "
            "known: a job (job, kind), stop, keep, changed (labels)."
        )
    if "kind" not in raw:
        return f"job {job!r}: kind is missing; needed is one of {', '.join(_JOBS)}."
    kind = _shorten(str(raw["kind"]))
    return f"job {job!r}: there is no kind {kind!r}; {nearest(kind, _JOBS)}"


def _explain(request: type[BaseModel], problem: Any) -> str:
    """Describe one error of pydantic.

    Its location also contains the names of union members.
    """
    location = problem["loc"][1:]
    names = []
    for part in location:
        is_name = isinstance(part, int) or part.isidentifier()
        if is_name and part not in ("str", "int", "dict"):
            names.append(str(part))
    key = ".".join(names)
    if problem["type"] == "extra_forbidden":
        fields = (request if len(location) == 1 else Layer).model_fields
        return f"unknown key {key!r}, {nearest(str(location[-1]), fields)}"
    if problem["type"] == "missing":
        return f"{key} is missing"
    reason = problem["msg"]
    return (
        f"{key} is {_shorten(repr(problem['input']))}: {reason[0].lower()}{reason[1:]}"
    )


def _shorten(line: bytes | str) -> str:
    text = line.decode("utf-8", "replace") if isinstance(line, bytes) else line
    return text if len(text) <= 60 else f"{text[:60]}..."


# Results


class _Result(BaseModel):
    # A newer worker may send keys that this client does not know.
    model_config = ConfigDict(frozen=True, extra="ignore")


class TrainResult(_Result):
    """Run folder and model of a training, why it ended and after which epoch."""

    run: str
    model: str
    ended: str
    epoch: int


class PlanResult(_Result):
    """Facts about a training that has not started.

    `split` is a description; `training` and `validation` are the names of the regions;
    `classes` has a row for each class (index, name, value, color); `memory` and
    `free_memory` are in bytes. `suggested_recipe` is another recipe that suits the data
    better, if there is one, and `suggestion` the reason.
    """

    recipe: dict[str, Any]
    spec: dict[str, Any]
    split: str
    training: tuple[str, ...]
    validation: tuple[str, ...]
    classes: tuple[dict[str, Any], ...]
    labelled_pixels: tuple[int, ...]
    device: str
    precision: str
    memory: int
    free_memory: int | None
    parameters: int
    suggested_recipe: str = ""
    suggestion: str = ""


class PredictResult(_Result):
    """Path of the labels, and the number of predicted pixels of each class."""

    out: str
    pixels: dict[str, int] = {}


class Case(_Result):
    """Plane of a comparison, and its score, or None if no pixel can be scored."""

    index: dict[str, int]
    mean_iou: float | None


class EvaluateResult(_Result):
    """Scores over all images and for each image; see `ConfusionMatrix.as_dict`.

    A comparison of label files also has `most`, which is the plane with the most pixels
    of each cell of the confusion matrix, and `cases`, the worst and the best planes.
    `trained_on` says whether the planes were trained on; see `SeenScores.as_dict`. The
    scores of a model have `calibration`; see `Reliability.as_dict`.
    """

    mean_iou: float | None
    mean_iou_in_truth: float | None = None
    mean_dice: float | None
    pixel_accuracy: float | None
    per_class: dict[str, dict[str, Any]]
    confusion: tuple[tuple[int, ...], ...]
    per_image: dict[str, dict[str, Any]]
    trained_on: dict[str, Any] | None = None
    calibration: dict[str, Any] | None = None
    out: str | None = None
    most: tuple[tuple[dict[str, int] | None, ...], ...] = ()
    cases: tuple[Case, ...] = ()


class MeasureResult(_Result):
    """Content of ``measures.json``, and paths of the mask and the maps, if any."""

    measures: dict[str, Any]
    mask: str = ""
    maps: str = ""
    out: str | None = None


class ImageFacts(_Result):
    """Metadata of an image."""

    name: str
    axes: str
    shape: tuple[int, ...]
    scale: tuple[float, ...] | None
    units: tuple[str, ...] | None
    channel_names: tuple[str, ...] | None
    notes: tuple[str, ...]
    dtype: str


class ImageInfo(_Result):
    """Description of a file in lines of text, and the metadata of its images."""

    what: Literal["image"]
    lines: tuple[str, ...]
    images: tuple[ImageFacts, ...]


class ModelInfo(_Result):
    """Facts about a model, or about the first of several models.

    `models` is their number as text; `mean_iou` and `class_iou` are means over the
    models, unless these were validated on strokes; then `agreement` says in words how a
    single model agrees with those. If the request has an image, `fits` is True if the
    models accept it, and `fit` contains the warnings or the reason; `questions` those
    that make wrong labels likely.
    """

    what: Literal["model"]
    model: str
    models: str = "1 model"
    created: str
    versions: dict[str, str]
    recipe: dict[str, Any]
    spec: dict[str, Any]
    classes: tuple[dict[str, Any], ...]
    epochs: int
    mean_iou: float | None
    class_iou: tuple[float | None, ...]
    agreement: str = ""
    fits: bool | None = None
    fit: tuple[str, ...] = ()
    questions: tuple[str, ...] = ()


class SegmentResult(_Result):
    """Path of the mask, and what the classifier of a segment job was fitted on.

    `levels` is the number of octave levels of the features; `seconds` the whole time.
    """

    mask: str
    strokes: int
    labelled_pixels: int
    levels: int
    seconds: float


class NextWindowResult(_Result):
    """Window to be painted next, and the mask in it.

    `rows` and `columns` are first and last + 1, `margin` is the mean difference between
    the probabilities of the two likeliest classes, `labels` has a row of label values
    for each row. `changed` is the share of the pixels whose label has changed since the
    window before, or None if no plane was segmented for both.
    """

    index: dict[str, int]
    rows: tuple[int, int]
    columns: tuple[int, int]
    margin: float
    labels: tuple[tuple[int, ...], ...]
    changed: float | None


class ChooseLevelsResult(_Result):
    """Octave levels that tell held-out strokes best, and the reason in words."""

    best_levels: int
    reason: str


JobResult: TypeAlias = (
    TrainResult
    | PlanResult
    | PredictResult
    | EvaluateResult
    | MeasureResult
    | ImageInfo
    | ModelInfo
    | SegmentResult
    | NextWindowResult
    | ChooseLevelsResult
)

_RESULTS: dict[str, type[JobResult]] = {
    "TrainResult": TrainResult,
    "PlanResult": PlanResult,
    "EvaluateResult": EvaluateResult,
    "MeasureResult": MeasureResult,
    "ImageInfo": ImageInfo,
    "ModelInfo": ModelInfo,
    "PredictResult": PredictResult,
    "SegmentResult": SegmentResult,
    "NextWindowResult": NextWindowResult,
    "ChooseLevelsResult": ChooseLevelsResult,
}


def _result_tag(value: Any) -> str | None:
    """Return the tag of a result, from a key that only this type has."""
    if not isinstance(value, dict):
        return type(value).__name__
    if "what" in value:
        return "ModelInfo" if value["what"] == "model" else "ImageInfo"
    if "ended" in value:
        return "TrainResult"
    if "split" in value:
        return "PlanResult"
    if "confusion" in value:
        return "EvaluateResult"
    if "measures" in value:
        return "MeasureResult"
    if "mask" in value:
        return "SegmentResult"
    if "margin" in value:
        return "NextWindowResult"
    if "best_levels" in value:
        return "ChooseLevelsResult"
    return "PredictResult" if "out" in value else None


RESULTS: TypeAdapter[JobResult] = TypeAdapter(_union(_RESULTS, _result_tag))


# Events


class WorkerEvent(BaseModel):
    """Base class of the events that the worker sends, not the engine."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Ready(WorkerEvent):
    """The worker has started.

    `devices` maps names of devices to descriptions, the fastest first. `seconds` is the
    time that the start took.
    """

    event: Literal["Ready"] = "Ready"
    protocol: int
    pid: int
    host: str
    versions: dict[str, str]
    devices: dict[str, str]
    seconds: float


class Refused(WorkerEvent):
    """A line was not a valid request, or named a job that does not exist."""

    event: Literal["Refused"] = "Refused"
    text: str


class JobQueued(WorkerEvent):
    """The job waits for earlier jobs."""

    event: Literal["JobQueued"] = "JobQueued"


class JobStarted(WorkerEvent):
    """The job has started."""

    event: Literal["JobStarted"] = "JobStarted"
    kind: str


class TargetOpened(WorkerEvent):
    """The array of a prediction exists at full size; planes follow.

    `classes` has a row for each class: index, name, value, color. `probabilities` is
    the path of the array of probabilities, or empty. Its axes are T and Z, if the image
    has them, C, Y and X.
    """

    event: Literal["TargetOpened"] = "TargetOpened"
    path: str
    axes: str
    shape: tuple[int, ...]
    dtype: str
    classes: tuple[dict[str, Any], ...]
    probabilities: str = ""


class MaskPart(WorkerEvent):
    """Rows and columns of the plane in view are in the mask, first and last + 1.

    The stage "coarse" has half the resolution; "full" is final.
    """

    event: Literal["MaskPart"] = "MaskPart"
    stage: Literal["coarse", "full"]
    rows: tuple[int, int]
    columns: tuple[int, int]


def _read_result(value: Any) -> JobResult | None:
    return RESULTS.validate_python(value) if value else None


def _write_result(result: JobResult | None) -> dict[str, Any]:
    return {} if result is None else result.model_dump(exclude_unset=True)


class JobEnded(WorkerEvent):
    """The job has ended. `reason` is "finished" or "stopped"."""

    event: Literal["JobEnded"] = "JobEnded"
    reason: Literal["finished", "stopped"]
    result: Annotated[
        JobResult | None, PlainValidator(_read_result), PlainSerializer(_write_result)
    ] = None


class JobFailed(WorkerEvent):
    """The job has ended without a result.

    `kind` is "StrataError" if the user can correct the cause, and otherwise the name of
    the error's type.
    """

    event: Literal["JobFailed"] = "JobFailed"
    text: str
    kind: str


AnyEvent: TypeAlias = Event | WorkerEvent


def _read_engine_event(value: Any) -> Event:
    return value if isinstance(value, Event) else from_json(json.dumps(value))


_EVENTS: dict[str, Any] = {
    kind.__name__: kind for kind in WorkerEvent.__subclasses__()
} | {
    "engine": Annotated[
        Event,
        PlainValidator(_read_engine_event),
        PlainSerializer(lambda event: json.loads(to_json(event))),
    ]
}


def _event_tag(value: Any) -> str:
    name = value["event"] if isinstance(value, dict) else type(value).__name__
    return name if name in _EVENTS else "engine"


EVENTS: TypeAdapter[AnyEvent] = TypeAdapter(_union(_EVENTS, _event_tag))


def encode_event(event: AnyEvent, job: str | None) -> str:
    """Format an event of a job as one line, without the line break.

    Paths may contain bytes that are not UTF-8, which pydantic's own JSON refuses.
    """
    raw = to_plain(EVENTS.dump_python(event, mode="json"))
    return json.dumps(raw | {"job": job})


def decode_event(line: str | bytes) -> tuple[str | None, AnyEvent]:
    """Parse the job id and the event of a line that `encode_event` wrote.

    Raises
    ------
    ValueError
        When the line is anything else, such as the greeting of a login shell.
    """
    try:
        raw = json.loads(line)
        job = raw.pop("job")
        return job, EVENTS.validate_python(raw)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not an event of a worker: {line!r}") from error
