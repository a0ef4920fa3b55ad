"""The page of a search: what was tried, what came of it, and the recipe that was best."""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from napari_strata.core.errors import StrataError
from napari_strata.core.recipe import Recipe, differences
from napari_strata.core.recipes import dump_recipe
from napari_strata.core.runs import RunFolder, SearchFolder
from napari_strata.report import figures, html
from napari_strata.report.record import read_record
from napari_strata.studies.trials import Score, Trial, TuneResult

RETRAINED = (
    "name",
    "description",
    "training.validation",
    "training.early_stopping",
    "training.epochs",
)
"""What may differ between the best recipe and the one that was trained on all data."""


@dataclass(frozen=True)
class Cell:
    """What a cell of the table shows, and what it is sorted by: a number, or text; empty when it is not known."""

    text: str
    value: str
    words: bool = False

    @classmethod
    def number(cls, value: float, text: str = "") -> Cell:
        """A number, shown as `text` or with three digits."""
        if math.isnan(value):
            return cls(figures.NONE, "")
        return cls(text or figures.number(value), f"{value:.6g}")


def render(folder: Path) -> str:
    """The page as text.

    Raises
    ------
    RunError
        when ``trials.json`` is damaged.
    """
    search = SearchFolder(folder)
    raw = search.read()
    result = TuneResult.parse(raw, folder)
    keys = list(dict.fromkeys(key for trial in result.trials for key in trial.values))
    best = next(
        (
            trial
            for trial in result.trials
            if not math.isnan(_score(result, trial).mean_iou)
        ),
        None,
    )
    model = best is not None and _is_model_of(search.final, best.recipe)
    folds, place = len(result.splits), folder.resolve()
    context = {
        "name": place.name,
        "summary": _summary(result, best),
        "missing": _missing(result),
        "judged": f"cross-validated in {folds} folds"
        if folds > 1
        else "scored on one part held back",
        "heads": [
            "Rank",
            *_short(keys),
            "mean IoU",
            *result.class_names,
            "Epochs",
            "Time",
            "State",
        ],
        "rows": [
            _row(result, rank, trial, keys)
            for rank, trial in enumerate(result.trials, 1)
        ],
        "best": _after(folder, best, model=model)
        if best and result.is_finished
        else "",
        "predict": shlex.join(
            [
                "napari-strata",
                "predict",
                str(place / "final"),
                "IMAGE",
                "--out",
                "LABELS.tif",
            ]
        )
        if model
        else "",
        "splits": result.splits,
        "facts": _facts(folder, raw),
        "recipe_text": dump_recipe(best.recipe) if best else "",
    }
    return html.render("search.html", **context)


def _score(result: TuneResult, trial: Trial) -> Score:
    return result.latest(trial)[1] or Score()


def _row(result: TuneResult, rank: int, trial: Trial, keys: list[str]) -> list[Cell]:
    epochs, score = result.latest(trial)[0], _score(result, trial)
    values = [str(trial.values.get(key, "")) for key in keys]
    each = score.class_iou or (math.nan,) * len(result.class_names)
    stage = result.stage(trial)
    state = (
        result.state(trial) if stage == "failed" else stage
    )  # how far it came stands in a column of its own
    return [
        Cell.number(rank, str(rank)),
        *(Cell(text, text) for text in values),
        Cell.number(
            score.mean_iou, figures.mean_std(score.mean_iou, score.mean_iou_std)
        ),
        *map(Cell.number, each),
        Cell.number(epochs, str(epochs)),
        Cell.number(score.seconds, figures.duration(score.seconds)),
        Cell(state, state, words=True),
    ]


def _summary(result: TuneResult, best: Trial | None) -> list[str]:
    count = len(result.trials)
    tried = sum(bool(result.scores.get(trial.name)) for trial in result.trials)
    out = [
        f"{tried} of {count} combinations of settings {'was' if tried == 1 else 'were'} tried."
    ]
    if best is not None:
        score = _score(result, best)
        values = ", ".join(f"{key} = {value}" for key, value in best.values.items())
        out.append(
            f"The best {'is' if result.is_finished else 'so far is'} {values or best.name}, with a mean IoU of "
            f"{figures.mean_std(score.mean_iou, score.mean_iou_std)} on what was held back."
        )
    return out


def _missing(result: TuneResult) -> list[str]:
    if result.is_finished:
        return []
    stages = [result.stage(trial) for trial in result.trials]
    waiting, halfway = stages.count("waiting"), stages.count("goes on")
    out = (
        [f"{waiting} of {len(stages)} combinations have not been tried yet."]
        if waiting
        else []
    )
    out += [f"{halfway} may go on in the next round."] if halfway else []
    return [*out, "Give the same command again to go on."]


def _after(folder: Path, best: Trial, *, model: bool) -> str:
    """Where the best recipe is, and the network that was trained with it on all data."""
    try:
        stored = SearchFolder(folder).best_recipe_path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        stored = ""
    place = " and in best.yaml" if stored == dump_recipe(best.recipe) else ""
    again = (
        " It was trained once more, on all the data: the model is in the folder final."
        if model
        else ""
    )
    return f"Its recipe is below{place}.{again}"


def _is_model_of(final: RunFolder, recipe: Recipe) -> bool:
    """Whether a run is that of a recipe on all data, and complete: an earlier search may have left another one."""
    if not final.has_model or not final.exists:
        return False
    record = read_record(final.path)
    try:
        changed = differences(recipe, Recipe.parse(record.recipe))
    except StrataError:
        return False
    ended = (
        record.history.ended is not None and record.history.ended.reason != "stopped"
    )
    return ended and set(changed) <= set(RETRAINED)


def _short(keys: list[str]) -> list[str]:
    """Keys without their section, where that tells them apart."""
    last = [key.rpartition(".")[2] for key in keys]
    return last if len(set(last)) == len(last) else keys


def _facts(folder: Path, raw: dict[str, Any]) -> list[tuple[str, str]]:
    rows = {
        "Data fingerprints": ", ".join(map(str, raw.get("fingerprints") or [])),
        "Folder": str(folder.resolve()),
    }
    return [(name, value) for name, value in rows.items() if value]
