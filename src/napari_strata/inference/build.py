"""How to predict, and the networks on the device that will."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import torch

from napari_strata.core.errors import RunError
from napari_strata.core.events import Message
from napari_strata.core.image import Image
from napari_strata.inference.backends import check_backend, with_backend
from napari_strata.inference.ensemble_predictor import Committee
from napari_strata.models.device import choose_device, choose_precision
from napari_strata.models.ensemble import Ensemble
from napari_strata.models.model import Model
from napari_strata.models.network_predictor import Predictor
from napari_strata.networks.folding import fold_batch_norms


@dataclass(frozen=True)
class PredictOptions:
    """How to predict; what to predict is in the model.

    Parameters
    ----------
    device
        "auto", "cpu", "cuda", "cuda:1", "mps".
    probabilities
        give the probability of every class too: float16, the classes as channels.
    overwrite
        replace an existing output.
    batch
        tiles at a time; as many as make a modest batch when None.
    precision
        "auto", "fp32", "bf16", "fp16".
    tile
        side of the tiles in pixels, where the model's own do not fit into memory.
    tta
        average over the eight flips and quarter turns of each plane (8 times the work); see `Committee`.
    ortho
        average over the XY, XZ and YZ planes of a volume, with a 2D model (3 times the work); see `views`.
    backend
        "torch", or "onnx" or "openvino" (CPU, with the extras of these names); see `backends`.
    compile
        let torch.compile make kernels for this network first: tens of seconds that pay for large stacks on a GPU.
    """

    device: str = "auto"
    probabilities: bool = False
    overwrite: bool = False
    batch: int | None = None
    precision: str = "auto"
    tile: int | None = None
    tta: bool = False
    ortho: bool = False
    backend: str = "torch"
    compile: bool = False

    def __post_init__(self) -> None:
        for name in ("batch", "tile"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RunError(
                    f"found {name}={value}; needed is 1 or more, or nothing to have it chosen."
                )
        if self.compile and self.backend != "torch":
            raise RunError(
                f"found backend {self.backend!r} with compile; torch.compile is for backend torch only."
            )


def build_predictor(model: Model, options: PredictOptions) -> Predictor:
    """The model's network on the device that `options` ask for."""
    device = choose_device(options.device)
    spec = model.spec
    if options.tile:
        spec = spec.model_copy(
            update={"tile": -(-options.tile // spec.stride) * spec.stride}
        )
    precision = choose_precision(
        check_backend(options.backend, device, options.precision), device
    )
    network, temperature = model.build(device), model.temperature
    # Two strides along each axis, as small as every network of ours takes.
    network = fold_batch_norms(
        network, channels=spec.in_channels, side=tuple(2 * n for n in spec.stride_shape)
    )
    network = torch.compile(network) if options.compile else network  # type: ignore[assignment]
    network = with_backend(
        options.backend, network, channels=spec.in_channels, precision=precision
    )
    return Predictor(
        network,
        spec,
        device=device,
        precision=precision,
        batch=options.batch,
        temperature=temperature,
    )


def build_committee(models: Ensemble, options: PredictOptions) -> Committee:
    """The networks of all members on the device that `options` ask for."""
    members = [build_predictor(model, options) for model in models.ordered]
    return Committee(members, tta=options.tta, ortho=options.ortho)


def compiled(committee: Committee, image: Image) -> Iterator[Message]:
    """Make the kernels of networks that are to be compiled, for the tiles of an image; says how long that took.

    Raises
    ------
    RunError
        when there is no compiler here, or it cannot compile a network.
    """
    pictures = [
        shape for shape, _ in committee.pictures(committee.slabs(image)[0], image)
    ]
    for member in committee.members:
        if not hasattr(member.network, "_orig_mod"):
            continue
        tiles = [tile for shape in pictures for tile in member.tile_shapes(shape)]
        begun, tile = perf_counter(), max(tiles, key=math.prod)
        try:
            member.answer(np.zeros((1, member.spec.in_channels, *tile), np.float32))
        except Exception as error:  # the compiler's own, many kinds
            text = " ".join(str(error).split())[:160] or type(error).__name__
            raise RunError(
                f"torch.compile failed here ({text}); leave compile out."
            ) from error
        yield Message(
            f"torch.compile took {perf_counter() - begun:.0f} s before the first tile"
        )
