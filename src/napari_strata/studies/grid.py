"""Combinations of values of recipe keys for a search."""

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
"""Values to try for each dotted key of a recipe, or for ``recipe`` itself."""


def parse_grid(items: Sequence[str]) -> dict[str, list[Any]]:
    """Parse the items ``KEY=V1,V2`` of a grid.

    Values are YAML, with lists in brackets: ``network.widths=[16,32],[32,64]``.

    Raises
    ------
    RecipeError
        When an item has another form, or a key or a value occurs twice.
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
                f"--grid {key}: occurs twice; give all its values in one --grid,"
                " separated by commas."
            )
        grid[key] = parse_value(f"[{text}]")
        if any(value in grid[key][:i] for i, value in enumerate(grid[key])):
            raise RecipeError(f"--grid {item!r}: a value occurs twice; give each once.")
    return grid


def build_trials(
    recipe: str | os.PathLike[str] | Recipe,
    grid: Grid,
    *,
    overrides: Mapping[str, Any] | None = None,
) -> list[Trial]:
    """Build a trial for each combination of the grid; the last key varies fastest.

    Raises `RecipeError` like `iter_tune`.
    """
    if not grid or not all(grid.values()):
        raise RecipeError(
            "the grid is empty; give --grid KEY=V1,V2, for example network.encoder=a,b."
        )
    trials, names = [], set[str]()
    for values in product(*grid.values()):
        combination = dict(zip(grid, values, strict=True))
        base = load_recipe(
            str(combination["recipe"]) if "recipe" in combination else recipe
        )
        changed = {
            **(overrides or {}),
            **{key: value for key, value in combination.items() if key != "recipe"},
        }
        try:
            trial_recipe = base.with_overrides(changed)
        except RecipeError as error:
            raise RecipeError(f"{describe(combination)}: {error}") from None
        name = _folder_name(combination)
        trials.append(
            Trial(
                name if name not in names else f"{name}_{_digest(combination)}",
                combination,
                trial_recipe,
            )
        )
        names.add(name)
    return trials


def _folder_name(values: Mapping[str, Any]) -> str:
    """Return a readable name of a folder: ``learning_rate=0.001,widths=16-32``."""
    short_names = [key.rpartition(".")[2] for key in values]
    keys = [
        name if short_names.count(name) == 1 else key
        for name, key in zip(short_names, values, strict=True)
    ]
    text = ",".join(
        f"{key}={_format_value(value)}"
        for key, value in zip(keys, values.values(), strict=True)
    )
    safe = re.sub(r"[^\w.=,+-]+", "-", text).strip("-. ")
    return safe if len(safe) <= 100 else f"{safe[:90]}_{_digest(values)}"


def _format_value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "-".join(map(_format_value, value))
    if isinstance(value, dict):
        return "+".join(f"{key}-{_format_value(v)}" for key, v in value.items())
    if value is None:
        return "none"
    if isinstance(value, str) and "/" in value:
        return Path(value).stem
    return str(value)


def describe(values: Mapping[str, Any]) -> str:
    """Format values as ``training.epochs=5, network.norm=batch``."""
    return ", ".join(f"{key}={value}" for key, value in values.items())


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(
        json.dumps(dict(values), sort_keys=True, default=str).encode()
    ).hexdigest()[:6]
