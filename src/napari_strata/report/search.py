"""Page of a search: the trials with their scores, and the best recipe."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from napari_strata.core.command import join_command
from napari_strata.core.errors import StrataError
from napari_strata.core.recipe import Recipe, differences
from napari_strata.core.recipes import dump_recipe
from napari_strata.core.runs import RunFolder, SearchFolder
from napari_strata.report import figures, html
from napari_strata.studies.trials import Score, Trial, TuneResult

RETRAINED = (
    "name",
    "description",
    "training.validation",
    "training.early_stopping",
    "training.epochs",
)
"""Keys that may differ between the best recipe and that of the final run."""


@dataclass(frozen=True)
class Cell:
    """A cell of the table of trials.

    Parameters
    ----------
    value
        Sort key, a number or text; empty when unknown.
    """

    text: str
    value: str
    is_text: bool = False

    @classmethod
    def number(cls, value: float, text: str = "") -> Cell:
        """Return a number, shown as `text` or with three digits."""
        if math.isnan(value):
            return cls(figures.NONE, "")
        return cls(text or figures.number(value), f"{value:.6g}")


def render(folder: Path) -> str:
    """Render the page.

    Raises
    ------
    RunError
        If ``trials.json`` is damaged.
    """
    search = SearchFolder(folder)
    raw = search.read()
    result = TuneResult.parse(raw, folder)
    keys = list(dict.fromkeys(key for trial in result.trials for key in trial.values))
    best = _best_trial(result)
    has_model = best is not None and _is_final(search.final, best.recipe)
    judged = "scored on one part held back"
    if len(result.splits) > 1:
        judged = f"cross-validated in {len(result.splits)} folds"
    headings = [
        "Rank",
        *_shorten(keys),
        "mean IoU",
        *result.class_names,
        "Epochs",
        "Time",
        "State",
    ]
    context: dict[str, Any] = {
        "name": folder.resolve().name,
        "summary": _summarize(result, best),
        "missing": _missing(result),
        "judged": judged,
        "headings": headings,
        "rows": [
            _trial_row(result, rank, trial, keys)
            for rank, trial in enumerate(result.trials, 1)
        ],
        "best": "",
        "predict": "",
        "splits": result.splits,
        "facts": _facts(folder, raw),
        "recipe_text": dump_recipe(best.recipe) if best else "",
    }
    if best and result.is_finished:
        context["best"] = _describe_best(search, best, has_model=has_model)
    if has_model:
        model = str(folder.resolve() / search.final.path.name)
        context["predict"] = join_command(
            ["napari-strata", "predict", model, "IMAGE", "--out", "LABELS.tif"]
        )
    return html.render("search.html", **context)


def _best_trial(result: TuneResult) -> Trial | None:
    for trial in result.trials:
        if not math.isnan(_score(result, trial).mean_iou):
            return trial
    return None


def _score(result: TuneResult, trial: Trial) -> Score:
    _, score = result.latest(trial)
    return score or Score()


def _trial_row(
    result: TuneResult, rank: int, trial: Trial, keys: list[str]
) -> list[Cell]:
    epochs, _ = result.latest(trial)
    score = _score(result, trial)
    values = [str(trial.values.get(key, "")) for key in keys]
    class_iou = score.class_iou or (math.nan,) * len(result.class_names)
    state: str = result.stage(trial)
    if state == "failed":  # with the reason; epochs have a column of their own
        state = result.state(trial)
    mean_iou = figures.mean_std(score.mean_iou, score.mean_iou_std)
    return [
        Cell.number(rank, str(rank)),
        *(Cell(text, text) for text in values),
        Cell.number(score.mean_iou, mean_iou),
        *(Cell.number(iou) for iou in class_iou),
        Cell.number(epochs, str(epochs)),
        Cell.number(score.seconds, figures.duration(score.seconds)),
        Cell(state, state, is_text=True),
    ]


def _summarize(result: TuneResult, best: Trial | None) -> list[str]:
    tried = sum(bool(result.scores.get(trial.name)) for trial in result.trials)
    verb = "was" if tried == 1 else "were"
    sentences = [
        f"{tried} of {len(result.trials)} combinations of settings {verb} tried."
    ]
    if best is not None:
        score = _score(result, best)
        values = ", ".join(f"{key} = {value}" for key, value in best.values.items())
        state = "is" if result.is_finished else "so far is"
        mean_iou = figures.mean_std(score.mean_iou, score.mean_iou_std)
        sentences.append(
            f"The best {state} {values or best.name}, with a mean IoU of {mean_iou} on "
            "the data held back."
        )
    return sentences


def _missing(result: TuneResult) -> list[str]:
    """List what the page cannot show, and why."""
    if result.is_finished:
        return []
    stages = [result.stage(trial) for trial in result.trials]
    waiting, unfinished = stages.count("waiting"), stages.count("active")
    sentences = []
    if waiting:
        sentences.append(
            f"{waiting} of {len(stages)} combinations have not been tried yet."
        )
    if unfinished:
        sentences.append(f"{unfinished} may go on in the next round.")
    return [*sentences, "Give the same command again to continue."]


def _describe_best(search: SearchFolder, best: Trial, *, has_model: bool) -> str:
    """Name the files of the best recipe, and of the network trained on all data."""
    try:
        stored = search.best_recipe_path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        stored = ""
    text = "Its recipe is below"
    if stored == dump_recipe(best.recipe):
        text += f" and in {search.best_recipe_path.name}"
    text += "."
    if has_model:
        text += (
            " It was trained once more, on all the data: the model is in the folder "
            f"{search.final.path.name}."
        )
    return text


def _is_final(run: RunFolder, recipe: Recipe) -> bool:
    """Tell if a run is complete, and trained by a recipe on all data.

    An earlier search may have left another one.
    """
    if not run.has_model or not run.exists:
        return False
    try:
        changed = differences(recipe, Recipe.parse(run.raw_recipe()))
    except StrataError:
        return False
    ended = run.history().ended
    if ended is None or ended.reason == "stopped":
        return False
    return set(changed) <= set(RETRAINED)


def _shorten(keys: list[str]) -> list[str]:
    """Drop the sections of keys, if they stay different."""
    names = [key.rpartition(".")[2] for key in keys]
    return names if len(set(names)) == len(names) else keys


def _facts(folder: Path, raw: dict[str, Any]) -> list[tuple[str, str]]:
    """Return names and values for the table "How it was made"."""
    fingerprints = ", ".join(map(str, raw.get("fingerprints") or []))
    facts = {"Data fingerprints": fingerprints, "Folder": str(folder.resolve())}
    return [(name, value) for name, value in facts.items() if value]
