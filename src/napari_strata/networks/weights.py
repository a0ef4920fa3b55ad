"""Initial weights of an encoder: from ImageNet, from a file, or random."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from napari_strata.core.errors import ModelError, TrainingError
from napari_strata.core.events import Message
from napari_strata.core.network_sections import EncoderSection
from napari_strata.core.spec import ModelSpec
from napari_strata.networks.build import encoder_of

PREFIXES = ("module.", "network.", "encoder.", "backbone.", "model.")
"""Prefixes that wrappers put before the names of an encoder's tensors."""

STATE_KEYS = ("state_dict", "model_state_dict", "model", "encoder")
"""Keys under which checkpoints store the dictionary of tensors."""


def load_encoder_weights(
    network: nn.Module, spec: ModelSpec, *, probe_timeout: float = 2.0
) -> Message:
    """Load weights into the encoder as ``spec.network.encoder_weights`` says.

    For images that do not have 3 channels, the first convolution is adapted from the
    one for 3 channels; see `for_channels`.

    Parameters
    ----------
    probe_timeout
        Seconds to wait for the hub if no cache has the weights. At most one request is
        sent in a minute.

    Returns
    -------
    Message
        What was loaded; a warning if ImageNet weights could not be reached.

    Raises
    ------
    TrainingError
        When the recipe demands ImageNet weights and they are not available.
    ModelError
        When the file of weights is missing, is damaged, contains anything but tensors,
        or belongs to another network.
    """
    section = spec.network
    if not isinstance(section, EncoderSection):
        return Message(
            f"{section.describe()} has no pretrained encoder: it starts from "
            "random weights"
        )
    start, choice = f"encoder {section.encoder}:", section.encoder_weights
    if choice == "none":
        return Message(f"{start} starts from random weights, as the recipe says")
    encoder = encoder_of(network)
    if choice not in ("auto", "imagenet"):
        return Message(
            f"{start}"
            f" {fit(encoder, read_tensors(choice), spec.in_channels, source=choice)}"
            f" loaded from {choice}"
        )

    # Imported only here: smp and timm take seconds to import.
    from napari_strata.networks.hub import UnobtainableError

    try:
        origin = _load_pretrained(
            encoder, section.encoder, spec.in_channels, timeout=probe_timeout
        )
        return Message(f"{start} {origin}")
    except UnobtainableError as error:
        if choice == "auto":
            return Message(
                f"{start} starts from random weights (ImageNet weights could not be"
                f" reached: {error}). To start from ImageNet weights, connect this"
                " machine once, or give a file (network.encoder_weights=PATH), and"
                " begin a new run.",
                "warning",
            )
        raise TrainingError(
            f"{start} ImageNet weights could not be reached ({error}), and the recipe "
            "demands them. Connect this "
            "machine once (they are kept in the cache), or give a file: "
            "network.encoder_weights=PATH, or start from "
            "random numbers: network.encoder_weights=none."
        ) from None


def _load_pretrained(
    encoder: nn.Module, name: str, channels: int, *, timeout: float
) -> str:
    from napari_strata.networks.hub import find_pretrained, obtain, timm_state

    source = find_pretrained(name)
    path = obtain(source, timeout=timeout)
    tensors = read_tensors(path)
    if name.startswith("tu-"):
        tensors = timm_state(encoder, path, tensors)
    fitted = fit(encoder, tensors, channels, source=path)
    data = "ImageNet" if source.data == "imagenet" else source.data
    adapted = (
        ""
        if channels == 3
        else f", the first convolution adapted from 3 channels to {channels}"
    )
    return f"{data} weights loaded ({fitted}{adapted})"


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Read tensors by name from a file of safetensors or torch.save, on the CPU.

    Code in pickles is never run.

    Raises
    ------
    ModelError
        When the file is missing, is damaged, has another format, or contains anything
        but tensors and plain values.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise ModelError(
            f"{file}: this file of encoder weights does not exist; check "
            "network.encoder_weights."
        )
    try:
        if file.suffix == ".safetensors":
            content: Any = load_file(file)
        else:
            with warnings.catch_warnings():
                # torch warns of a pickle's protocol before it refuses it.
                warnings.simplefilter("ignore")
                content = torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{file}: cannot be read ({_first_line(error)}); take another copy."
        ) from None
    # For other files, torch.load raises many kinds of errors; some advise to load the
    # file unsafely.
    except Exception:
        raise ModelError(
            f"{file}: is damaged, or a pickle that contains more than tensors and "
            "could run code (it was not run); needed is a .safetensors file, or a file "
            "written by torch.save(encoder.state_dict(), ...)."
        ) from None
    content = _unnest(content)
    tensors = {}
    if isinstance(content, dict):
        for name, value in content.items():
            if isinstance(value, Tensor):
                tensors[str(name)] = value
    if not tensors:
        raise ModelError(
            f"{file}: found {type(content).__name__} without tensors; needed is an "
            "encoder's state_dict."
        )
    return tensors


def _unnest(content: Any) -> Any:
    """Return the dictionary of tensors inside a checkpoint."""
    while isinstance(content, dict):
        keys = [key for key in STATE_KEYS if isinstance(content.get(key), dict)]
        if not keys:
            break
        content = content[keys[0]]
    return content


def fit(
    encoder: nn.Module, tensors: dict[str, Tensor], channels: int, *, source: str | Path
) -> str:
    """Load those `tensors` that `encoder` has, and return a text with their number.

    Prefixes that wrappers add are removed. Other tensors, such as those of a
    classifier, are ignored.

    Raises
    ------
    ModelError
        When `tensors` has fewer than half of the encoder's tensors. The encoder is then
        unchanged.
    """
    own = encoder.state_dict()
    matched = _match(own, tensors, channels)
    # Old files lack these counters, which have no effect.
    names = [name for name in own if not name.endswith("num_batches_tracked")]
    count = sum(name in matched for name in names)
    if 2 * count < len(names):
        unmatched = [name for name in tensors if name not in matched] or list(tensors)
        extra_name = unmatched[0]
        needed = next(name for name in names if name not in matched)
        raise ModelError(
            f"{source}: {count} of the {len(names)} tensors of the encoder found; it "
            f"has {extra_name!r} {tuple(tensors[extra_name].shape)}, needed is "
            f"{needed!r} {tuple(own[needed].shape)}. Give weights of the same encoder, "
            "or set network.encoder to the encoder that they belong to."
        )
    # smp's own versions of this method change the dictionary.
    nn.Module.load_state_dict(encoder, matched, strict=False)
    return f"{count} of {len(names)} tensors"


def _match(
    own: dict[str, Tensor], tensors: dict[str, Tensor], channels: int
) -> dict[str, Tensor]:
    """Return the tensors that fit, adapted, by their names in the encoder."""
    matched: dict[str, Tensor] = {}
    for file_name, tensor in tensors.items():
        for name in _possible_names(file_name):
            if name in own and name not in matched:
                adapted = adapt(tensor, own[name].shape, channels)
                if adapted is not None:
                    matched[name] = adapted
                    break
    return matched


def adapt(tensor: Tensor, shape: torch.Size, channels: int) -> Tensor | None:
    """Return `tensor` if it has `shape`, or adapted if it is a first convolution.

    A first convolution for 1 or 3 channels is adapted to `channels`. None if the tensor
    does not fit.
    """
    if tensor.shape == shape:
        return tensor
    if (
        tensor.ndim != 4
        or tensor.shape[1] not in (1, 3)
        or shape != (tensor.shape[0], channels, *tensor.shape[2:])
    ):
        return None
    return for_channels(tensor, channels)


def for_channels(kernel: Tensor, channels: int) -> Tensor:
    """Turn a convolution's kernel (O, C, h, w) into one for `channels` channels.

    For one channel the kernel is summed over its channels. Otherwise it is repeated and
    scaled, so that the features keep their magnitude.
    """
    old_channels = kernel.shape[1]
    if channels == 1:
        return kernel.sum(1, keepdim=True)
    repeated = kernel[:, [i % old_channels for i in range(channels)]]
    return repeated * (old_channels / channels)


def _possible_names(name: str) -> list[str]:
    """Return `name` with and without its prefixes, and as timm's encoders use it."""
    names = [name]
    while prefix := next((p for p in PREFIXES if names[-1].startswith(p)), None):
        names.append(names[-1].removeprefix(prefix))
    return [*names, f"model.{names[-1]}"]


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
