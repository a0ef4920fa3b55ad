"""Trained models in one file: safetensors with a JSON header, never a pickle."""

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
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor, nn

from napari_strata.core import files
from napari_strata.core.drift import DriftReference
from napari_strata.core.errors import ModelError
from napari_strata.core.events import EpochEnd, from_json, to_json
from napari_strata.core.recipe import Recipe
from napari_strata.core.residuals import Residuals
from napari_strata.core.runs import MODEL_FILE
from napari_strata.core.spec import ModelSpec
from napari_strata.networks import build_network

FORMAT = "napari-strata model 1"


def current_versions() -> dict[str, str]:
    """Versions of the libraries that results depend on."""
    versions = {"python": platform.python_version()}
    for name in (
        "napari-strata",
        "torch",
        "segmentation-models-pytorch",
        "numpy",
        "tifffile",
    ):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "unknown"
    return versions


@dataclass(frozen=True)
class Calibration:
    """Temperature that was fitted on validation images; see `training.calibration`.

    Parameters
    ----------
    temperature
        divisor of logits before the softmax (Guo et al. 2017,
        https://arxiv.org/abs/1706.04599).
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
    """A trained predictor and all facts that a prediction needs.

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
    residuals
        errors on blocks of the validation planes; None where nothing validated, and in
        models of earlier versions.
    drift
        appearance of the training images; None in models of earlier versions.
    source
        file that it was read from, or None; by its run, an evaluation knows the images
        that trained.
    """

    spec: ModelSpec
    recipe: Recipe
    weights: dict[str, Tensor]
    history: tuple[EpochEnd, ...] = ()
    fingerprint: str = ""
    calibration: Calibration | None = None
    residuals: Residuals | None = None
    drift: DriftReference | None = None
    versions: dict[str, str] = field(default_factory=current_versions)
    created: str = field(
        default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds")
    )
    source: Path | None = None

    @cached_property
    def digest(self) -> str:
        """Sixteen hexadecimal digits that identify what the model predicts."""
        state = hashlib.sha256(self.spec.model_dump_json().encode())
        if self.calibration is not None:
            state.update(repr(self.temperature).encode())
        for name in sorted(self.weights):
            state.update(name.encode())
            values = self.weights[name].contiguous().reshape(-1)
            state.update(values.view(torch.uint8).numpy().tobytes())
        return state.hexdigest()[:16]

    @property
    def temperature(self) -> float:
        """Divisor of logits before the softmax."""
        return self.calibration.temperature if self.calibration else 1.0

    @property
    def best(self) -> EpochEnd | None:
        """Epoch of these weights: the last one that the history marks as best.

        The last of all where none is marked; None without a history.
        """
        for end in reversed(self.history):
            if end.best_iou:
                return end
        return self.history[-1] if self.history else None

    def build(self, device: torch.device | str = "cpu") -> nn.Module:
        """Build the network with these weights, in evaluation mode, on `device`.

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
        """Write one file; an existing one is replaced whole.

        Raises `RunError` when that cannot be done.
        """
        calibration = asdict(self.calibration) if self.calibration else None
        header = {
            "format": FORMAT,
            "spec": self.spec.model_dump_json(),
            "recipe": self.recipe.model_dump_json(),
            "history": "\n".join(to_json(end) for end in self.history),
            "fingerprint": self.fingerprint,
            "calibration": json.dumps(calibration),
            "residuals": self.residuals.to_text() if self.residuals else "null",
            "drift": self.drift.to_text() if self.drift else "null",
            "versions": json.dumps(self.versions),
            "created": self.created,
        }
        weights = {}
        for name, values in self.weights.items():
            weights[name] = values.detach().cpu().contiguous()
        with files.atomic(path) as temporary:
            # Not save_file: it hides a full disk in an error of its own and makes files
            # that only their owner may read.
            temporary.write_bytes(serialize(weights, metadata=header))
        return Path(path)

    @classmethod
    def load(cls, path: str | Path | Model) -> Model:
        """Read a model file, or the best model of a run folder.

        A `Model` is returned as it is.

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
            raise ModelError(_describe_unreadable(file, error)) from None
        if header.get("format") != FORMAT:
            file_format = header.get("format", "a safetensors file without our header")
            raise ModelError(
                f"{file}: found {file_format!r}; needed is a file written by "
                f"napari-strata ({FORMAT})."
            )
        try:
            return cls(
                spec=ModelSpec.model_validate_json(header["spec"]),
                recipe=Recipe.model_validate_json(header["recipe"]),
                weights=weights,
                history=_parse_history(header["history"]),
                fingerprint=header["fingerprint"],
                calibration=_parse_calibration(header.get("calibration", "null")),
                residuals=Residuals.from_text(header.get("residuals", "null")),
                drift=DriftReference.from_text(header.get("drift", "null")),
                versions=json.loads(header["versions"]),
                created=header["created"],
                source=file,
            )
        except Exception as error:  # the header may be anything
            reason = type(error).__name__
            raise ModelError(
                f"{file}: its header cannot be read ({reason}); take another copy."
            ) from None


def _parse_history(text: str) -> tuple[EpochEnd, ...]:
    """Epochs among the events of a training, one a line."""
    events = [from_json(line) for line in text.splitlines()]
    return tuple(event for event in events if isinstance(event, EpochEnd))


def _parse_calibration(text: str) -> Calibration | None:
    """Parse a calibration; None in models that were written before there was any."""
    values = json.loads(text)
    return None if values is None else Calibration(**values)


def find_model(path: str | Path) -> Path:
    """Find the model file of a run folder; a file is returned as it is."""
    path = Path(path)
    if path.is_dir():
        file = path / MODEL_FILE
        if file.is_file():
            return file
        raise ModelError(
            f"{path}: found no {MODEL_FILE} here; give a run folder whose training got "
            "that far."
        )
    if not path.is_file():
        raise ModelError(
            f"{path}: there is no such model file or run folder; check the path."
        )
    return path


def _describe_unreadable(file: Path, error: Exception) -> str:
    """Say why a file cannot be read as a model, and what to do."""
    with file.open("rb") as source:
        head = source.read(512)
    if head[:2] == b"PK" or head[:1] == bytes([pickle.PROTO[0]]):
        return (
            f"{file}: found a pickle (.pt, .pth), which can run code when opened and "
            f"is never loaded as a model; give the {MODEL_FILE} of a run, or use "
            "network.encoder_weights for encoder weights."
        )
    if len(head) < 8 or head[8:9] != b"{":
        return (
            f"{file}: found something else than a model; give the {MODEL_FILE} of a "
            "run."
        )
    return (
        f"{file}: the model file is damaged or cut short ({error}); take another copy "
        "or train again."
    )
