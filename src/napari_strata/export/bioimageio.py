"""Export of a network as a package of bioimage.io, specification 0.5.

The package states its axes, sizes, pixel size, normalisation and halo, so that other
programs can feed the network; docs/export.md says what the format cannot express.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import keyword
import math
import re
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import yaml
from PIL import Image as Pillow
from torch import Tensor

from napari_strata.core.errors import ImageError, ModelError, RunError
from napari_strata.core.image import Image
from napari_strata.core.normalization import Scale, stored_dtype
from napari_strata.core.spec import ModelSpec
from napari_strata.data.neighbours import with_neighbours
from napari_strata.export.onnx import (
    TOLERANCE,
    Probabilities,
    graph_properties,
    load_network,
)
from napari_strata.export.registry import register_exporter
from napari_strata.inference.backends import onnx_session, with_session
from napari_strata.io import read_image
from napari_strata.models.ensemble import Ensemble
from napari_strata.models.model import Model
from napari_strata.networks.onnx_graph import without_padding, write_onnx_graph

Array = np.ndarray[Any, Any]

FORMAT_VERSION = "0.5.4"
UNITS = {
    "kilometer",
    "meter",
    "centimeter",
    "millimeter",
    "micrometer",
    "nanometer",
    "picometer",
    "angstrom",
    "inch",
}
"""Our units of length that the specification has."""

COVER = 512
"""Largest height of the cover picture in pixels; it is twice as wide."""

_DOI = re.compile(r"10\.\d{4,9}/[^\s,;]+[^\s,;.]")
_ADDRESS = re.compile(r"https?://\S+[^\s,;.]")


class ClippedProbabilities(Probabilities):
    """Probabilities of scaled images whose values are clipped first, as ours are.

    Values that are not finite become 0, which is the centre of the scale.

    Parameters
    ----------
    limits
        The scale of the images, to whose range they are clipped; None for no clipping.
    """

    def __init__(
        self, network: torch.nn.Module, temperature: float, limits: Scale | None
    ) -> None:
        super().__init__(network, temperature)
        self.clips = limits is not None
        if limits is not None:
            low, high = (_scale_limit(limits, name) for name in ("low", "high"))
            self.register_buffer("low", low)
            self.register_buffer("high", high)

    def forward(self, images: Tensor) -> Tensor:
        """Compute probabilities (N, K, H, W) of images (N, C, H, W), or of volumes."""
        # Infinities and NaN: the only values whose difference from themselves is not 0.
        images = torch.where(images - images == 0, images, torch.zeros_like(images))
        if self.clips:
            shape = (1, -1) + (1,) * (images.ndim - 2)
            low = cast(Tensor, self.low).reshape(shape)
            high = cast(Tensor, self.high).reshape(shape)
            images = torch.minimum(torch.maximum(images, low), high)
        return super().forward(images)


def _scale_limit(scale: Scale, name: str) -> Tensor:
    limit = np.array(getattr(scale, name), np.float64)
    scaled = (limit - np.array(scale.center)) / np.array(scale.spread)
    return torch.from_numpy(scaled.astype(np.float32))


@dataclass(frozen=True)
class _Facts:
    """What the files of a package repeat of the model."""

    model: Model
    multiples: tuple[int, ...]
    """Numbers that the sizes along (Z,) Y, X are multiples of."""
    scale: Scale | None
    """The scale of all images; None where each image has its own."""

    @property
    def spec(self) -> ModelSpec:
        return self.model.spec

    @property
    def smallest(self) -> tuple[int, ...]:
        """Smallest sizes along (Z,) Y, X: two multiples, and more than the halo."""
        sizes = []
        for multiple, halo in zip(self.multiples, self.spec.halo_shape, strict=True):
            size = max(2 * multiple, 2 * halo + 1)
            sizes.append(math.ceil(size / multiple) * multiple)
        return tuple(sizes)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the grey values."""
        stored = stored_dtype(self.spec.dtype)
        return stored if stored.kind in "ui" else np.dtype(np.float32)


@register_exporter("bioimageio")
def export_bioimageio(
    models: Ensemble,
    path: Path,
    *,
    image: Image | str | Path | None = None,
    cite: str = "",
    licence: str = "",
    authors: Sequence[str] = (),
) -> list[str]:
    """Write a network as a bioimage.io package with ONNX weights.

    The probabilities of the package for its test image are compared with our own.

    Parameters
    ----------
    image
        Image that the test image and the cover are cut from; one that is made up is
        used when left out.
    cite
        What users of the model should cite, with a DOI or a web address.
    licence
        SPDX identifier of the licence, such as ``CC-BY-4.0``.
    authors
        Names.

    Raises
    ------
    ModelError
        For several models, a model that is not a network, one that resizes its images,
        and one that is too large.
    ImageError
        When the image cannot be read, is too small, or has other channels.
    RunError
        When a package is missing, an option has no valid value, the network cannot be
        made into a graph, or the package does not compute what the model does.
    """
    if path.suffix.lower() != ".zip":
        raise RunError(
            "found a file name without .zip; a bioimage.io package is a zip file: "
            "name it, for example, package.zip."
        )
    citation = _citation(cite)
    model, predictor = load_network(models)
    spec = model.spec
    if spec.resize:
        raise ModelError(
            f"found a model that resizes each image to {spec.resize} pixels, which a "
            "bioimage.io package cannot state; export it with --to onnx."
        )
    graph, multiples = without_padding(predictor.network, spec.axes)
    facts = _Facts(model, multiples, _fixed_scale(spec))
    sample = _test_image(facts, image)
    scaled = _preprocess(facts, sample)

    with tempfile.TemporaryDirectory(prefix="napari-strata-") as folder:
        weights = Path(folder) / "weights.onnx"
        write_onnx_graph(
            ClippedProbabilities(graph, model.temperature, facts.scale).eval(),
            weights,
            channels=spec.in_channels,
            multiples=multiples,
            output="probabilities",
            properties=graph_properties(spec, multiples),
        )
        session = with_session(predictor.network, onnx_session(weights))
        probabilities = session(torch.from_numpy(scaled)).numpy()
        contents = {"weights.onnx": weights.read_bytes()}

    # The graph replaces and clips values; here our own scale does.
    if facts.scale is None:
        values = np.where(np.isfinite(scaled), scaled, np.float32(0))
    else:
        values = facts.scale.apply(sample[0])[None]
    difference = _compare(model, predictor.logits(values), probabilities)
    if not difference <= TOLERANCE:
        raise RunError(
            f"the package differs from the model by {difference:.2g} in the "
            f"probabilities of its test image; at most {TOLERANCE:g} is allowed, so "
            "nothing was written: try other versions of torch, onnxscript and "
            "onnxruntime."
        )
    notes = [
        f"probabilities differ from our own by at most {difference:.2g} on the test "
        f"image ({' x '.join(map(str, sample.shape[1:]))})"
    ]
    if facts.scale is None:
        samples = sample[0].reshape(spec.in_channels, -1)
        own_scale = spec.normalization.scale_for(samples, spec.dtype)
        own = predictor.logits(own_scale.apply(sample[0])[None])
        agreement = np.mean(own.argmax(1).numpy() == probabilities.argmax(1))
        low, high = spec.normalization.percentiles
        notes.append(
            "the format cannot state that grey values outside the percentiles "
            f"{low:g} and {high:g} of an image are left out of its scale: with the "
            f"package's scale, {agreement:.2%} of the test image's pixels have our "
            "labels, and probabilities differ by at most "
            f"{_compare(model, own, probabilities):.2g}"
        )
    contents["test_input.npy"] = _as_npy(sample)
    contents["test_output.npy"] = _as_npy(probabilities)
    contents["cover.png"] = _cover(facts, sample, probabilities)
    contents["README.md"] = _readme(facts, notes).encode()
    description = _describe(facts, contents, citation, licence, authors)
    text = yaml.safe_dump(description, sort_keys=False, allow_unicode=True)
    contents["rdf.yaml"] = text.encode()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as package:
        for name, content in contents.items():
            package.writestr(name, content)
    return notes


def _compare(model: Model, logits: Tensor, probabilities: Array) -> float:
    """Measure the largest difference of probabilities from those of logits."""
    expected = torch.softmax(logits / model.temperature, 1).numpy()
    return float(np.abs(expected - probabilities).max())


def _fixed_scale(spec: ModelSpec) -> Scale | None:
    """Return the scale that serves all images, or None for kind "relative"."""
    if spec.normalization.kind == "relative":
        return None
    return spec.normalization.scale_for(np.empty((spec.in_channels, 0)), spec.dtype)


def _preprocess(facts: _Facts, sample: Array) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Scale a batch of images as the package states it."""
    values = sample.astype(np.float32)
    if facts.scale is not None:
        shape = (1, -1) + (1,) * (sample.ndim - 2)
        center = np.array(facts.scale.center, np.float32).reshape(shape)
        spread = np.array(facts.scale.spread, np.float32).reshape(shape)
        return np.asarray((values - center) / spread, np.float32)
    space = tuple(range(2, sample.ndim))
    wide = values.astype(np.float64)
    mean, deviation = (f(wide, axis=space, keepdims=True) for f in (np.mean, np.std))
    return np.asarray((wide - mean) / (deviation + 1e-6), np.float32)


def _test_image(facts: _Facts, source: Image | str | Path | None) -> Array:
    """Return a batch of one image (1, C, (Z,) Y, X) of valid sizes."""
    if source is None:
        return _made_up(facts)
    image = source if isinstance(source, Image) else read_image(source)
    spec = facts.spec
    image = with_neighbours(image, spec.neighbours)
    if image.channels != spec.in_channels:
        raise ImageError(
            f"{image.describe()}: found {image.channels} channels; the model takes "
            f"{spec.in_channels}: give an image like those that it was trained on."
        )
    region: dict[str, int | slice] = {}
    if "T" in image.axes:
        region["T"] = 0
    if "Z" in image.axes and "Z" not in spec.axes:
        region["Z"] = image.size("Z") // 2
    for axis, smallest in zip(spec.axes, facts.smallest, strict=True):
        length = image.size(axis)
        if length < smallest:
            raise ImageError(
                f"{image.describe()}: found {length} pixels along {axis}; the test "
                f"image needs {smallest} or more: give a larger image, or leave it out."
            )
        start = (length - smallest) // 2
        region[axis] = slice(start, start + smallest)
    return image.read(region)[None].astype(facts.dtype)


def _made_up(facts: _Facts) -> Array:
    """Make an image of smooth blobs with the grey values of the training images."""
    from scipy.ndimage import gaussian_filter

    random = np.random.default_rng(0)
    scale = facts.spec.normalization.scale
    channels = []
    for center, spread in zip(scale.center, scale.spread, strict=True):
        blobs = gaussian_filter(random.standard_normal(facts.smallest), 3)
        blobs = blobs / blobs.std() + 0.2 * random.standard_normal(facts.smallest)
        channels.append(center + spread * blobs)
    values = np.stack(channels)[None]
    if facts.dtype.kind in "ui":
        limits = np.iinfo(facts.dtype)
        values = values.round().clip(limits.min, limits.max)
    return values.astype(facts.dtype)


def _describe(
    facts: _Facts,
    contents: dict[str, bytes],
    citation: dict[str, str] | None,
    licence: str,
    authors: Sequence[str],
) -> dict[str, Any]:
    """Describe the package as rdf.yaml does."""
    spec = facts.spec

    def file(name: str) -> dict[str, str]:
        digest = hashlib.sha256(contents[name]).hexdigest()
        return {"source": name, "sha256": digest}

    properties = graph_properties(spec, facts.multiples)
    names = ", ".join(spec.classes.names)
    dimensions = f"{len(spec.axes)}D"
    description: dict[str, Any] = {
        "type": "model",
        "format_version": FORMAT_VERSION,
        "name": f"{dimensions} segmentation into {len(spec.classes.names)} classes "
        f"({re.sub('[^A-Za-z0-9]', '-', spec.network.kind)})",
        "description": f"Probabilities of the classes {names}"[:1000],
        "authors": [{"name": name.replace("/", " ")} for name in authors],
        "cite": [citation] if citation else [],
        "tags": ["semantic-segmentation", dimensions.lower(), "napari-strata"],
        "documentation": file("README.md"),
        "covers": [file("cover.png")],
        "timestamp": datetime.now(UTC).isoformat(timespec="seconds"),
        "inputs": [
            {
                "id": "images",
                "description": "grey values",
                "axes": _input_axes(facts),
                "data": {"type": facts.dtype.name},
                "test_tensor": file("test_input.npy"),
                "preprocessing": _preprocessing(facts),
            }
        ],
        "outputs": [
            {
                "id": "probabilities",
                "description": "probability of each class",
                "axes": _output_axes(facts),
                "data": {"type": "float32", "range": [0.0, 1.0]},
                "test_tensor": file("test_output.npy"),
            }
        ],
        "weights": {
            "onnx": {**file("weights.onnx"), "opset_version": _opset(contents)}
        },
        "config": {
            "napari_strata": {
                name: json.loads(text) for name, text in properties.items()
            }
        },
    }
    if licence:
        description["license"] = licence
    return description


def _opset(contents: dict[str, bytes]) -> int:
    import onnx

    graph = onnx.load_model_from_string(contents["weights.onnx"])
    return next(
        int(s.version) for s in graph.opset_import if s.domain in ("", "ai.onnx")
    )


def _preprocessing(facts: _Facts) -> list[dict[str, Any]]:
    """State the normalisation; the graph clips to the range of a fixed scale."""
    space = [axis.lower() for axis in facts.spec.axes]
    scaling: dict[str, Any] = {
        "id": "zero_mean_unit_variance",
        "kwargs": {"axes": space, "eps": 1e-6},
    }
    if facts.scale is not None:
        gain = [1 / spread for spread in facts.scale.spread]
        offset = [
            -center / spread
            for center, spread in zip(
                facts.scale.center, facts.scale.spread, strict=True
            )
        ]
        scaling = {
            "id": "scale_linear",
            "kwargs": {"axis": "channel", "gain": gain, "offset": offset},
        }
    float32 = {"id": "ensure_dtype", "kwargs": {"dtype": "float32"}}
    # A copy, for which YAML writes no reference.
    return [float32, scaling, copy.deepcopy(float32)]


def _space_axes(facts: _Facts) -> Iterable[tuple[str, int, int, dict[str, Any]]]:
    """Iterate over id, multiple, smallest size and pixel size of (Z,) Y, X."""
    spec = facts.spec
    unit = {"unit": spec.pixel_unit} if spec.pixel_unit in UNITS else {}
    for axis, multiple, smallest in zip(
        spec.axes, facts.multiples, facts.smallest, strict=True
    ):
        scale = spec.pixel_size.get(axis, 1.0)
        yield axis.lower(), multiple, smallest, {**unit, "scale": scale}


def _input_axes(facts: _Facts) -> list[dict[str, Any]]:
    spec = facts.spec
    names = spec.channel_names
    if len(names) != spec.in_channels:
        names = tuple(f"channel{number}" for number in range(spec.in_channels))
    axes: list[dict[str, Any]] = [
        {"type": "batch"},
        {"type": "channel", "channel_names": identifiers(names)},
    ]
    for name, multiple, smallest, pixel in _space_axes(facts):
        axis = {"type": "space", "id": name, **pixel}
        axis["size"] = {"min": smallest, "step": multiple}
        # A network that sees its whole tile gives other labels for blocks.
        axis["concatenable"] = not spec.blend
        axes.append(axis)
    return axes


def _output_axes(facts: _Facts) -> list[dict[str, Any]]:
    spec = facts.spec
    axes: list[dict[str, Any]] = [
        {"type": "batch"},
        {"type": "channel", "channel_names": identifiers(spec.classes.names)},
    ]
    for (name, _, _, pixel), halo in zip(
        _space_axes(facts), spec.halo_shape, strict=True
    ):
        axis = {"type": "space", "id": name, **pixel}
        axis["size"] = {"tensor_id": "images", "axis_id": name}
        if halo:
            axis["halo"] = halo
        axes.append(axis)
    return axes


def identifiers(names: Sequence[str]) -> list[str]:
    """Turn names into different Python identifiers, as the specification needs them."""
    results: list[str] = []
    for name in names:
        word = re.sub(r"\W+", "_", name).strip("_") or "unnamed"
        if not word.isidentifier() or keyword.iskeyword(word):
            word = f"c_{word}"
        unique, number = word, 2
        while unique in results:
            unique, number = f"{word}_{number}", number + 1
        results.append(unique)
    return results


def _citation(text: str) -> dict[str, str] | None:
    """Return the entry for a citation.

    Raises
    ------
    RunError
        When the text has neither a DOI nor a web address.
    """
    if not text:
        return None
    if doi := _DOI.search(text):
        return {"text": text, "doi": doi[0]}
    if address := _ADDRESS.search(text):
        return {"text": text, "url": address[0]}
    raise RunError(
        f"found the citation {text!r} without a DOI or web address, of which "
        "bioimage.io needs one: add it to the text, such as 10.1000/182."
    )


def _as_npy(array: Array) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


def _cover(facts: _Facts, sample: Array, probabilities: Array) -> bytes:
    """Draw the test image beside its classes in their colours, as PNG."""
    grey, indices = sample[0, 0].astype(np.float64), probabilities[0].argmax(0)
    if grey.ndim == 3:
        middle = len(grey) // 2
        grey, indices = grey[middle], indices[middle]
    side = min(*grey.shape, COVER)
    grey, indices = grey[:side, :side], indices[:side, :side]
    low, high = np.nanpercentile(grey, (0.5, 99.5))
    shades = np.nan_to_num((grey - low) / max(high - low, 1e-12)).clip(0, 1)
    table = [
        tuple(bytes.fromhex(color.removeprefix("#")))
        for color in facts.spec.classes.colors
    ]
    left = np.repeat((255 * shades).astype(np.uint8)[..., None], 3, axis=-1)
    right = np.array(table, np.uint8)[indices]
    stream = io.BytesIO()
    picture = Pillow.fromarray(np.concatenate([left, right], axis=1))
    picture.save(stream, "PNG")
    return stream.getvalue()


def _readme(facts: _Facts, notes: Sequence[str]) -> str:
    """Write the documentation of the package."""
    spec = facts.spec
    rows = [
        f"| {index} | {name} | {value} | {color} |"
        for index, (name, value, color) in enumerate(
            zip(
                spec.classes.names,
                spec.classes.values,
                spec.classes.colors,
                strict=True,
            )
        )
    ]
    if facts.scale is None:
        low, high = spec.normalization.percentiles
        scaling = (
            "Each channel of each image gets mean 0 and variance 1. napari-strata "
            f"measures both between the percentiles {low:g} and {high:g} "
            "and clips values one distance between them beyond; the format cannot "
            "state this. Images with hot pixels, or with few signals on an empty "
            "background, get other labels."
        )
    else:
        scaling = (
            f"All images have the same scale (kind {spec.normalization.kind}). The "
            "graph clips the scaled values to the range of napari-strata, and "
            "replaces NaN and infinities by the centre of the scale."
        )
    tiling = (
        "The network sees its whole tile: overlap tiles and blend their probabilities."
        if spec.blend
        else "Start tiles at multiples of the stride and crop the halo of each."
    )
    limits = [
        "- Images smaller than the smallest size, or of other sizes than its steps, "
        "must be padded at the end of each axis, by mirroring.",
        f"- Tiles are {' x '.join(map(str, spec.tile_shape))} pixels large, the stride "
        f"is {' x '.join(map(str, spec.stride_shape))}. {tiling}",
        "- Label values and colours of the classes, see above: the output has "
        "probabilities only. The label is that of the largest.",
    ]
    if spec.neighbours:
        limits.append(
            f"- The channels are {spec.neighbours} slices below, the slice itself and "
            f"{spec.neighbours} above it, in the order of Z; at its ends the stack is "
            "mirrored."
        )
    if spec.pixel_unit not in UNITS:
        limits.append(f"- The unit of the pixel size, which is {spec.pixel_unit}.")
    return "\n".join(
        [
            "# Segmentation model of napari-strata",
            "",
            f"Network: {spec.network.kind}, {len(spec.axes)}D. Grey values: "
            f"{spec.dtype}. Its output is the probability of each class.",
            "",
            "| channel | class | label value | colour |",
            "|---|---|---|---|",
            *rows,
            "",
            "## Grey values",
            "",
            scaling,
            "",
            "## What the format cannot express",
            "",
            *limits,
            "",
            "## Validation",
            "",
            *(f"- {note}" for note in notes),
            "",
        ]
    )
