"""Networks as ONNX graphs in a file."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from napari_strata.core.errors import RunError
from napari_strata.networks.blocks import AnySize


def check_packages(purpose: str, runtime: str, *, extra: str) -> None:
    """Check that the exporter and a runtime of ONNX graphs are installed.

    Parameters
    ----------
    purpose
        What needs them, for the message.
    runtime
        Package that computes graphs, such as ``onnxruntime``.
    extra
        Our extra that installs both.

    Raises
    ------
    RunError
        When one is missing.
    """
    for name in ("onnxscript", runtime):
        try:
            import_module(name)
        except ImportError:
            raise RunError(
                f"{purpose} needs the package {name}; pip install "
                f"'napari-strata[{extra}]'."
            ) from None


def without_padding(network: nn.Module, axes: str) -> tuple[nn.Module, tuple[int, ...]]:
    """Return what an `AnySize` wraps, and the multiples that its sizes must be.

    Any other network is returned as it is, with multiples of 1.

    Parameters
    ----------
    axes
        ``YX``, or ``ZYX`` for a 3D network.
    """
    if not isinstance(network, AnySize):
        return network, (1,) * len(axes)
    strides = network.stride
    if isinstance(strides, int):
        strides = (strides,) * len(axes)
    return network.network, strides


def write_onnx_graph(
    network: nn.Module,
    path: Path,
    *,
    channels: int,
    multiples: Sequence[int],
    output: str = "logits",
    properties: Mapping[str, str] | None = None,
) -> None:
    """Write a network as an ONNX graph of any batch and size.

    The graph's input is called ``images``: float32 (N, C, H, W), or (N, C, D, H, W).

    Parameters
    ----------
    channels
        C.
    multiples
        Numbers that the sizes along (D,) H, W are multiples of.
    output
        Name of the output.
    properties
        Metadata to write into the file.

    Raises
    ------
    RunError
        When the network cannot be made into an ONNX graph.
    OSError
        When the file cannot be written.
    """
    names = ("planes", "rows", "columns")[-len(multiples) :]
    # Of different lengths, so that none is taken for another.
    lengths = (5, 4, 3)[-len(multiples) :]
    example_shape = [2, channels]
    dynamic_axes: dict[int, Any] = {0: torch.export.Dim("tiles", min=1, max=4096)}
    for axis, (name, length, multiple) in enumerate(
        zip(names, lengths, multiples, strict=True), start=2
    ):
        example_shape.append(length * multiple)
        dynamic_axes[axis] = multiple * torch.export.Dim(name, min=2, max=1024)
    try:
        with warnings.catch_warnings():
            # The exporter warns of its own parts.
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                network.to(memory_format=torch.contiguous_format),
                (torch.zeros(example_shape),),
                dynamo=True,
                dynamic_shapes=(dynamic_axes,),
                input_names=["images"],
                output_names=[output],
                verbose=False,
            )
    except Exception as error:  # the exporter's own, many kinds
        text = " ".join(str(error).split())[:160] or type(error).__name__
        raise RunError(
            f"this network cannot be written as an ONNX graph ({text}); predict with "
            "backend torch."
        ) from error
    assert program is not None
    program.model.metadata_props.update(properties or {})
    program.save(str(path))
