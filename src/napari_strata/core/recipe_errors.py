"""What is wrong in a recipe, in words: pydantic's findings as one line each, with the nearest known key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from napari_strata.core.errors import nearest

Sections = Mapping[str, type[BaseModel]]
"""The parts that a nested value may be made of: by the key under which they stand, and the network's by their kind."""


def explain(
    error: ValidationError,
    raw: Mapping[str, Any],
    *,
    root: type[BaseModel],
    sections: Sections,
) -> list[str]:
    """A line for each mistake in `raw`: the dotted key, what was found, and what is needed or meant."""
    lines = []
    for item in error.errors():
        # Without the names that pydantic gives to the branches of a union, as "smp" or "tuple[int, ...]".
        path = [
            p
            for p in map(str, item["loc"])
            if "[" not in p and p not in _kinds(sections)
        ]
        dotted = ".".join(path)
        if item["type"] == "extra_forbidden":
            lines.append(f"unknown key {dotted!r}; {_hint(path, raw, root, sections)}")
        else:
            lines.append(
                f"{dotted} is {item['input']!r}: {item['msg'][0].lower()}{item['msg'][1:]}."
            )
    return lines


def groups(node: Mapping[str, Any]) -> list[str]:
    """Keys of the sections in plain data, or all keys where there are none."""
    return [key for key, value in node.items() if isinstance(value, dict)] or list(node)


def _kinds(sections: Sections) -> list[str]:
    """Kinds of networks."""
    return [key for key, section in sections.items() if "kind" in section.model_fields]


def _hint(
    path: list[str], raw: Mapping[str, Any], root: type[BaseModel], sections: Sections
) -> str:
    """The nearest key, or the kind of network that has this one."""
    having = [
        kind for kind in _kinds(sections) if path[-1] in sections[kind].model_fields
    ]
    if path[0] == "network" and having:
        return f"it belongs to network.kind {' and '.join(having)}"
    section = root
    for part in path[:-1]:
        key = (
            (raw.get("network") or {}).get("kind", "smp") if part == "network" else part
        )
        section = sections.get(key, section)
    return nearest(path[-1], section.model_fields)
