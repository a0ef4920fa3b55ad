"""Jobs as Python scripts and as commands for a shell."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from napari_strata.core.classes import ClassMap
from napari_strata.core.command import join_command
from napari_strata.core.files import LAYERS, PAIRS_FILE
from napari_strata.core.recipe import Recipe
from napari_strata.inference.inputs import is_stack
from napari_strata.worker.protocol import (
    EvaluateJob,
    Layer,
    MeasureJob,
    PredictJob,
    TrainJob,
)

_IMPORTS = {
    "dataclasses.": "import dataclasses\n",
    "ns.": "import napari_strata as ns",
    "PredictOptions(": "from napari_strata.core.options import PredictOptions",
    "predict_files(": "from napari_strata.inference.batch import predict_files",
}
"""Import statements, by what needs them."""


def as_python(request: TrainJob | PredictJob | EvaluateJob | MeasureJob) -> str:
    """Return a script with the Python API that does the same as the request."""
    if isinstance(request, TrainJob):
        body = _train_lines(request)
    elif isinstance(request, MeasureJob):
        body = _measure_lines(request)
    else:
        body = (
            _predict_lines(request)
            if isinstance(request, PredictJob)
            else _evaluate_lines(request)
        )
    imports = [
        statement
        for word, statement in _IMPORTS.items()
        if any(word in line for line in body)
    ]
    return "\n".join([*imports, "", *body]) + "\n"


def as_command(request: TrainJob | PredictJob | EvaluateJob | MeasureJob) -> str:
    """Return a command for a shell that does the same as the request."""
    if isinstance(request, TrainJob):
        arguments = _train_arguments(request)
    elif isinstance(request, MeasureJob):
        arguments = _measure_arguments(request)
    else:
        arguments = (
            _predict_arguments(request)
            if isinstance(request, PredictJob)
            else _evaluate_arguments(request)
        )
    return join_command(["napari-strata", *arguments])


def as_crossval(request: TrainJob) -> str:
    """Return a command that cross-validates the recipe on the data of a training."""
    folder = f"{request.out}-crossval"
    arguments = ["crossval", *_sources(request), "--out", folder]
    return join_command(["napari-strata", *arguments, *_recipe_arguments(request)])


def as_search(request: TrainJob, recipe: Recipe) -> str:
    """Return a command that tries other values of the most telling key of a recipe.

    Parameters
    ----------
    request
        A training on the same data.
    recipe
        Its recipe with all overrides.
    """
    if recipe.network.is_fitted:
        grid = "network.levels=2,3,5"
    else:
        rate = recipe.training.learning_rate
        values = [f"{factor * rate:.2g}" for factor in (0.3, 1, 3)]
        grid = f"training.learning_rate={','.join(values)}"
    arguments = ["tune", *_sources(request), "--out", f"{request.out}-search"]
    arguments += [*_recipe_arguments(request), "--grid", grid]
    return join_command(["napari-strata", *arguments])


def _train_lines(request: TrainJob) -> list[str]:
    labels = request.labels or ()
    lines = [f"pairs = {_pairs(request.images, labels, request.axes)}"]
    defined = {"out": request.out, "overrides": request.overrides or None}
    if request.validation is not None:
        validation = request.validation
        labels = validation.labels or ()
        pairs = _pairs(validation.images, labels, validation.axes)
        lines.append(f"validation = {pairs}")
    options = {k: v for k, v in defined.items() if v is not None} | _non_default(
        request, ("device", "resume", "extend")
    )
    arguments = [f"{key}={value!r}" for key, value in options.items()]
    if request.validation is not None:
        arguments.append("validation=validation")
    if request.classes is not None:
        lines.append(f"classes = {_class_map(request.classes)}")
        arguments.append("classes=classes")
    recipe = (
        repr(request.recipe)
        if isinstance(request.recipe, str)
        else f"ns.Recipe.parse({request.recipe!r})"
    )
    return [*lines, f"model = ns.train({recipe}, pairs, {', '.join(arguments)})"]


def _predict_lines(request: PredictJob) -> list[str]:
    names = ("device", "overwrite", "batch", "precision", "tile", "tta", "ortho")
    options = _non_default(request, (*names, "strict"))
    if request.probabilities:
        options["probabilities"] = True
    model = _models(request.model)
    if request.image is None:
        return _batch_lines(request, model, options)
    arguments = _keywords({"out": request.out, **options})
    return [
        f"image = {_image(request.image, request.axes)}",
        f"labels = ns.predict({model}, image, {arguments})",
    ]


def _batch_lines(request: PredictJob, model: str, options: dict[str, Any]) -> list[str]:
    lines = [f"inputs = {list(request.inputs)!r}"]
    arguments = [model, "inputs", repr(request.out)]
    if options:
        lines.append(f"options = PredictOptions({_keywords(options)})")
        arguments.append("options=options")
    others = _keywords(_non_default(request, ("axes", "stack")))
    arguments += [others] if others else []
    return [
        *lines,
        f"for event in predict_files({', '.join(arguments)}):",
        "    print(event)",
    ]


def _evaluate_lines(request: EvaluateJob) -> list[str]:
    out_argument = [f"out={request.out!r}"] if request.out else []
    if request.model is not None:
        pairs = _pairs(request.images or (), request.labels or (), request.axes)
        arguments = [
            _models(request.model),
            pairs,
            *out_argument,
            *(["tta=True"] if request.tta else []),
        ]
        return [
            f"scores = ns.evaluate({', '.join(arguments)})",
            "print(scores.as_dict())",
        ]
    assert request.prediction is not None
    assert request.labels is not None
    lines = [
        f"prediction = ns.read_labels({request.prediction.path!r})",
        f"truth = ns.read_labels({request.labels[0].path!r})",
    ]
    arguments = ["prediction", "truth"]
    if request.classes is not None:
        lines.append(f"classes = {_class_map(request.classes)}")
        arguments.append("classes")
    arguments += out_argument
    return [
        *lines,
        f"confusion = ns.score_labels({', '.join(arguments)})",
        "print(confusion.as_dict())",
    ]


def _measure_lines(request: MeasureJob) -> list[str]:
    arguments = ["labels"]
    if request.model is not None:
        arguments.append(f"model={_models(request.model)}")
    if request.image is not None:
        arguments.append(f"image={request.image.path!r}")
    if request.region != "all":
        arguments.append(f"region={request.region!r}")
    if request.along is not None:
        arguments.append(f"along={request.along!r}")
    return [
        f"labels = ns.read_labels({request.labels.path!r})",
        f"measures = ns.measure({', '.join(arguments)})",
        "for name, fraction in measures.fractions.items():",
        "    print(name, fraction)",
        "measures.save('measures')",
        "ns.write_page('measures')",
    ]


def _measure_arguments(request: MeasureJob) -> list[str]:
    arguments = ["measure", request.labels.path, "--out", request.out or "measures"]
    if isinstance(request.model, str):  # several give no interval
        arguments += ["--model", request.model]
    if request.image is not None:
        arguments += ["--image", request.image.path]
    if request.region != "all":
        arguments += ["--region", request.region]
    if request.along is not None:
        arguments += ["--along", request.along]
    return arguments


def _train_arguments(request: TrainJob) -> list[str]:
    arguments = ["train", *_sources(request), "--out", request.out]
    arguments += _recipe_arguments(request)
    if request.validation is not None:
        arguments += [
            "--val",
            *_paths(request.validation.images, request.validation.labels or ()),
        ]
    if request.extend:
        arguments += ["--extend", str(request.extend)]
    return arguments + (["--resume"] if request.resume else [])


def _sources(request: TrainJob) -> list[str]:
    """Return the paths of images and labels."""
    if len(request.images) > 1:  # the dock writes this table
        return [str(Path(request.out) / LAYERS / PAIRS_FILE)]
    return _paths(request.images, request.labels or ())


def _recipe_arguments(request: TrainJob) -> list[str]:
    """Return the options that trainings, cross-validations and searches share."""
    arguments = []
    if isinstance(request.recipe, str) and request.recipe != "default":
        arguments += ["--recipe", request.recipe]
    for key, value in request.overrides.items():
        arguments += ["--set", f"{key}={json.dumps(value)}"]
    arguments += _axes_arguments(request.axes, request.images)
    if request.classes is None or request.labels is None:
        arguments += [
            word
            for value in request.unlabelled
            for word in ("--unlabelled", str(value))
        ]
    return arguments + _device_arguments(request.device)


def _predict_arguments(request: PredictJob) -> list[str]:
    inputs, images, stack = list(request.inputs), [], request.stack
    if request.image is not None:
        images = [request.image]
        inputs = [request.image.path]
        stack = is_stack(Path(request.image.path))
    model, averaged = _averaging_arguments(request.model, request.tta)
    arguments = [
        "predict",
        model,
        *inputs,
        "--out",
        request.out,
        *averaged,
        *(["--ortho"] if request.ortho else []),
        *(["--strict"] if request.strict else []),
        *(["--stack"] if stack else []),
    ]
    arguments += _axes_arguments(request.axes, images)
    arguments += ["--probabilities"] if request.probabilities else []
    return (
        arguments
        + (["--overwrite"] if request.overwrite else [])
        + _device_arguments(request.device)
    )


def _evaluate_arguments(request: EvaluateJob) -> list[str]:
    assert request.labels is not None
    averaged: list[str] = []
    if request.model is None:
        assert request.prediction is not None
        subject, images = request.prediction.path, [request.labels[0].path]
    else:
        subject, averaged = _averaging_arguments(request.model, request.tta)
        images = _paths(request.images or (), request.labels)
    arguments = [
        "evaluate",
        subject,
        *images,
        "--out",
        request.out or "scores",
        *averaged,
    ]
    return (
        arguments
        + _axes_arguments(request.axes, request.images or [])
        + _device_arguments(request.device)
    )


def _models(model: str | tuple[str, ...]) -> str:
    return repr(model if isinstance(model, str) else list(model))


def _averaging_arguments(
    model: str | tuple[str, ...], tta: bool
) -> tuple[str, list[str]]:
    """Return the first model, and the options for other models and for --tta."""
    first, *others = [model] if isinstance(model, str) else model
    return first, [argument for member in others for argument in ("--with", member)] + (
        ["--tta"] if tta else []
    )


def _pairs(images: Sequence[Layer], labels: Sequence[Layer], axes: str | None) -> str:
    if all(layer.is_path for layer in images):
        arguments = [_list([repr(layer.path) for layer in images])]
        arguments += [_list([repr(layer.path) for layer in labels])] if labels else []
    else:
        arguments = [_list([_image(layer, axes) for layer in images])]
        arguments.append(_list([f"ns.read_labels({layer.path!r})" for layer in labels]))
    return f"ns.read_pairs({', '.join(arguments)}{f', axes={axes!r}' if axes else ''})"


def _list(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else f"[{', '.join(items)}]"


def _image(layer: Layer, axes: str | None) -> str:
    letters = layer.axes or axes
    arguments = [repr(layer.path)] + ([f"axes={letters!r}"] if letters else [])
    arguments += [f"series={layer.series}"] if layer.series is not None else []
    call = f"ns.read_image({', '.join(arguments)})"
    geometry = {"scale": layer.scale, "units": layer.units, "name": layer.name}
    changed = ", ".join(f"{key}={value!r}" for key, value in geometry.items() if value)
    return f"dataclasses.replace({call}, {changed})" if changed else call


def _class_map(classes: ClassMap) -> str:
    raw = classes.model_dump(exclude_defaults=True)
    return f"ns.ClassMap({', '.join(f'{key}={value!r}' for key, value in raw.items())})"


def _paths(images: Sequence[Layer], labels: Sequence[Layer]) -> list[str]:
    return [layer.path for layer in (*images, *labels)]


def _keywords(options: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in options.items())


def _axes_arguments(axes: str | None, images: Sequence[Layer]) -> list[str]:
    """Return the options for the axes and the series of the images."""
    letters = axes or next((layer.axes for layer in images if layer.axes), None)
    numbers = {layer.series for layer in images} - {None}
    return (["--axes", letters] if letters else []) + [
        word for number in numbers for word in ("--series", str(number))
    ]


def _device_arguments(device: str) -> list[str]:
    return [] if device == "auto" else ["--device", device]


def _non_default(request: Any, names: Sequence[str]) -> dict[str, Any]:
    """Return the fields that differ from their defaults."""
    fields = type(request).model_fields
    return {
        name: value
        for name in names
        if (value := getattr(request, name)) != fields[name].default
    }
