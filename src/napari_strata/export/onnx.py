"""Export of a network as an ONNX graph; docs/export.md describes the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from napari_strata.core.errors import ModelError, RunError
from napari_strata.core.options import PredictOptions
from napari_strata.core.spec import ModelSpec
from napari_strata.export.registry import register_exporter
from napari_strata.inference.backends import onnx_session, with_session
from napari_strata.inference.build import build_predictor
from napari_strata.models.ensemble import Ensemble
from napari_strata.models.model import Model, current_versions
from napari_strata.models.network_predictor import NetworkPredictor
from napari_strata.networks.onnx_graph import (
    check_packages,
    without_padding,
    write_onnx_graph,
)

TOLERANCE = 1e-3
"""Largest difference from our own probabilities that a file may have."""

LARGEST = 1_500_000_000
"""Bytes of weights that fit into one file; ONNX allows 2 GB with all else in it."""


class Probabilities(nn.Module):
    """A network, and the softmax of its logits divided by a temperature."""

    def __init__(self, network: nn.Module, temperature: float) -> None:
        super().__init__()
        self.network = network
        self.temperature = temperature

    def forward(self, images: Tensor) -> Tensor:
        """Compute probabilities (N, K, H, W) of images (N, C, H, W), or of volumes."""
        return torch.softmax(self.network(images) / self.temperature, 1)


def load_network(models: Ensemble) -> tuple[Model, NetworkPredictor]:
    """Return the one model of an ensemble, and its network on the CPU in float32.

    Raises
    ------
    ModelError
        For several models, a model that is not a network, and one that is too large.
    RunError
        When a package is missing.
    """
    if len(models) > 1:
        raise ModelError(
            f"found {models.describe()}; ensembles cannot be exported to ONNX yet: "
            "export the models one by one and average their probabilities."
        )
    check_packages("export to ONNX", "onnxruntime", extra="onnx")
    (model,) = models.models
    options = PredictOptions(device="cpu", precision="fp32")
    predictor = build_predictor(model, options).predictor
    if not isinstance(predictor, NetworkPredictor):
        raise ModelError(
            f"found a model of kind {model.spec.network.kind!r}, which is not a "
            "network; only networks can be exported to ONNX."
        )
    size = sum(p.numel() * p.element_size() for p in predictor.network.parameters())
    if size > LARGEST:
        raise ModelError(
            f"found a network of {size / 1e9:.1f} GB; an ONNX file holds "
            f"{LARGEST / 1e9} GB of weights: export a smaller one."
        )
    return model, predictor


@register_exporter("onnx")
def export_onnx(models: Ensemble, path: Path) -> list[str]:
    """Write the network of a model as an ONNX graph that gives probabilities.

    ONNX Runtime computes a random image with it, and the file is refused if the
    probabilities are not those of our own network.

    Raises
    ------
    ModelError
        For several models, a model that is not a network, and one that is too large.
    RunError
        When a package is missing, the network cannot be made into a graph, or the graph
        does not compute what the network does.
    """
    model, predictor = load_network(models)
    spec, network = model.spec, predictor.network
    images = _random_images(spec)
    logits = predictor.logits(images)
    expected = torch.softmax(logits / model.temperature, 1)

    graph, multiples = without_padding(network, spec.axes)
    write_onnx_graph(
        Probabilities(graph, model.temperature).eval(),
        path,
        channels=spec.in_channels,
        multiples=multiples,
        output="probabilities",
        properties=graph_properties(spec, multiples),
    )
    exported = with_session(network, onnx_session(path))
    difference = float((exported(torch.from_numpy(images)) - expected).abs().max())
    shape = " x ".join(map(str, images.shape))
    # Also refuses NaN.
    if not difference <= TOLERANCE:
        raise RunError(
            f"the ONNX graph differs from the network by {difference:.2g} in the "
            f"probabilities of a random image ({shape}); at most {TOLERANCE:g} is "
            "allowed, so nothing was written: try other versions of torch, onnxscript "
            "and onnxruntime."
        )
    return [
        f"probabilities differ from our own by at most {difference:.2g} on a random "
        f"image ({shape})"
    ]


def _random_images(spec: ModelSpec) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Make scaled images, of another batch and shape than the exporter's example.

    Their sizes are odd.
    """
    strides = spec.stride_shape
    counts = (1, 5, 3)[-len(strides) :]
    shape = [3, spec.in_channels]
    for count, stride in zip(counts, strides, strict=True):
        shape.append(count * max(stride, 8) - 1)
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def graph_properties(spec: ModelSpec, multiples: tuple[int, ...]) -> dict[str, str]:
    """Metadata of the file: names, and values as JSON."""
    values = {
        "classes": spec.classes.table(),
        "axes": spec.axes,
        "channels": spec.channel_names,
        "neighbours": spec.neighbours,
        "dtype": spec.dtype,
        "pixel_size": spec.pixel_size,
        "pixel_unit": spec.pixel_unit,
        "normalization": spec.normalization.model_dump(mode="json"),
        "resize": spec.resize,
        "size_multiple": multiples,
        "stride": spec.stride_shape,
        "tile": spec.tile_shape,
        "halo": spec.halo_shape,
        "blend": spec.blend,
        "network": spec.network.kind,
        "napari_strata": current_versions()["napari-strata"],
    }
    return {name: json.dumps(value) for name, value in values.items()}
