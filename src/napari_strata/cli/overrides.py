"""What the options of the command line spell: overrides of a recipe, and class maps."""

from __future__ import annotations

from typing import Any

from napari_strata.core.classes import ClassMap
from napari_strata.core.errors import RecipeError
from napari_strata.core.image import AnnotatedImage
from napari_strata.core.recipes import parse_value
from napari_strata.core.spec import find_classes


def parse_overrides(items: list[str]) -> dict[str, Any]:
    """Dotted keys and values of --set. Raises `RecipeError`."""
    found = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise RecipeError(
                f"--set {item!r}: needed is KEY=VALUE, for example --set training.epochs=5."
            )
        found[key.strip()] = parse_value(value)
    return found


def parse_classes(
    pairs: list[AnnotatedImage],
    names: list[str],
    colors: list[str],
    *,
    unlabelled: list[int],
    foreground: bool,
) -> ClassMap | None:
    """The class map that the options spell, or None to take it from the labels."""
    if colors and (foreground or names):
        raise RecipeError(
            "--rgb names its colours itself; leave out --foreground and --class."
        )
    if foreground:
        return _renamed(ClassMap.foreground(), names)
    if colors:
        return _parse_colors(colors)
    return _renamed(find_classes(pairs, unlabelled), names) if names else None


def _renamed(found: ClassMap, names: list[str]) -> ClassMap:
    called = dict(_split(item, "--class 2=clay") for item in names)
    if missing := [v for v in called if v not in map(str, found.values)]:
        raise RecipeError(
            f"--class {missing[0]}: the labels hold no such value; found {list(found.values)}."
        )
    names_now = tuple(
        called.get(str(v), n) for v, n in zip(found.values, found.names, strict=True)
    )
    rest = None if found.rest is None else names_now[found.names.index(found.rest)]
    # Validated anew: two classes of one name would be one column in every table.
    return type(found).model_validate(
        found.model_dump() | {"names": names_now, "rest": rest}
    )


def _parse_colors(items: list[str]) -> ClassMap:
    pairs = [_split(item, "--rgb ff0000=roof") for item in items]
    try:
        packed = [int(color.lstrip("#"), 16) for color, _ in pairs]
    except ValueError:
        raise RecipeError(
            f"--rgb {items[0]!r}: colours are six hexadecimal digits, for example ff0000=roof."
        ) from None
    colors = [(c >> 16 & 255, c >> 8 & 255, c & 255) for c in packed]
    return ClassMap.from_rgb(colors, names=[name for _, name in pairs])


def _split(item: str, example: str) -> tuple[str, str]:
    left, equals, right = item.partition("=")
    if not equals or not right:
        raise RecipeError(f"{item!r}: needed is VALUE=NAME, for example {example}.")
    return left.strip(), right.strip()
