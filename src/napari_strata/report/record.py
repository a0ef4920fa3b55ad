"""Facts of a run or an evaluation, read from its small files without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from napari_strata.core.classes import default_colors
from napari_strata.core.errors import RunError
from napari_strata.core.runs import (
    EvaluationFolder,
    ModelHeader,
    RunFolder,
    RunHistory,
    class_colors,
    read_model_header,
)


@dataclass(frozen=True)
class Record:
    """A run, or an evaluation, as far as it can be read; what is missing is empty.

    Parameters
    ----------
    is_run
        False for the folder of an evaluation, which has scores and pictures only.
    recipe_text, recipe
        ``recipe.yaml`` as text and as plain data.
    data
        ``data.json``: sources, split, classes, spec, fingerprint.
    rows
        ``metrics.csv`` of the run, one row for each epoch.
    scores
        ``metrics.json`` of the validation, or of the evaluation.
    overlays
        Folder of the pictures that belong to the scores.
    """

    path: Path
    is_run: bool
    overlays: Path
    scores: dict[str, Any]
    recipe_text: str
    recipe: dict[str, Any]
    data: dict[str, Any]
    history: RunHistory
    rows: list[dict[str, str]]
    header: ModelHeader

    @property
    def classes(self) -> dict[str, str]:
        """Colour (``#rrggbb``) of each class, in their order."""
        if colors := class_colors(self.data):
            return colors
        names = list(self.scores.get("per_class", ()))
        return dict(zip(names, default_colors(len(names)), strict=True))


def read_record(path: str | Path) -> Record:
    """Read a run folder, or a folder that an evaluation wrote.

    Raises
    ------
    RunError
        If it is neither.
    """
    run, evaluation = RunFolder(path), EvaluationFolder(path)
    if not run.exists and not evaluation.exists:
        raise RunError(
            f"{run.path}: found neither a run nor an evaluation, a cross-validation or "
            "a search here; give a folder that train, evaluate, crossval or tune wrote."
        )
    if run.exists:
        evaluation = run.validation
    return Record(
        path=run.path,
        is_run=run.exists,
        overlays=evaluation.overlays,
        scores=_check_scores(evaluation.scores()),
        recipe_text=run.recipe_text(),
        recipe=run.raw_recipe(),
        data=run.data(),
        history=run.history(),
        rows=run.epoch_rows() if run.exists else [],
        header=read_model_header(run.model_path),
    )


def _check_scores(scores: dict[str, Any]) -> dict[str, Any]:
    """Return scores whose table and matrix fit each other; empty for other files."""
    table, counts = scores.get("per_class"), scores.get("confusion")
    if not isinstance(table, dict) or not isinstance(counts, list):
        return {}
    size = len(table)
    if len(counts) != size:
        return {}
    if any(not isinstance(row, list) or len(row) != size for row in counts):
        return {}
    return scores
