"""What computes the network: torch, or ONNX Runtime or OpenVINO where they are installed.

The others are given the network as an ONNX graph of any height and width, made anew for each prediction (some seconds).
They come with the extras ``onnx`` and ``openvino``.
"""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor, nn

from napari_strata.core.errors import RunError
from napari_strata.models.device import Precision
from napari_strata.networks.blocks import AnySize, without_weights

Backend: TypeAlias = Literal["torch", "onnx", "openvino"]
BACKENDS: tuple[str, ...] = get_args(Backend)

Session: TypeAlias = Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]
"""Images float32 (N, C, H, W) to logits float32 (N, K, H, W)."""


class Foreign(nn.Module):
    """A network that another program computes, from and to torch tensors on the CPU.

    A copy of it is the torch network it was made from, without weights: for counting what it needs.
    """

    def __init__(self, session: Session, source: nn.Module) -> None:
        super().__init__()
        self.session = session
        self._source = (
            without_weights(source),
        )  # not as a module: it has nothing to be moved

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) to logits (N, K, H, W)."""
        return torch.from_numpy(
            self.session(np.ascontiguousarray(images.float().cpu().numpy()))
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
        return copy.deepcopy(self._source[0], memo)


def check_backend(name: str, device: torch.device, precision: str) -> str:
    """The precision that `name` computes in, where "auto" was asked for.

    Raises
    ------
    RunError
        when there is no such backend, it is not installed, or it does not know the device or precision.
    """
    if name not in BACKENDS:
        raise RunError(f"found backend {name!r}; choose one of {', '.join(BACKENDS)}.")
    if name == "torch":
        return precision
    if device.type != "cpu":
        raise RunError(
            f"found backend {name!r} on {device}; it computes on the CPU here: leave it out, or device=cpu."
        )
    for module in ("onnxscript", "onnxruntime" if name == "onnx" else "openvino"):
        try:
            import_module(module)
        except ImportError:
            raise RunError(
                f"backend {name!r} needs the package {module}; pip install 'napari-strata[{name}]'."
            ) from None
    known = ("auto", "fp32") if name == "onnx" else ("auto", "fp32", "bf16")
    if precision not in known:
        raise RunError(
            f"found precision {precision!r} for backend {name!r}; choose one of {', '.join(known)}."
        )
    return "fp32" if name == "onnx" else precision


def with_backend(
    name: str, network: nn.Module, *, channels: int, precision: Precision
) -> nn.Module:
    """`network`, computed by backend `name`; see `check_backend` for what is possible.

    Raises
    ------
    RunError
        when the network cannot be made into an ONNX graph.
    """
    if name == "torch":
        return network
    inner, stride = (
        (network.network, network.stride)
        if isinstance(network, AnySize)
        else (network, 1)
    )
    with tempfile.TemporaryDirectory(prefix="napari-strata-") as folder:
        path = Path(folder) / "network.onnx"
        _export(
            inner,
            path,
            channels=channels,
            strides=(stride, stride) if isinstance(stride, int) else stride,
        )
        session = (
            _onnx_session(path)
            if name == "onnx"
            else _openvino_session(path, precision)
        )
    foreign = Foreign(session, inner)
    if not isinstance(network, AnySize):
        return foreign
    return AnySize(foreign, stride, smallest=network.smallest)


def _export(
    network: nn.Module, path: Path, *, channels: int, strides: Sequence[int]
) -> None:
    names = ("planes", "rows", "columns")[-len(strides) :]
    sides = {
        axis: stride * torch.export.Dim(name, min=2, max=1024)
        for axis, (name, stride) in enumerate(zip(names, strides, strict=True), start=2)
    }
    # Of different lengths, so that none is taken for another.
    example = torch.zeros(
        (
            2,
            channels,
            *(
                n * stride
                for n, stride in zip((5, 4, 3)[-len(strides) :], strides, strict=True)
            ),
        )
    )
    shapes = ({0: torch.export.Dim("tiles", min=1, max=4096), **sides},)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter about its own parts
            program = torch.onnx.export(
                network.to(memory_format=torch.contiguous_format),
                (example,),
                dynamo=True,
                dynamic_shapes=shapes,
                input_names=["images"],
                output_names=["logits"],
                verbose=False,
            )
        assert program is not None
        program.save(str(path))
    except Exception as error:  # the exporter's own, many kinds
        text = " ".join(str(error).split())[:160] or type(error).__name__
        raise RunError(
            f"this network cannot be exported to ONNX ({text}); leave the backend out."
        ) from error


def _onnx_session(path: Path) -> Session:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(
        str(path), options, providers=["CPUExecutionProvider"]
    )
    return lambda images: np.asarray(session.run(None, {"images": images})[0])


def _openvino_session(path: Path, precision: Precision) -> Session:
    import openvino

    core = openvino.Core()
    compiled = core.compile_model(
        core.read_model(path),
        "CPU",
        {
            # Without a hint it takes bf16 wherever there is hardware for it, and does not say so.
            "INFERENCE_PRECISION_HINT": "bf16"
            if precision.dtype is torch.bfloat16
            else "f32",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        },
    )
    request = compiled.create_infer_request()

    def answer(images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.array(next(iter(request.infer({0: images}).values())))

    return answer
