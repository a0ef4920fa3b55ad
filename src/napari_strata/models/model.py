"""Model: what a person keeps and shares. One safetensors file with a JSON header; no pickle, ever."""

from __future__ import annotations

import hashlib
import json
import math
import pickle
import platform
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor, nn

from napari_strata.core import files
from napari_strata.core.errors import ModelError
from napari_strata.core.events import EpochEnd, from_json, to_json
from napari_strata.core.recipe import Recipe
from napari_strata.core.runs import MODEL_FILE
from napari_strata.core.spec import ModelSpec
from napari_strata.networks import build_network

FORMAT = "napari-strata model 1"


def current_versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    found = {"python": platform.python_version()}
    for name in (
        "napari-strata",
        "torch",
        "segmentation-models-pytorch",
        "numpy",
        "tifffile",
    ):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found


@dataclass(frozen=True)
class Calibration:
    """How probabilities were made honest on the validation images; see `training.final`.

    Parameters
    ----------
    temperature
        what logits are divided by before the softmax (Guo et al. 2017, https://arxiv.org/abs/1706.04599).
    ece_before, ece_after
        expected calibration error, 0..1, with temperature 1 and with this one.
    pixels
        labelled validation pixels that it was fitted on.
    """

    temperature: float = 1.0
    ece_before: float = math.nan
    ece_after: float = math.nan
    pixels: int = 0


@dataclass(frozen=True, eq=False)
class Model:
    """A trained network and everything prediction needs to know.

    Parameters
    ----------
    spec, recipe
        the facts and the intent.
    weights
        tensors by name, on the CPU.
    history
        one `EpochEnd` per epoch trained.
    fingerprint
        digest of the training data.
    calibration
        None where nothing validated, or the training was stopped before its end.
    """

    spec: ModelSpec
    recipe: Recipe
    weights: dict[str, Tensor]
    history: tuple[EpochEnd, ...] = ()
    fingerprint: str = ""
    calibration: Calibration | None = None
    versions: dict[str, str] = field(default_factory=current_versions)
    created: str = field(
        default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds")
    )

    @cached_property
    def digest(self) -> str:
        """Sixteen hexadecimal digits that differ for models that can predict differently."""
        state = hashlib.sha256(self.spec.model_dump_json().encode())
        if self.calibration is not None:
            state.update(repr(self.temperature).encode())
        for name in sorted(self.weights):
            state.update(name.encode())
            state.update(
                self.weights[name]
                .contiguous()
                .reshape(-1)
                .view(torch.uint8)
                .numpy()
                .tobytes()
            )
        return state.hexdigest()[:16]

    @property
    def temperature(self) -> float:
        """What logits are divided by before the softmax."""
        return self.calibration.temperature if self.calibration else 1.0

    @property
    def best(self) -> EpochEnd | None:
        """The epoch whose weights these are, as far as the history tells: the last one marked best."""
        return next(
            (e for e in reversed(self.history) if e.best_iou),
            self.history[-1] if self.history else None,
        )

    def build(self, device: torch.device | str = "cpu") -> nn.Module:
        """The network with these weights, in evaluation mode, on `device`.

        Raises
        ------
        ModelError
            when the weights do not fit the network that the spec describes.
        """
        network = build_network(self.spec)
        try:
            network.load_state_dict(self.weights)
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            raise ModelError(
                f"the model's weights do not fit its network: {reason}"
            ) from None
        return network.to(device).eval()

    def save(self, path: str | Path) -> Path:
        """Write one file. Raises `RunError` when that cannot be done; an existing file is replaced whole."""
        header = {
            "format": FORMAT,
            "spec": self.spec.model_dump_json(),
            "recipe": self.recipe.model_dump_json(),
            "history": "\n".join(to_json(e) for e in self.history),
            "fingerprint": self.fingerprint,
            "calibration": json.dumps(
                asdict(self.calibration) if self.calibration else None
            ),
            "versions": json.dumps(self.versions),
            "created": self.created,
        }
        weights = {k: v.detach().cpu().contiguous() for k, v in self.weights.items()}
        with files.atomic(path) as temporary:
            # Not save_file: it hides a full disk in an error of its own and makes files that only their owner reads.
            temporary.write_bytes(serialize(weights, metadata=header))
        return Path(path)

    @classmethod
    def load(cls, path: str | Path | Model) -> Model:
        """Read a model file, or the best model of a run folder. A `Model` is returned as it is.

        Raises
        ------
        ModelError
            when there is none, or it is damaged, or not one of ours.
        """
        if isinstance(path, Model):
            return path
        file = find_model(path)
        try:
            with safe_open(file, framework="pt") as source:
                header = source.metadata() or {}
                weights = {name: source.get_tensor(name) for name in source.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ModelError(_why_unreadable(file, error)) from None
        if header.get("format") != FORMAT:
            found = header.get("format", "a safetensors file without our header")
            raise ModelError(
                f"{file}: found {found!r}; needed is a file written by napari-strata ({FORMAT})."
            )
        try:
            return cls(
                spec=ModelSpec.model_validate_json(header["spec"]),
                recipe=Recipe.model_validate_json(header["recipe"]),
                weights=weights,
                history=tuple(
                    e
                    for e in map(from_json, header["history"].splitlines())
                    if isinstance(e, EpochEnd)
                ),
                fingerprint=header["fingerprint"],
                calibration=_calibration(header.get("calibration", "null")),
                versions=json.loads(header["versions"]),
                created=header["created"],
            )
        except (KeyError, TypeError, ValueError, ValidationError) as error:
            reason = type(error).__name__
            raise ModelError(
                f"{file}: its header cannot be read ({reason}); take another copy."
            ) from None


def _calibration(text: str) -> Calibration | None:
    """None in models that were written before there was any."""
    found = json.loads(text)
    return None if found is None else Calibration(**found)


def find_model(path: str | Path) -> Path:
    """The model file that `path` (a file or a run folder) stands for."""
    place = Path(path)
    if place.is_dir():
        inside = place / MODEL_FILE
        if inside.is_file():
            return inside
        raise ModelError(
            f"{place}: found no {MODEL_FILE} here; give a run folder whose training got that far."
        )
    if not place.is_file():
        raise ModelError(
            f"{place}: there is no such model file or run folder; check the path."
        )
    return place


def _why_unreadable(file: Path, error: Exception) -> str:
    head = file.read_bytes()[:512]
    if head[:2] == b"PK" or head[:1] == bytes([pickle.PROTO[0]]):
        return (
            f"{file}: found a pickle (.pt, .pth), which can run code when opened and is never loaded as a model; "
            f"give the {MODEL_FILE} of a run, or use network.encoder_weights for encoder weights."
        )
    if len(head) < 8 or head[8:9] != b"{":
        return f"{file}: found something else than a model; give the {MODEL_FILE} of a run."
    return f"{file}: the model file is damaged or cut short ({error}); take another copy or train again."
