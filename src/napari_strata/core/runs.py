"""RunFolder: everything a training leaves behind, in files that people and programs can read.

``recipe.yaml`` intent, ``data.json`` sources, split, classes and fingerprint, ``events.jsonl`` what happened (only ever
appended to; the curves are read from it), ``metrics.csv`` one row an epoch, ``last.pt`` the state to go on from,
``best_iou.safetensors``, ``best_loss.safetensors``, ``model.safetensors`` the model, ``previews/``; ``validation/``,
scores, calibration and pictures of the best model once the training is complete; ``report.html`` when it was asked for;
and ``layers/``, what a viewer trained on that was in no file.
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

from napari_strata.core import files
from napari_strata.core.errors import RunError
from napari_strata.core.events import Event, from_json, to_json
from napari_strata.core.recipe import Recipe
from napari_strata.core.recipes import dump_recipe, load_recipe


class RunFolder:
    """A run on disk. Use `create` or `open`; neither ever deletes or overwrites a run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: str | Path, recipe: Recipe) -> RunFolder:
        """A new run. Raises `RunError` when the folder exists and is not empty, or cannot be made."""
        place = Path(path)
        check_free(place)
        try:
            (place / "previews").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise files.explain(error, place) from error
        run = cls(place)
        run.save_recipe(recipe)
        return run

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """An existing run. Raises `RunError` when there is none."""
        place = Path(path)
        if not (place / "recipe.yaml").is_file():
            raise RunError(
                f"{place}: found no run here (no recipe.yaml); check the path, or train without --resume."
            )
        return cls(place)

    @property
    def previews(self) -> Path:
        return self.path / "previews"

    @property
    def model_path(self) -> Path:
        return self.path / "model.safetensors"

    @property
    def recipe(self) -> Recipe:
        return load_recipe(self.path / "recipe.yaml")

    def save_recipe(self, recipe: Recipe) -> None:
        files.write_text(self.path / "recipe.yaml", dump_recipe(recipe))

    def append_event(self, event: Event) -> None:
        """One more line in ``events.jsonl``."""
        try:
            with open(self.path / "events.jsonl", "a", encoding="utf-8") as file:
                file.write(to_json(event) + "\n")
        except OSError as error:
            raise files.explain(error, self.path / "events.jsonl") from error

    def events(self) -> list[Event]:
        """All events so far; a last line cut off by a kill is left out."""
        file = self.path / "events.jsonl"
        lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
        found = []
        for line in lines:
            try:
                found.append(from_json(line))
            except (json.JSONDecodeError, KeyError):
                continue
        return found

    def write_json(self, name: str, data: Any) -> None:
        files.write_text(self.path / name, json.dumps(data, indent=2) + "\n")

    def read_json(self, name: str) -> Any:
        try:
            return json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError) as error:
            raise RunError(
                f"{self.path / name}: cannot be read ({error}); the run is damaged."
            ) from None

    def save_checkpoint(self, name: str, state: dict[str, Any]) -> None:
        """Write training state of plain types and tensors under `name` (such as ``last.pt``), whole or not at all."""
        import torch

        # Through an open file: given a path, torch hides a full disk in a RuntimeError.
        with files.atomic(self.path / name) as temporary, open(temporary, "wb") as file:
            torch.save(state, file)

    def load_checkpoint(self, name: str) -> dict[str, Any]:
        """Read what `save_checkpoint` wrote. Raises `RunError` when it is missing or damaged."""
        import torch

        file = self.path / name
        try:
            state: dict[str, Any] = torch.load(
                file, map_location="cpu", weights_only=True
            )
        except FileNotFoundError:
            raise RunError(
                f"{self.path}: found no {name} to go on from; start a new run."
            ) from None
        except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
            reason = str(error).splitlines()[0]
            raise RunError(
                f"{file}: the checkpoint is damaged ({reason}); start a new run."
            ) from None
        return state


def check_free(path: str | Path) -> None:
    """Raise `RunError` when `path` exists and holds anything but what a viewer has put into `files.LAYERS`."""
    place = Path(path)
    if place.is_file():
        raise RunError(
            f"{place}: found a file where a run folder is to be made; choose another --out."
        )
    if place.is_dir() and any(one.name != files.LAYERS for one in place.iterdir()):
        raise RunError(
            f"{place}: this run folder exists already; choose another one, or go on with it (resume, or extend it by "
            "some epochs)."
        )
