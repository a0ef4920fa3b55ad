"""Combinations of recipe keys for a search, from options of the command line."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, TypeAlias

from napari_strata.core.errors import RecipeError
from napari_strata.core.recipe import Recipe
from napari_strata.core.recipes import load_recipe, parse_value
from napari_strata.studies.trials import Trial

Grid: TypeAlias = Mapping[str, Sequence[Any]]
"""Dotted keys of a recipe (or ``recipe`` itself) and the values of each to try."""


def parse_grid(items: Sequence[str]) -> dict[str, list[Any]]:
    """The grid that ``KEY=V1,V2`` items spell.

    Values are YAML, lists in brackets: ``network.widths=[16,32],[32,64]``.

    Raises
    ------
    RecipeError
        when an item is not of that form, or a key or a value of one key stands twice.
    """
    grid: dict[str, list[Any]] = {}
    for item in items:
        key, equals, text = item.partition("=")
        if not (key := key.strip()) or not equals or not text.strip():
            raise RecipeError(
                f"--grid {item!r}: needed is KEY=V1,V2, for example"
                " training.learning_rate=1e-2,1e-3."
            )
        if key in grid:
            raise RecipeError(
                f"--grid {key}: stands twice; give all its values in one, separated by"
                " commas."
            )
        grid[key] = parse_value(f"[{text}]")
        if any(value in grid[key][:i] for i, value in enumerate(grid[key])):
            raise RecipeError(f"--grid {item!r}: a value stands twice; give each once.")
    return grid


def build_trials(
    recipe: str | os.PathLike[str] | Recipe,
    grid: Grid,
    *,
    overrides: Mapping[str, Any] | None = None,
) -> list[Trial]:
    """A trial for each combination of the grid, the last key fastest.

    Raises `RecipeError` as `iter_tune` does.
    """
    if not grid or not all(grid.values()):
        raise RecipeError(
            "found nothing to search over; give --grid KEY=V1,V2, for example"
            " network.encoder=a,b."
        )
    trials, names = [], set[str]()
    for values in product(*grid.values()):
        chosen = dict(zip(grid, values, strict=True))
        start = load_recipe(str(chosen["recipe"]) if "recipe" in chosen else recipe)
        changed = {
            **(overrides or {}),
            **{key: value for key, value in chosen.items() if key != "recipe"},
        }
        try:
            built = start.with_overrides(changed)
        except RecipeError as error:
            raise RecipeError(f"{in_words(chosen)}: {error}") from None
        name = _folder(chosen)
        trials.append(
            Trial(
                name if name not in names else f"{name}_{_digest(chosen)}",
                chosen,
                built,
            )
        )
        names.add(name)
    return trials


def _folder(values: Mapping[str, Any]) -> str:
    """A name for people and file systems: ``learning_rate=0.001,widths=16-32``."""
    short = [key.rpartition(".")[2] for key in values]
    keys = [
        name if short.count(name) == 1 else key
        for name, key in zip(short, values, strict=True)
    ]
    text = ",".join(
        f"{key}={_shown(value)}"
        for key, value in zip(keys, values.values(), strict=True)
    )
    safe = re.sub(r"[^\w.=,+-]+", "-", text).strip("-. ")
    return safe if len(safe) <= 100 else f"{safe[:90]}_{_digest(values)}"


def _shown(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "-".join(map(_shown, value))
    if isinstance(value, dict):
        return "+".join(f"{k}-{_shown(v)}" for k, v in value.items())
    return (
        "none"
        if value is None
        else Path(value).stem
        if isinstance(value, str) and "/" in value
        else str(value)
    )


def in_words(values: Mapping[str, Any]) -> str:
    """``training.epochs=5, network.norm=batch``"""
    return ", ".join(f"{key}={value}" for key, value in values.items())


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(
        json.dumps(dict(values), sort_keys=True, default=str).encode()
    ).hexdigest()[:6]
