"""The page of a search: what was tried, what came of it, and the recipe that was best."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from napari_strata.errors import RunError
from napari_strata.evaluation import figures, html
from napari_strata.files import TRIALS, read_study


@dataclass(frozen=True)
class Cell:
    """What a cell of the table shows, and what it is sorted by: a number, or text; empty when it is not known."""

    text: str
    value: str
    words: bool = False

    @classmethod
    def number(cls, value: float | None, text: str = "") -> Cell:
        """A number, shown as `text` or with three digits."""
        return cls(figures.NONE, "") if value is None else cls(text or figures.number(value), f"{value:.6g}")


def render(folder: Path) -> str:
    """The page as text.

    Raises
    ------
    RunError
        when ``trials.json`` is damaged.
    """
    raw = read_study(folder / TRIALS)
    try:
        return html.render("search.html", **_context(folder, raw))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(f"{folder / TRIALS}: cannot be read ({error}); move it away and begin anew.") from None


def _context(folder: Path, raw: dict[str, Any]) -> dict[str, Any]:
    trials, names = raw["trials"], raw["class_names"]
    keys = list(dict.fromkeys(key for trial in trials for key in trial["values"]))
    best = next((trial for trial in trials if _latest(trial)[1].get("mean_iou") is not None), None)
    model = (folder / "final" / "model.safetensors").is_file()
    folds = raw["folds"]
    waiting = sum(trial["state"] == "waiting" for trial in trials)
    missing = [f"{waiting} of {len(trials)} trials have not been tried yet. The command that began it goes on."]
    return {
        "name": folder.resolve().name,
        "summary": _summary(trials, best),
        "missing": missing if waiting else [],
        "judged": f"cross-validated in {folds} folds" if folds > 1 else "scored on one part held back",
        "heads": ["Rank", *_short(keys), "mean IoU", *names, "Epochs", "Time", "State"],
        "rows": [_row(trial, keys, len(names)) for trial in trials],
        "best": _after(folder, model=model) if best else "",
        "model": model,
        "facts": _facts(folder, raw),
        "recipe_text": yaml.safe_dump(best["recipe"], sort_keys=False, allow_unicode=True) if best else "",
    }


def _row(trial: dict[str, Any], keys: list[str], classes: int) -> list[Cell]:
    epochs, score = _latest(trial)
    values = [str(trial["values"].get(key, "")) for key in keys]
    each = score.get("class_iou") or [None] * classes
    seconds = score.get("seconds")
    state = str(trial["state"]).split(" after ")[0]  # the column before says how many epochs
    return [
        Cell.number(trial["rank"], str(trial["rank"])),
        *(Cell(text, text) for text in values),
        Cell.number(score.get("mean_iou"), figures.mean_std(score.get("mean_iou"), score.get("mean_iou_std"))),
        *map(Cell.number, each),
        Cell.number(epochs, str(epochs)),
        Cell.number(seconds, figures.duration(seconds or 0.0)),
        Cell(state, state, words=True),
    ]


def _latest(trial: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Epochs and the score after them; 0 and nothing without one."""
    known = {int(epochs): score for epochs, score in trial["epochs"].items()}
    last = max(known, default=0)
    return last, known.get(last, {})


def _summary(trials: list[dict[str, Any]], best: dict[str, Any] | None) -> list[str]:
    tried = sum(bool(trial["epochs"]) for trial in trials)
    out = [f"{tried} of {len(trials)} combinations of settings {'was' if tried == 1 else 'were'} tried."]
    if best is not None:
        score = _latest(best)[1]
        values = ", ".join(f"{key} = {value}" for key, value in best["values"].items())
        out.append(
            f"The best is {values or best['name']}, with a mean IoU of "
            f"{figures.mean_std(score['mean_iou'], score['mean_iou_std'])} on what was held back."
        )
    return out


def _after(folder: Path, *, model: bool) -> str:
    place = " and in best.yaml" if (folder / "best.yaml").is_file() else ""
    again = " It was trained once more, on all the data: the model is in the folder final." if model else ""
    return f"Its recipe is below{place}.{again}"


def _short(keys: list[str]) -> list[str]:
    """Keys without their section, where that tells them apart."""
    last = [key.rpartition(".")[2] for key in keys]
    return last if len(set(last)) == len(last) else keys


def _facts(folder: Path, raw: dict[str, Any]) -> list[tuple[str, str]]:
    rows = {
        "Split": "; ".join(map(str, raw.get("splits", []))),
        "Data fingerprints": ", ".join(map(str, raw["fingerprints"])),
        "Folder": str(folder.resolve()),
    }
    return [(name, value) for name, value in rows.items() if value]
