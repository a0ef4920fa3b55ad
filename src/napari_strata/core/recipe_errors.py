"""Messages about mistakes in a recipe: one line each, with the nearest known key."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from napari_strata.core.errors import nearest
from napari_strata.core.network_sections import DEFAULT_KIND, network_kinds
from napari_strata.core.sections import Section, section_of


def describe_mistakes(
    error: ValidationError, raw: Mapping[str, Any], root: type[Section]
) -> list[str]:
    """Describe each mistake in `raw`: the dotted key, what was found, what is needed.

    Parameters
    ----------
    error
        Error of validating `raw` as `root`.
    """
    lines = []
    for mistake in error.errors():
        keys = [str(key) for key in mistake["loc"]]
        # pydantic names the branches of a union too, as in "tuple[int, ...]".
        keys = [key for key in keys if "[" not in key]
        dotted = ".".join(keys)
        if mistake["type"] == "extra_forbidden":
            lines.append(f"unknown key {dotted!r}; {_hint(keys, raw, root)}")
        else:
            message = mistake["msg"]
            message = message[0].lower() + message[1:]
            lines.append(f"{dotted} is {reprlib.repr(mistake['input'])}: {message}.")
    return lines


def section_keys(node: Mapping[str, Any]) -> list[str]:
    """Keys of `node` that hold sections, or all its keys when none does."""
    keys = [key for key, value in node.items() if isinstance(value, dict)]
    return keys or list(node)


def _hint(keys: Sequence[str], raw: Mapping[str, Any], root: type[Section]) -> str:
    """The nearest key, or the network kinds that have this one."""
    *parents, unknown = keys
    if parents == ["network"]:
        kinds = [
            kind
            for kind, section in network_kinds().items()
            if unknown in section.model_fields
        ]
        if kinds:
            return f"it belongs to network.kind {' and '.join(kinds)}"
    section: type[Section] | None = root
    for parent in parents:
        if parent == "network":
            network = raw.get("network") or {}
            section = network_kinds()[network.get("kind", DEFAULT_KIND)]
        elif section and parent in section.model_fields:
            section = section_of(section.model_fields[parent])
    fields = (section or root).model_fields
    return nearest(unknown, fields)
