"""Build the predictors of models on a device, from the kind that each model names."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from time import perf_counter
from typing import TypeAlias

import numpy as np
import torch

from napari_strata.core.errors import RunError
from napari_strata.core.events import Message
from napari_strata.core.image import Image
from napari_strata.core.options import PredictOptions
from napari_strata.inference.backends import check_backend, with_backend
from napari_strata.inference.ensemble_predictor import EnsemblePredictor
from napari_strata.models.device import choose_device, choose_precision
from napari_strata.models.ensemble import Ensemble
from napari_strata.models.model import Model
from napari_strata.models.network_predictor import NetworkPredictor
from napari_strata.models.pixels.predictor import PixelPredictor
from napari_strata.models.predictor import Predictor
from napari_strata.models.tiled import TiledPredictor
from napari_strata.networks.folding import fold_batch_norms

PredictorBuilder: TypeAlias = Callable[[Model, PredictOptions], Predictor]


def _build_pixel_predictor(model: Model, options: PredictOptions) -> PixelPredictor:
    # Backend, precision and compile are options of networks: of those in an ensemble.
    return PixelPredictor.of(model, choose_device(options.device))


_BUILDERS: dict[str, PredictorBuilder] = {"pixels": _build_pixel_predictor}
"""Builders of predictors that are not torch networks, by kind."""


def register_predictor(kind: str, build: PredictorBuilder) -> None:
    """Register how predictors of a kind are built.

    A model file names its kind as ``spec.network.kind``. A kind that is not registered
    here is a torch network; see `network_sections.register_network`.
    """
    _BUILDERS[kind] = build


def build_predictor(model: Model, options: PredictOptions) -> TiledPredictor:
    """Build the predictor of a model on the device that `options` name."""
    build = _BUILDERS.get(model.spec.network.kind, _build_network_predictor)
    if options.tile:
        stride = model.spec.stride
        tile = math.ceil(options.tile / stride) * stride
        spec = model.spec.model_copy(update={"tile": tile})
        model = replace(model, spec=spec)
    predictor = build(model, options)
    return TiledPredictor(predictor, batch=options.batch, temperature=model.temperature)


def build_ensemble_predictor(
    models: Ensemble, options: PredictOptions
) -> EnsemblePredictor:
    """Build the predictors of all models on the device that `options` name."""
    members = [build_predictor(model, options) for model in models.ordered]
    return EnsemblePredictor(members, tta=options.tta, ortho=options.ortho)


def _build_network_predictor(model: Model, options: PredictOptions) -> NetworkPredictor:
    spec = model.spec
    device = choose_device(options.device)
    precision_name = check_backend(options.backend, device, options.precision)
    precision = choose_precision(precision_name, device)
    # Two strides along each axis, as small as every network here takes.
    side = tuple(2 * stride for stride in spec.stride_shape)
    # On the CPU, because the check of the folded network needs float32: GPUs round
    # convolutions to TF32, and the difference would look like an error.
    network = fold_batch_norms(model.build(), channels=spec.in_channels, side=side)
    if options.compile:
        network = torch.compile(network)  # type: ignore[assignment]
    network = with_backend(options.backend, network, spec, precision=precision)
    return NetworkPredictor(network, spec, device=device, precision=precision)


def compile_networks(
    predictor: EnsemblePredictor, image: Image, options: PredictOptions
) -> Iterator[Message]:
    """Make the kernels for the tiles of an image where networks are to be compiled.

    Yields
    ------
    a message for each network: how long it took.

    Raises
    ------
    RunError
        when there is no compiler here, or it cannot compile a network.
    """
    if not options.compile:
        return
    chunks = predictor.plan_chunks(image)
    for member in predictor.members:
        if not isinstance(member.predictor, NetworkPredictor):
            continue
        shapes = set()
        # All chunks but the last are alike.
        for chunk in (chunks[0], chunks[-1]):
            images = predictor.image_shapes(chunk, image)
            shapes |= member.batch_shapes(dict(images))
        started = perf_counter()
        try:
            # Kernels that are made for the largest suit the others, or are made anew.
            for count, *size in sorted(shapes, key=math.prod, reverse=True):
                batch = np.zeros((count, member.spec.in_channels, *size), np.float32)
                member.predictor.logits(batch)
        except Exception as error:  # the compiler's own, many kinds
            text = " ".join(str(error).split())[:160] or type(error).__name__
            raise RunError(
                f"torch.compile failed here ({text}); leave compile out."
            ) from error
        seconds = perf_counter() - started
        yield Message(f"torch.compile took {seconds:.0f} s before the first tile")
