"""A pixel classifier as a `Predictor`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from napari_strata.core.network_sections import Pixels
from napari_strata.core.spec import ModelSpec
from napari_strata.core.tiling import Tile, plan_tiles
from napari_strata.models.device import Precision
from napari_strata.models.model import Model
from napari_strata.models.pixels.classifier import STEPS, PixelClassifier
from napari_strata.models.pixels.features import count_features
from napari_strata.models.pixels.threads import single_threaded_pool

BLOCK_HALOS = 16
"""Side of the blocks that one thread computes, in halos.

Small blocks stay in a processor's cache, large ones compute fewer pixels twice.
"""


class PixelPredictor:
    """A pixel classifier on its device; see `Predictor`.

    On a CPU each thread computes blocks of the tile from image to logits. The result is
    identical, bit for bit, to that of the whole tile.
    """

    precision = Precision("fp32")

    def __init__(
        self, classifier: PixelClassifier, spec: ModelSpec, *, device: torch.device
    ) -> None:
        self.classifier = classifier
        self.spec = spec
        self.device = device

    @classmethod
    def of(cls, model: Model, device: torch.device) -> PixelPredictor:
        """Build the predictor of a model.

        Raises `ModelError` if its weights are not those of a pixel classifier.
        """
        section = model.spec.network
        assert isinstance(section, Pixels)
        classifier = PixelClassifier.from_weights(
            model.weights, section, neighbours=model.spec.neighbours
        )
        return cls(classifier, model.spec, device=device)

    @torch.inference_mode()
    def logits(self, batch: np.ndarray[Any, Any]) -> Tensor:
        """Compute the logits of scaled tiles; see `Predictor.logits`."""
        images = torch.from_numpy(batch).to(self.device)
        n, _, height, width = images.shape
        logits = images.new_empty((n, len(self.spec.classes), height, width))
        if self.device.type != "cpu":
            for image, out in zip(images, logits, strict=True):
                out.copy_(self._logits(image))
            return logits
        halo, stride = self.spec.halo, self.spec.stride
        blocks = plan_tiles(
            (height, width),
            tile=max(BLOCK_HALOS * halo, 256),
            halo=halo,
            stride=stride,
        )

        def compute(image: Tensor, out: Tensor, block: Tile) -> None:
            with torch.inference_mode():
                part = self._logits(image[:, *block.read])
                out[:, *block.write] = part[:, *block.crop]

        with single_threaded_pool() as pool:
            jobs = [
                pool.submit(compute, image, out, block)
                for image, out in zip(images, logits, strict=True)
                for block in blocks
            ]
            for job in jobs:
                job.result()
        return logits

    def memory(self, shape: Sequence[int]) -> int:
        """Estimate the bytes that one tile needs; see `Predictor.memory`."""
        pixels = math.prod(shape)
        channels, classes = self.spec.in_channels, len(self.spec.classes)
        features = count_features(channels, self.classifier.levels)
        # Beside features and sums: copies of channels, and what the filter holds.
        working = features + 2 * classes + 12 * channels + 12
        block = pixels
        if self.device.type == "cpu":
            side = max(BLOCK_HALOS * self.spec.halo, 256) + 4 * self.spec.halo
            block = min(pixels, side * side) * torch.get_num_threads()
        return 4 * (working * block + (channels + classes) * pixels)

    def _logits(self, image: Tensor) -> Tensor:
        """Logits (K, H, W) of an image (C, H, W)."""
        probabilities = self.classifier.predict(image)
        return probabilities.clamp_min_(0.5 / STEPS).log_()
