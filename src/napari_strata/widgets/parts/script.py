"""A job as text that does the same: a Python script, and a command for a shell."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from napari_strata.core.classes import ClassMap
from napari_strata.core.command import join_command
from napari_strata.worker.protocol import EvaluateJob, Layer, PredictJob, TrainJob


def as_python(order: TrainJob | PredictJob | EvaluateJob) -> str:
    """A script with the calls of the Python API that do what the order does."""
    if isinstance(order, TrainJob):
        body = _train_lines(order)
    else:
        body = (
            _predict_lines(order)
            if isinstance(order, PredictJob)
            else _evaluate_lines(order)
        )
    imports = (
        ["import dataclasses", ""]
        if any("dataclasses." in line for line in body)
        else []
    )
    return "\n".join([*imports, "import napari_strata as ns", "", *body]) + "\n"


def as_command(order: TrainJob | PredictJob | EvaluateJob) -> str:
    """One line for a shell that does what the order does."""
    if isinstance(order, TrainJob):
        arguments = _train_words(order)
    else:
        arguments = (
            _predict_words(order)
            if isinstance(order, PredictJob)
            else _evaluate_words(order)
        )
    return join_command(["napari-strata", *arguments])


def _train_lines(order: TrainJob) -> list[str]:
    labels = order.labels or ()
    lines = [f"pairs = {_pairs(order.images, labels, order.axes)}"]
    defined = {"out": order.out, "overrides": order.overrides or None}
    if order.validation is not None:
        held = order.validation
        lines.append(f"held = {_pairs(held.images, held.labels or (), held.axes)}")
    options = {k: v for k, v in defined.items() if v is not None} | _unusual(
        order, ("device", "resume", "extend")
    )
    arguments = [f"{key}={value!r}" for key, value in options.items()]
    if order.validation is not None:
        arguments.append("validation=held")
    if order.classes is not None:
        lines.append(f"classes = {_class_map(order.classes)}")
        arguments.append("classes=classes")
    recipe = (
        repr(order.recipe)
        if isinstance(order.recipe, str)
        else f"ns.Recipe.parse({order.recipe!r})"
    )
    return [*lines, f"model = ns.train({recipe}, pairs, {', '.join(arguments)})"]


def _predict_lines(order: PredictJob) -> list[str]:
    options = {"out": order.out} | _unusual(
        order, ("device", "overwrite", "batch", "precision", "tile", "tta", "ortho")
    )
    if order.probabilities:
        options["probabilities"] = True
    arguments = ", ".join(f"{key}={value!r}" for key, value in options.items())
    model = _models(order.model)
    if order.image is None:
        return [
            f"labels = ns.predict({model}, ns.read_image({path!r}), {arguments})"
            for path in order.inputs
        ]
    return [
        f"image = {_image(order.image, order.axes)}",
        f"labels = ns.predict({model}, image, {arguments})",
    ]


def _evaluate_lines(order: EvaluateJob) -> list[str]:
    out_argument = [f"out={order.out!r}"] if order.out else []
    if order.model is not None:
        pairs = _pairs(order.images or (), order.labels or (), order.axes)
        arguments = [
            _models(order.model),
            pairs,
            *out_argument,
            *(["tta=True"] if order.tta else []),
        ]
        return [
            f"scores = ns.evaluate({', '.join(arguments)})",
            "print(scores.as_dict())",
        ]
    assert order.prediction is not None
    assert order.labels is not None
    lines = [
        f"prediction = ns.read_labels({order.prediction.path!r})",
        f"truth = ns.read_labels({order.labels[0].path!r})",
    ]
    arguments = ["prediction", "truth"]
    if order.classes is not None:
        lines.append(f"classes = {_class_map(order.classes)}")
        arguments.append("classes")
    arguments += out_argument
    return [
        *lines,
        f"confusion = ns.score_labels({', '.join(arguments)})",
        "print(confusion.as_dict())",
    ]


def _train_words(order: TrainJob) -> list[str]:
    arguments = ["train", *_paths(order.images, order.labels or ()), "--out", order.out]
    if isinstance(order.recipe, str) and order.recipe != "default":
        arguments += ["--recipe", order.recipe]
    for key, value in order.overrides.items():
        arguments += ["--set", f"{key}={json.dumps(value)}"]
    if order.validation is not None:
        arguments += [
            "--val",
            *_paths(order.validation.images, order.validation.labels or ()),
        ]
    arguments += _axes_words(order.axes, order.images)
    if order.classes is None or order.labels is None:
        arguments += [
            word for value in order.unlabelled for word in ("--unlabelled", str(value))
        ]
    if order.extend:
        arguments += ["--extend", str(order.extend)]
    return (
        arguments + (["--resume"] if order.resume else []) + _device_words(order.device)
    )


def _predict_words(order: PredictJob) -> list[str]:
    inputs = list(order.inputs) if order.image is None else [order.image.path]
    model, averaged = _averaging_words(order.model, order.tta)
    arguments = [
        "predict",
        model,
        *inputs,
        "--out",
        order.out,
        *averaged,
        *(["--ortho"] if order.ortho else []),
    ]
    arguments += _axes_words(order.axes, [order.image] if order.image else [])
    arguments += ["--probabilities"] if order.probabilities else []
    return (
        arguments
        + (["--overwrite"] if order.overwrite else [])
        + _device_words(order.device)
    )


def _evaluate_words(order: EvaluateJob) -> list[str]:
    assert order.labels is not None
    averaged: list[str] = []
    if order.model is None:
        assert order.prediction is not None
        subject, images = order.prediction.path, [order.labels[0].path]
    else:
        subject, averaged = _averaging_words(order.model, order.tta)
        images = _paths(order.images or (), order.labels)
    arguments = [
        "evaluate",
        subject,
        *images,
        "--out",
        order.out or "scores",
        *averaged,
    ]
    return (
        arguments
        + _axes_words(order.axes, order.images or [])
        + _device_words(order.device)
    )


def _models(model: str | tuple[str, ...]) -> str:
    return repr(model if isinstance(model, str) else list(model))


def _averaging_words(model: str | tuple[str, ...], tta: bool) -> tuple[str, list[str]]:
    """The model, and the options for those beside it and for flips and turns."""
    first, *others = [model] if isinstance(model, str) else model
    return first, [word for member in others for word in ("--with", member)] + (
        ["--tta"] if tta else []
    )


def _pairs(images: Sequence[Layer], labels: Sequence[Layer], axes: str | None) -> str:
    if all(layer.is_path for layer in images):
        parts = [_list([repr(layer.path) for layer in images])]
        parts += [_list([repr(layer.path) for layer in labels])] if labels else []
    else:
        parts = [_list([_image(layer, axes) for layer in images])]
        parts.append(_list([f"ns.read_labels({layer.path!r})" for layer in labels]))
    return f"ns.read_pairs({', '.join(parts)}{f', axes={axes!r}' if axes else ''})"


def _list(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else f"[{', '.join(items)}]"


def _image(layer: Layer, axes: str | None) -> str:
    letters = layer.axes or axes
    arguments = [repr(layer.path)] + ([f"axes={letters!r}"] if letters else [])
    arguments += [f"series={layer.series}"] if layer.series else []
    opened = f"ns.read_image({', '.join(arguments)})"
    geometry = {"scale": layer.scale, "units": layer.units, "name": layer.name}
    changed = ", ".join(f"{key}={value!r}" for key, value in geometry.items() if value)
    return f"dataclasses.replace({opened}, {changed})" if changed else opened


def _class_map(classes: ClassMap) -> str:
    raw = classes.model_dump(exclude_defaults=True)
    return f"ns.ClassMap({', '.join(f'{key}={value!r}' for key, value in raw.items())})"


def _paths(images: Sequence[Layer], labels: Sequence[Layer]) -> list[str]:
    return [layer.path for layer in (*images, *labels)]


def _axes_words(axes: str | None, images: Sequence[Layer]) -> list[str]:
    letters = axes or next((layer.axes for layer in images if layer.axes), None)
    return ["--axes", letters] if letters else []


def _device_words(device: str) -> list[str]:
    return [] if device == "auto" else ["--device", device]


def _unusual(order: Any, names: Sequence[str]) -> dict[str, Any]:
    """Fields that differ from their defaults."""
    fields = type(order).model_fields
    return {
        name: value
        for name in names
        if (value := getattr(order, name)) != fields[name].default
    }
