"""Recipes as YAML: read them, write them, and list those of the project."""

from __future__ import annotations

import os
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from napari_strata.core.errors import RecipeError, nearest
from napari_strata.core.recipe import Recipe

RECIPE_FILE = "recipe.yaml"
"""Name of the recipe in a run folder."""

_FLOAT = re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
"""Numbers such as 1e-3, which YAML 1.1 (and so PyYAML) reads as text."""


_INTEGER = re.compile(r"^[-+]?\d+$")
"""Whole numbers; YAML 1.1 reads 010 as 8, and 1:30 as 90."""
_TAG = "tag:yaml.org,2002:"


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with plain numbers; a duplicated key is an error.

    It has no octal and sexagesimal numbers and no dates, as YAML 1.1 has.
    """

    yaml_implicit_resolvers = {
        first: [
            (tag, form)
            for tag, form in forms
            if tag not in (f"{_TAG}int", f"{_TAG}timestamp")
        ]
        for first, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(
        self, node: yaml.MappingNode, deep: bool = False
    ) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        if twice := [key for key, _ in node.value if keys.count(key.value) > 1]:
            raise yaml.constructor.ConstructorError(
                None, None, f"{twice[1].value!r} is duplicated", twice[1].start_mark
            )
        return super().construct_mapping(node, deep)


class _ValueLoader(_Loader):
    """Loader of a single value, which has no use for aliases."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*) are not allowed")
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper, with lists on one line and text such as 1e-3 in quotes."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    # Text with line breaks is escaped: PyYAML folds the rarer ones (U+0085, U+2028) and
    # loses them.
    style = '"' if value.splitlines() not in ([], [value]) else None
    return dumper.represent_scalar(f"{_TAG}str", value, style=style)


_Loader.add_implicit_resolver(f"{_TAG}float", _FLOAT, list("-+.0123456789"))
_Loader.add_implicit_resolver(f"{_TAG}int", _INTEGER, list("-+0123456789"))
_Loader.add_constructor(f"{_TAG}int", lambda loader, node: int(str(node.value)))
_Dumper.add_implicit_resolver(f"{_TAG}float", _FLOAT, list("-+.0123456789"))
_Dumper.add_representer(str, _text)
_Dumper.add_representer(
    list, lambda d, v: d.represent_sequence(f"{_TAG}seq", v, flow_style=True)
)


def list_recipes() -> list[Recipe]:
    """List the recipes of the project, `default` first, then by name."""
    names = sorted(_bundled(), key=lambda name: (name != "default", name))
    return [load_recipe(name) for name in names]


def load_recipe(source: str | os.PathLike[str] | Recipe) -> Recipe:
    """Load a recipe by its name, from a YAML or JSON file, or from a run folder.

    A name of a bundled recipe goes before a file of the same name. A recipe in a file
    without a name gets the name of the file. A `Recipe` is returned as it is.

    Raises
    ------
    RecipeError
        When there is no such recipe or file (it names the nearest), when the file is
        not YAML (it names the line), or when a key or a value is wrong.
    """
    if isinstance(source, Recipe):
        return source
    bundled = _bundled()
    if (name := os.fspath(source)) in bundled:
        return _parse(bundled[name], f"recipe {name}")
    path = Path(source).expanduser()
    path = path / RECIPE_FILE if path.is_dir() else path
    if not path.is_file():
        if path.suffix or len(path.parts) > 1:
            raise RecipeError(
                f"{path}: no such recipe file; check the path, or name a recipe: "
                f"{', '.join(bundled)}."
            )
        raise RecipeError(
            f"there is no recipe {name!r}; {nearest(name, bundled)} (a file is given "
            "by its path)"
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            f"{path}: cannot be read as text ({error}); a recipe is a YAML file."
        ) from None
    return _parse(text, str(path), name=path.stem)


def dump_recipe(recipe: Recipe) -> str:
    """Write the whole recipe, with defaults, as YAML that `load_recipe` can read."""
    raw = recipe.model_dump(mode="json")
    return yaml.dump(
        raw, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110
    )


def parse_value(text: str) -> Any:
    """Parse a value as in a recipe file: ``1e-3``, ``null``, ``{ce: 1, dice: 0.5}``.

    Raises
    ------
    RecipeError
        When it is not YAML.
    """
    try:
        return yaml.load(text, Loader=_ValueLoader)
    # PyYAML raises errors of many kinds: KeyError for "!!bool abc", for example.
    except Exception as error:
        raise RecipeError(
            f"{_shortened(text)!r}{_where(error)}; put text with special characters in "
            "quotes."
        ) from None


def _bundled() -> dict[str, str]:
    """YAML texts of the recipes in this package by name."""
    recipe_files = [f for f in files(__package__).iterdir() if f.name.endswith(".yaml")]
    return {
        f.name.removesuffix(".yaml"): f.read_text(encoding="utf-8")
        for f in sorted(recipe_files, key=lambda f: f.name)
    }


def _parse(text: str, source: str, *, name: str = "") -> Recipe:
    try:
        raw = yaml.load(text, Loader=_Loader)
    except Exception as error:
        raise RecipeError(
            f"{source}{_where(error)}; mend that line or start from `napari-strata "
            "recipes`."
        ) from None
    if raw is None:
        raise RecipeError(
            f"{source}: the file is empty; a recipe is a mapping of sections such as "
            "training."
        )
    return Recipe.parse(
        {"name": name} | raw if name and isinstance(raw, dict) else raw, source=source
    )


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


def _shortened(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."


def _where(error: Exception) -> str:
    """Describe what is wrong with the YAML, and in which line."""
    mark, problem = (
        getattr(error, "problem_mark", None),
        getattr(error, "problem", None),
    )
    line = f", line {mark.line + 1}" if mark else ""
    return f"{line}: not valid YAML ({problem or _first_line(error)})"
