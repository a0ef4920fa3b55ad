"""Checks of GPU, CPU and pretrained weights. torch is imported by name, when needed."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from napari_strata.core.network_sections import EncoderSection
from napari_strata.core.recipes import list_recipes
from napari_strata.doctor.check import Check, last_line


def gpu() -> Check:
    """Check the GPUs; report why none is used."""
    try:
        torch = import_module("torch")
    except (ImportError, OSError) as error:
        cure = (
            "Install torch and torchvision again, both of one build: see "
            "https://pytorch.org/get-started/locally."
        )
        return Check(
            "GPU", "problem", f"torch cannot be loaded: {last_line(str(error))}", cure
        )
    build = f"torch {torch.__version__}"
    if torch.cuda.is_available():
        cards = [
            torch.cuda.get_device_properties(i)
            for i in range(torch.cuda.device_count())
        ]
        names = ", ".join(
            f"{card.name} ({card.total_memory / 1e9:.0f} GB)" for card in cards
        )
        text = f"{names}; {build}, CUDA {torch.version.cuda or torch.version.hip}"
        return _try_gpus(text, [f"cuda:{number}" for number in range(len(cards))])
    if torch.backends.mps.is_available():
        return Check("GPU", "ok", f"Apple Metal; {build}")
    return _no_gpu(
        f"none is used: {build}", torch.version.cuda or torch.version.hip or ""
    )


def _try_gpus(text: str, names: list[str]) -> Check:
    """Check that GPUs compute: a driver also lists those that torch cannot use."""
    device = import_module("napari_strata.models.device")
    faults = [
        f"{name}: {fault}" for name in names if (fault := device.device_fault(name))
    ]
    if not faults:
        return Check("GPU", "ok", text)
    cure = (
        "Install a torch that has kernels for this GPU (for older ones a build for an "
        "older CUDA): see https://pytorch.org/get-started/locally. Until then the "
        "CPU computes."
    )
    return Check(
        "GPU", "problem", f"{text}; does not compute: {'; '.join(faults)}", cure
    )


def _no_gpu(text: str, cuda: str) -> Check:
    """Report why torch sees no GPU.

    Parameters
    ----------
    cuda
        Version that torch was built for; empty for its CPU build.
    """
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    cards, complaint = _nvidia()
    if cuda and hidden is not None and hidden.strip() in ("", "-1"):
        cure = "Unset CUDA_VISIBLE_DEVICES, or set it to 0."
        return Check(
            "GPU",
            "problem" if cards else "note",
            f"{text}, and CUDA_VISIBLE_DEVICES={hidden!r} hides every GPU",
            cure,
        )
    if cards and not cuda:
        cure = (
            "Install torch and torchvision with CUDA: see "
            "https://pytorch.org/get-started/locally."
        )
        return Check(
            "GPU",
            "problem",
            f"{text} is a CPU build, but this machine has {cards}",
            cure,
        )
    if cards:
        cure = (
            "Update the NVIDIA driver, or install a torch that was built for an older "
            "CUDA."
        )
        return Check(
            "GPU",
            "problem",
            f"{text} (CUDA {cuda}) cannot use {cards}: {_refusal()}",
            cure,
        )
    if complaint:
        cure = (
            "Restart the computer; if that does not help, install the NVIDIA driver "
            "again."
        )
        return Check(
            "GPU", "problem", f"{text}, and nvidia-smi says: {complaint}", cure
        )
    built = f"built for CUDA {cuda}" if cuda else "a CPU build"
    cure = (
        "Nothing, if this machine has no NVIDIA GPU: the CPU works, only slower. Else "
        "install NVIDIA's driver."
    )
    return Check(
        "GPU",
        "note",
        f"{text}, {built}, and no NVIDIA driver (nvidia-smi is not there)",
        cure,
    )


def _nvidia() -> tuple[str, str]:
    """Return the GPUs and the complaint of NVIDIA's driver; both empty without it."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return "", ""
    command = [program, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=20, check=False
    )
    if done.returncode:
        return "", last_line(done.stdout + done.stderr)
    return "; ".join(
        f"{line} (driver)" for line in done.stdout.strip().splitlines()
    ), ""


def _refusal() -> str:
    try:
        import_module("torch").cuda.init()
    except Exception as error:  # CUDA raises several types
        return last_line(str(error))
    return "no reason given"


def cpu() -> Check:
    """Check instruction set, threads and number format of the CPU."""
    torch, device = import_module("torch"), import_module("napari_strata.models.device")
    level = torch.backends.cpu.get_cpu_capability()
    bf16 = device.choose_precision("auto", torch.device("cpu")).name == "bf16"
    precision = "bf16, in hardware" if bf16 else "float32 (no bf16 in hardware)"
    return Check(
        "CPU",
        "ok",
        f"{_cpu_name()}, {level}, {torch.get_num_threads()} threads, computes in "
        f"{precision}",
    )


def _cpu_name() -> str:
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return (
            next(line for line in lines if line.startswith("model name"))
            .partition(":")[2]
            .strip()
        )
    return platform.processor() or platform.machine()


def weights() -> Check:
    """Check that encoders can start from ImageNet; nothing is downloaded."""
    hub = import_module("napari_strata.networks.hub")
    networks = [recipe.network for recipe in list_recipes()]
    encoders = sorted(
        {
            n.encoder
            for n in networks
            if isinstance(n, EncoderSection) and n.encoder_weights != "none"
        }
    )
    sources = {name: hub.find_pretrained(name) for name in encoders}
    absent = [name for name, source in sources.items() if not _is_at_hand(hub, source)]
    if not absent:
        return Check("Pretrained weights", "ok", f"on this disk: {', '.join(encoders)}")
    first = sources[absent[0]]
    reason = "HF_HUB_OFFLINE is set"
    if not hub.constants.HF_HUB_OFFLINE:
        reason = hub.probe(
            hub.hf_hub_url(first.repo, first.file, revision=first.revision)
        )
    if not reason:
        return Check(
            "Pretrained weights",
            "ok",
            f"downloaded when first needed: {', '.join(absent)}",
        )
    return Check(
        "Pretrained weights",
        "note",
        f"{', '.join(absent)} cannot be reached ({reason}); such networks start from "
        "random numbers",
        "Connect this machine once (they are kept), or give a file: "
        "network.encoder_weights=PATH. The recipe unet-ct needs none.",
    )


def _is_at_hand(hub: Any, source: Any) -> bool:
    cached = hub.try_to_load_from_cache(
        source.repo,
        source.file,
        revision=source.revision,
        cache_dir=hub.constants.HF_HUB_CACHE,
    )
    return (
        isinstance(cached, str) or hub.find_in_torch_cache(source.encoder) is not None
    )
