"""Pretrained encoder weights from caches on this machine, or from the hub."""

from __future__ import annotations

import re
import threading
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import timm
import torch
from huggingface_hub import (
    constants,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)

PROBE_TIMEOUT_S = 2.0
"""Seconds to wait for the hub. Its own client tries for 23 s before it gives up."""

PROBE_INTERVAL_S = 60
"""Seconds between two requests to a hub that did not answer."""


class UnobtainableError(Exception):
    """Pretrained weights are not available; the message gives the reason."""


@dataclass(frozen=True)
class Pretrained:
    """A file of pretrained weights on the hub."""

    encoder: str
    data: str
    """Name of the data that the encoder was trained on."""
    repo: str
    file: str = "model.safetensors"
    revision: str | None = None


def find_pretrained(encoder: str) -> Pretrained:
    """Find the pretrained weights of `encoder`, those of ImageNet if there are any.

    Raises
    ------
    UnobtainableError
        When no pretrained weights are known.
    """
    if encoder.startswith("tu-"):
        card = timm.models.get_pretrained_cfg(encoder.removeprefix("tu-"))
        if card is None or not card.hf_hub_id:
            raise UnobtainableError("timm knows no weights for it")
        return Pretrained(
            encoder,
            "imagenet",
            card.hf_hub_id,
            card.hf_hub_filename or "model.safetensors",
        )
    settings: dict[str, dict[str, str]] = smp.encoders.encoders[encoder][
        "pretrained_settings"
    ]
    data = "imagenet" if "imagenet" in settings else next(iter(settings))
    return Pretrained(
        encoder, data, settings[data]["repo_id"], revision=settings[data]["revision"]
    )


def obtain(source: Pretrained, *, timeout: float = PROBE_TIMEOUT_S) -> Path:
    """Return the path of a local file with the weights; download it if necessary.

    The caches of the hub and of torch are searched first.

    Parameters
    ----------
    timeout
        Seconds within which the hub must answer before a download begins.

    Raises
    ------
    UnobtainableError
        When the file is in no cache and cannot be downloaded.
    """
    cached = try_to_load_from_cache(
        source.repo,
        source.file,
        revision=source.revision,
        cache_dir=constants.HF_HUB_CACHE,
    )
    if isinstance(cached, str):
        return Path(cached)
    torch_file = find_in_torch_cache(source.encoder)
    if torch_file is not None:
        return torch_file
    if constants.HF_HUB_OFFLINE:
        raise UnobtainableError("they are not in the cache, and HF_HUB_OFFLINE is set")
    url = hf_hub_url(source.repo, source.file, revision=source.revision)
    if reason := probe(url, timeout):
        raise UnobtainableError(reason)
    try:
        return Path(
            hf_hub_download(
                source.repo, source.file, revision=source.revision, etag_timeout=timeout
            )
        )
    except Exception as error:  # of the hub, its HTTP client or the disk
        raise UnobtainableError(_first_line(error)) from None


def probe(url: str, timeout: float = PROBE_TIMEOUT_S) -> str:
    """Return why `url` does not answer within `timeout` seconds; "" if it answers.

    Requests are sent at most once a minute; in between, the result is repeated.
    """
    return _probe(url, timeout, int(time.monotonic() // PROBE_INTERVAL_S))


@lru_cache(maxsize=64)
def _probe(url: str, timeout: float, minute: int) -> str:
    reasons = [f"no answer within {timeout:g} s"]

    def request() -> None:
        try:
            get_hf_file_metadata(url, timeout=timeout)
            reasons.append("")
        except Exception as error:  # host names, proxies, certificates, HTTP statuses
            reasons.append(_first_line(error))

    # In a separate thread, because the look-up of a host name has no timeout.
    thread = threading.Thread(target=request, daemon=True)
    thread.start()
    thread.join(timeout)
    return reasons[-1]


def find_in_torch_cache(encoder: str) -> Path | None:
    """Find a file such as resnet34-333f7ec4.pth, which torchvision has downloaded."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    pattern = re.compile(re.escape(encoder) + r"-[0-9a-f]{8}\.pth")
    return next(
        (f for f in sorted(folder.glob("*.pth")) if pattern.fullmatch(f.name)), None
    )


def timm_state(
    encoder: Any, path: Path, tensors: dict[str, Any]
) -> dict[str, torch.Tensor]:
    """Return pretrained weights of a ``tu-`` encoder with the names in `encoder`.

    timm renames and resizes tensors when it loads them, differently for each family of
    encoders. Therefore a second encoder is built, which loads them.
    """
    options = {"pretrained_cfg_overlay": {"state_dict": tensors, "file": str(path)}}
    loaded_encoder = type(encoder)(
        name=encoder.name, pretrained=True, **_shape_of(encoder), **options
    )
    state: dict[str, torch.Tensor] = loaded_encoder.state_dict()
    return state


def _shape_of(encoder: Any) -> dict[str, Any]:
    if isinstance(encoder, smp.encoders.TimmViTEncoder):
        indices = list(encoder._output_indices)
        channels = encoder.model.patch_embed.proj.in_channels
        return {
            "in_channels": channels,
            "depth": len(indices),
            "output_indices": indices,
        }
    return {
        "in_channels": encoder._in_channels,
        "depth": encoder._depth,
        "output_stride": encoder._output_stride,
    }


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
