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

PROBE_TIMEOUT = 2.0
"""Seconds to wait for the hub. Its own client tries for 23 s before it gives up."""

PROBE_AGAIN = 60
"""Seconds after which the hub is asked again, so that a worker notices its return."""


class UnobtainableError(Exception):
    """Pretrained weights cannot be had; the message says why."""


@dataclass(frozen=True)
class Pretrained:
    """One file on the hub."""

    encoder: str
    data: str
    """Name of the data that it was trained on."""
    repo: str
    file: str = "model.safetensors"
    revision: str | None = None


def find_pretrained(encoder: str) -> Pretrained:
    """Find the weights known for `encoder`: ImageNet's, or else the first ones.

    Raises
    ------
    UnobtainableError
        When none are known.
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


def obtain(source: Pretrained, *, timeout: float = PROBE_TIMEOUT) -> Path:
    """Return the weights as a local file: from the hub's cache, torch's, or downloaded.

    They are downloaded only if the hub answers within `timeout` seconds.

    Raises
    ------
    UnobtainableError
        When there are none.
    """
    cached = try_to_load_from_cache(
        source.repo,
        source.file,
        revision=source.revision,
        cache_dir=constants.HF_HUB_CACHE,
    )
    if isinstance(cached, str):
        return Path(cached)
    downloaded = _in_torch_hub(source.encoder)
    if downloaded is not None:
        return downloaded
    if constants.HF_HUB_OFFLINE:
        raise UnobtainableError("they are not in the cache, and HF_HUB_OFFLINE is set")
    if reason := probe(
        hf_hub_url(source.repo, source.file, revision=source.revision), timeout
    ):
        raise UnobtainableError(reason)
    try:
        return Path(
            hf_hub_download(
                source.repo, source.file, revision=source.revision, etag_timeout=timeout
            )
        )
    except Exception as error:  # of the hub, its HTTP client or the disk
        raise UnobtainableError(_first_line(error)) from None


def probe(url: str, timeout: float = PROBE_TIMEOUT) -> str:
    """Return why `url` does not answer within `timeout` seconds; empty when it does.

    It is asked at most once a minute.
    """
    return _probe(url, timeout, int(time.monotonic() // PROBE_AGAIN))


@lru_cache(maxsize=64)
def _probe(url: str, timeout: float, minute: int) -> str:
    reasons = [f"no answer within {timeout:g} s"]

    def ask() -> None:
        try:
            get_hf_file_metadata(url, timeout=timeout)
            reasons.append("")
        except Exception as error:  # names, proxies, certificates, statuses
            reasons.append(_first_line(error))

    # In a thread of its own, since looking up a host name heeds no timeout.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(timeout)
    return reasons[-1]


def _in_torch_hub(encoder: str) -> Path | None:
    """Find a file such as resnet34-333f7ec4.pth, which torchvision has downloaded."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    pattern = re.compile(re.escape(encoder) + r"-[0-9a-f]{8}\.pth")
    return next(
        (f for f in sorted(folder.glob("*.pth")) if pattern.fullmatch(f.name)), None
    )


def timm_state(
    encoder: Any, path: Path, tensors: dict[str, Any]
) -> dict[str, torch.Tensor]:
    """Return pretrained weights of a ``tu-`` encoder under the names that `encoder`
    uses.

    timm renames and resizes when it loads, differently for each family, so a second
    encoder is built to do that.
    """
    options = {"pretrained_cfg_overlay": {"state_dict": tensors, "file": str(path)}}
    twin = type(encoder)(
        name=encoder.name, pretrained=True, **_shape_of(encoder), **options
    )
    state: dict[str, torch.Tensor] = twin.state_dict()
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
