"""Small things that several tests make."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_strata.core.classes import ClassMap
from napari_strata.core.image import AnnotatedImage, Image
from napari_strata.core.recipe import Recipe
from napari_strata.core.spec import ModelSpec, resolve
from napari_strata.models.model import Model
from napari_strata.networks import build_network

if TYPE_CHECKING:
    from torch import nn

    from napari_strata.models.tiled import TiledPredictor

TINY = {
    "network": {"kind": "unet", "widths": [4, 8]},
    "patches": {"size": 32, "per_epoch": 16},
    "training": {"epochs": 2, "batch_size": 4, "averaging": None, "precision": "fp32"},
}


def tiny_recipe(**overrides: Any) -> Recipe:
    """A recipe that trains in a second; keywords replace dotted keys with __ for the dot."""
    return Recipe.parse(TINY).with_overrides(
        {k.replace("__", "."): v for k, v in overrides.items()}
    )


def easy_pair(shape: tuple[int, ...] = (2, 64, 64), *, seed: int = 0) -> AnnotatedImage:
    """A stack whose two classes (values 0 and 255) differ in grey value: a smooth blob field, thresholded."""
    from skimage.filters import gaussian

    rng = np.random.default_rng(seed)
    field = np.stack([gaussian(rng.normal(size=shape[1:]), 4) for _ in range(shape[0])])
    truth = field > 0
    grey = np.where(truth, 160, 90) + rng.normal(0, 8, shape)
    image = Image(grey.clip(0, 255).astype(np.uint8), "ZYX", name="easy")
    return AnnotatedImage(image, image.labels_like((truth * 255).astype(np.uint8)))


def tiny_spec(
    pair: AnnotatedImage | None = None, *, classes: ClassMap | None = None
) -> ModelSpec:
    return resolve(tiny_recipe(), pair or easy_pair(), classes=classes)


def tiny_model(pair: AnnotatedImage | None = None) -> Model:
    """A model with random weights."""
    import torch

    spec = tiny_spec(pair)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Model(spec, tiny_recipe(), dict(build_network(spec).state_dict()))


def with_reference(model: Model, pair: AnnotatedImage) -> Model:
    """The model with the appearance of an image that it was trained on."""
    from dataclasses import replace

    from napari_strata.data.regions import labelled_regions
    from napari_strata.training.drift import measure_reference

    regions = labelled_regions(pair, model.spec.classes)
    return replace(model, drift=measure_reference(regions, model.spec, seed=0))


def signal_in_epoch(epoch: int, number: signal.Signals) -> str:
    """Python code by which a training process gets a signal at the end of an epoch."""
    return f"""
import os
from napari_strata.core.events import EpochEnd
build = EpochEnd.__init__
def build_and_signal(self, epoch, *values, **named):
    if epoch == {epoch}:
        os.kill(os.getpid(), {int(number)})
    build(self, epoch, *values, **named)
EpochEnd.__init__ = build_and_signal
"""


def tiled(network: nn.Module, spec: ModelSpec, **options: Any) -> TiledPredictor:
    """A network that predicts on the CPU in float32, unless `options` say otherwise."""
    import torch

    from napari_strata.models.device import Precision
    from napari_strata.models.network_predictor import NetworkPredictor
    from napari_strata.models.tiled import TiledPredictor

    device = options.pop("device", torch.device("cpu"))
    precision = options.pop("precision", Precision("fp32"))
    predictor = NetworkPredictor(network, spec, device=device, precision=precision)
    return TiledPredictor(predictor, **options)
