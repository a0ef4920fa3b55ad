"""The protocol of everything that predicts, such as a network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from napari_strata.core.spec import ModelSpec
from napari_strata.models.device import Precision


class Predictor(Protocol):
    """Logits of tiles that are cut and scaled already.

    Tiles, halos, ensembles, test-time augmentation, views, estimates, outputs, shards
    and validation use nothing else of a model on its device. `inference.build` builds
    the predictor of a model from the kind that its spec names.
    """

    spec: ModelSpec
    """Classes, channels, normalisation, and the tiles that this predictor takes."""
    device: torch.device
    """Device on which the logits lie."""
    precision: Precision
    """Number format of the arithmetic."""

    def logits(self, batch: np.ndarray[Any, Any]) -> Tensor:
        """Compute the logits of scaled tiles.

        Parameters
        ----------
        batch
            float32 (N, C, H, W), or (N, C, D, H, W) for volumes.

        Returns
        -------
        float32 (N, K, H, W) or (N, K, D, H, W) on `device`, with K classes.

        Raises
        ------
        RuntimeError
            when memory runs out, as torch raises it; fewer tiles are tried then.
        """

    def memory(self, shape: Sequence[int]) -> int:
        """Estimate the bytes that one tile of size (H, W) or (D, H, W) needs at most.

        The tile and its logits count; the weights do not.
        """
