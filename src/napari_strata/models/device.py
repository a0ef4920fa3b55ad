"""Device and number format that compute; probed, never assumed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from typing import Any

import psutil
import torch

from napari_strata.core.errors import TrainingError
from napari_strata.models.memory import is_out_of_memory


@dataclass(frozen=True)
class Precision:
    """Number format of a network's arithmetic; `dtype` None means plain float32."""

    name: str
    dtype: torch.dtype | None = None

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        """Context in which a forward pass runs in this format."""
        return torch.autocast(
            device.type,
            dtype=self.dtype or torch.float32,
            enabled=self.dtype is not None,
        )

    def scaler(self, device: torch.device) -> torch.amp.GradScaler:
        """Loss scaler for fp16, where small gradients would vanish.

        For other formats it changes nothing.
        """
        return torch.amp.GradScaler(device.type, enabled=self.dtype is torch.float16)


def choose_device(name: str = "auto") -> torch.device:
    """Choose a device by name; "auto" takes the first that works.

    These are the CUDA GPUs in their order, Apple's GPU and the CPU.

    Raises
    ------
    TrainingError
        when the device does not exist here or does not work, naming those that do.
    """
    if name == "auto":
        return torch.device(next(_iter_usable()))
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    names = _existing_devices()
    exists = device is not None and (
        str(device) in names or (device.type in names and device.index == 0)
    )
    if device is None or not exists:
        raise TrainingError(
            f"found no device {name!r} here; choose one of: auto, "
            f"{', '.join(available_devices())}."
        )
    if fault := device_fault(str(device)):
        raise TrainingError(
            f"found that device {name!r} does not work with this torch ({fault}); "
            f"choose one of: auto, {', '.join(available_devices())}."
        )
    return device


def available_devices() -> list[str]:
    """Names of the devices that work on this machine, the fastest first."""
    return list(_iter_usable())


def describe_unused_gpus(name: str) -> list[str]:
    """Say why "auto" does not use GPUs that are there; nothing for other names."""
    if name != "auto":
        return []
    sentences = []
    for gpu in _existing_devices():
        if gpu in ("cuda", "cpu"):  # "cuda" is one of the others
            continue
        fault = device_fault(gpu)
        if not fault:
            break
        sentences.append(
            f"{gpu} is not used, because it does not work with this torch ({fault}); "
            "napari-strata doctor says what to do."
        )
    return sentences


@cache
def device_fault(name: str) -> str:
    """Say why a device cannot compute; empty when it can.

    One small convolution is computed, because a driver also lists GPUs for which this
    torch has no kernels.
    """
    device = torch.device(name)
    if device.type == "cpu":
        return ""
    try:
        image = torch.ones(1, 1, 4, 4, device=device)
        torch.nn.functional.conv2d(image, image[..., :3, :3]).sum().item()
    except Exception as error:  # CUDA raises several types
        if is_out_of_memory(error):
            return ""  # it works as soon as other programs leave it some
        lines = str(error).strip().splitlines()
        return lines[0] if lines else type(error).__name__
    return ""


def _iter_usable() -> Iterator[str]:
    """Yield devices that work, the fastest first; each is tried when it is needed."""
    for name in _existing_devices():
        if not device_fault(name):
            yield name


def _existing_devices() -> list[str]:
    """Names of the devices that torch sees, the fastest first."""
    names = []
    if torch.cuda.is_available() and torch.cuda.device_count():
        names.append("cuda")
        names += [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        names.append("mps")
    return [*names, "cpu"]


def describe_device(device: torch.device) -> str:
    """Describe a device, as ``GPU: NVIDIA H200, 140 GB`` or ``CPU, 2 cores``."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"GPU: {properties.name}, {properties.total_memory / 1e9:.0f} GB"
    if device.type == "mps":
        return "GPU: Apple Metal"
    return f"CPU, {cores()} cores"


def cores() -> int:
    """Number of the computer's cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_order(ndim: int, device: torch.device) -> torch.memory_format:
    """Memory order in which convolutions are fastest: channels last.

    On Apple's GPU it is the ordinary order: the backward pass of batch normalisation
    crashed or gave wrong gradients with channels last in torch of 2026
    (https://github.com/pytorch/pytorch/issues/175189, pull requests 181411 and 188371).

    Parameters
    ----------
    ndim
        dimensions of the tensors: 4 for 2D, 5 for 3D.
    """
    if device.type == "mps":
        return torch.contiguous_format
    return torch.channels_last_3d if ndim == 5 else torch.channels_last


def free_memory(device: torch.device) -> int | None:
    """Return the bytes that are free on a device; None if that is not known.

    What torch keeps for later tensors counts as free.
    """
    if device.type == "cuda":
        free = int(torch.cuda.mem_get_info(device)[0])
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + kept
    return int(psutil.virtual_memory().available)


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has computed everything that it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def choose_precision(name: str, device: torch.device) -> Precision:
    """Choose a number format by name.

    "auto" takes bf16 where the device is fast at it, float32 elsewhere.

    Raises
    ------
    TrainingError
        when there is no such format, or the device cannot compute in it.
    """
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": None}
    if name == "auto":
        name = "bf16" if _fast_bf16(device) else "fp32"
    if name not in dtypes:
        known = ", ".join(dtypes)
        raise TrainingError(f"there is no precision {name!r}; choose auto, {known}.")
    if name == "fp16" and device.type == "cpu":
        raise TrainingError(
            "found precision fp16 on a CPU, which is slow at it; choose bf16, fp32 or "
            "auto."
        )
    # Older GPUs emulate bf16, many times as slowly as they compute in float32.
    if name == "bf16" and device.type == "cuda" and not _fast_bf16(device):
        raise TrainingError(
            "found precision bf16 on a GPU without it; choose fp16, fp32 or auto."
        )
    return Precision(name, dtypes[name])


@cache
def _fast_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    if device.type == "cpu":
        # True only with AVX512-BF16 or AMX (or Arm's equivalent): without them bf16 is
        # emulated and slower.
        is_supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
        if is_supported is None or not is_supported():
            return False
        flags = _cpu_flags().split()
        return any(flag in flags for flag in ("avx512_bf16", "amx_bf16", "bf16"))
    return False


def _cpu_flags() -> str:
    """Line of the processor's features; empty where it cannot be read."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith(("flags", "Features")):
                    return line
    except OSError:
        pass
    return ""
