"""Backends that compute a network: torch, or ONNX Runtime or OpenVINO if installed.

The other two are given the network as an ONNX graph of any height and width, which is
made again for each prediction (some seconds). They come with the extras ``onnx`` and
``openvino``.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor, nn

from napari_strata.core import files
from napari_strata.core.errors import RunError
from napari_strata.core.spec import ModelSpec
from napari_strata.models.device import Precision
from napari_strata.networks.blocks import AnySize, without_weights
from napari_strata.networks.onnx_graph import (
    check_packages,
    without_padding,
    write_onnx_graph,
)

Backend: TypeAlias = Literal["torch", "onnx", "openvino"]
BACKENDS: tuple[str, ...] = get_args(Backend)

Session: TypeAlias = Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]
"""Images float32 (N, C, H, W) to logits float32 (N, K, H, W)."""


class SessionNetwork(nn.Module):
    """A network that another library computes, from and to torch tensors on the CPU.

    Its copy is the torch network that it was made from, without weights: estimates of
    memory are made on such a copy.
    """

    def __init__(self, session: Session, source: nn.Module) -> None:
        super().__init__()
        self.session = session
        # In a tuple, so that torch does not move it to a device as a submodule.
        self._source = (without_weights(source),)

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits (N, K, H, W) of images (N, C, H, W)."""
        array = np.ascontiguousarray(images.float().cpu().numpy())
        return torch.from_numpy(self.session(array))

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
        (source,) = self._source
        return copy.deepcopy(source, memo)


def check_backend(name: str, device: torch.device, precision: str) -> str:
    """Check a backend, and resolve the precision "auto" where it has only one.

    Raises
    ------
    RunError
        when there is no such backend, it is not installed, or it does not know the
        device or precision.
    """
    if name not in BACKENDS:
        raise RunError(
            f"There is no backend {name!r}; choose one of {', '.join(BACKENDS)}."
        )
    if name == "torch":
        return precision
    if device.type != "cpu":
        raise RunError(
            f"found backend {name!r} on {device}; this backend runs only on the CPU: "
            "remove the option, or set device=cpu."
        )
    runtime = "onnxruntime" if name == "onnx" else "openvino"
    check_packages(f"backend {name!r}", runtime, extra=name)
    precisions = ["auto", "fp32"]
    if name == "openvino":
        precisions.append("bf16")
    if precision not in precisions:
        raise RunError(
            f"found precision {precision!r} for backend {name!r}; choose one of "
            f"{', '.join(precisions)}."
        )
    return "fp32" if name == "onnx" else precision


def with_backend(
    name: str, network: nn.Module, spec: ModelSpec, *, precision: Precision
) -> nn.Module:
    """Let backend `name` compute a network; see `check_backend` for what is possible.

    Raises
    ------
    RunError
        when the network cannot be made into an ONNX graph, or there is no space for it.
    """
    if name == "torch":
        return network
    graph, multiples = without_padding(network, spec.axes)
    with tempfile.TemporaryDirectory(prefix="napari-strata-") as folder:
        path = Path(folder) / "network.onnx"
        try:
            write_onnx_graph(
                graph, path, channels=spec.in_channels, multiples=multiples
            )
        except OSError as error:
            raise files.explain(error, path) from error
        if name == "onnx":
            session = onnx_session(path)
        else:
            session = _openvino_session(path, precision)
    return with_session(network, session)


def with_session(network: nn.Module, session: Session) -> nn.Module:
    """Let a session compute a network, with the padding of an `AnySize`."""
    if not isinstance(network, AnySize):
        return SessionNetwork(session, network)
    inner = SessionNetwork(session, network.network)
    return AnySize(inner, network.stride, smallest=network.smallest)


def onnx_session(path: Path) -> Session:
    """Open an ONNX graph with ONNX Runtime, on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(
        str(path), options, providers=["CPUExecutionProvider"]
    )

    def run(images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        (logits,) = session.run(None, {"images": images})
        return np.asarray(logits)

    return run


def _openvino_session(path: Path, precision: Precision) -> Session:
    import openvino

    core = openvino.Core()
    # Without a hint OpenVINO takes bf16 wherever there is hardware for it, and does not
    # say so.
    hint = "bf16" if precision.dtype is torch.bfloat16 else "f32"
    settings = {
        "INFERENCE_PRECISION_HINT": hint,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    compiled = core.compile_model(core.read_model(path), "CPU", settings)
    request = compiled.create_infer_request()

    def run(images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        (logits,) = request.infer({0: images}).values()
        return np.array(logits)

    return run
