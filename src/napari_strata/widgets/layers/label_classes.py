"""Classes of a Labels layer: names, colours, use, and the meaning of 0. No widget."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from napari.layers import Labels as LabelsLayer
from napari.utils.colormaps import DirectLabelColormap

from napari_strata.core.classes import MAX_INFERRED, ClassMap, default_colors
from napari_strata.plugin import METADATA
from napari_strata.widgets.layers.counts import Counts

NOTES = "napari_strata_table"
"""Key of a layer's metadata for what a class map has no place for.

Names and colours of values that are not used.
"""
BACKGROUND = "#888888"
"""Colour of the background in curves and tables.

In the viewer 0 stays as transparent as it was.
"""

RULE = (
    "Labels that you paint: 0 is unlabelled, never trained on.\nLabels from a file, a"
    " sample or a plugin: 0 is the background, a class, if every slice has labels or"
    " there is one other value only; otherwise slices wait to be labelled, and 0 is"
    " unlabelled.\nLabels that carry class names: as they say. Switching changes no"
    " pixel."
)


def stored_classes(layer: LabelsLayer) -> ClassMap | None:
    """The class map in a layer's metadata.

    Those of an image that became labels name its file under the same key.
    """
    stored = layer.metadata.get(METADATA) or {}
    return ClassMap.model_validate(stored) if "names" in stored else None


def came_with_labels(layer: LabelsLayer) -> bool:
    """Return True for a layer from a file, a sample or a plugin, False for a painted
    one.
    """
    source = layer.source
    return bool(source.path or source.sample or source.widget)


def means_background(counts: Counts | None, *, given: bool) -> bool:
    """Return True if 0 is a class by `RULE`; for layers whose user has not decided."""
    if counts is None:
        return given
    others = len(counts.total) - (0 in counts.total)
    return others > MAX_INFERRED or (
        given and (counts.labelled_everywhere or others == 1)
    )


@dataclass
class LabelClasses:
    """Classes of one layer, kept in its metadata.

    Parameters
    ----------
    names, colors
        what is known of label values; colours of values that the layer itself shows are
        the layer's.
    unused
        values that are not to be trained on (0 aside).
    background
        whether 0 is a class; None while nobody has said so.
    objects
        whether every value but 0 is one class.
    given
        whether the labels came with the layer: see `came_with_labels`.
    """

    names: dict[int, str] = field(default_factory=dict)
    colors: dict[int, str] = field(default_factory=dict)
    unused: set[int] = field(default_factory=set)
    background: bool | None = None
    objects: bool = False
    given: bool = False

    @classmethod
    def of(cls, layer: LabelsLayer) -> LabelClasses:
        """Read the classes of a layer from its metadata.

        Its class map wins over our notes.
        """
        notes = layer.metadata.get(NOTES) or {}
        book = cls(
            names={int(value): str(name) for value, name in notes.get("names", ())},
            colors={int(value): str(color) for value, color in notes.get("colors", ())},
            unused={int(value) for value in notes.get("unused", ())},
            background=notes.get("background"),
            objects=bool(notes.get("objects", False)),
            given=came_with_labels(layer),
        )
        if (classes := stored_classes(layer)) is not None:
            book.names |= dict(zip(classes.values, classes.names, strict=True))
            book.colors |= dict(zip(classes.values, classes.colors, strict=True))
            book.unused = {*classes.unlabelled} - {0}
            book.background = 0 in classes.values
            book.objects = classes.rest is not None
        return book

    def store(self, layer: LabelsLayer, classes: ClassMap | None) -> None:
        """Write all of it into the layer, as its reader does.

        Class map, notes, and the names as features.
        """
        notes = {
            "names": [[value, name] for value, name in sorted(self.names.items())],
            "colors": [[value, color] for value, color in sorted(self.colors.items())],
            "unused": sorted(self.unused),
            "background": self.background,
            "objects": self.objects,
        }
        other_metadata = {
            key: value
            for key, value in layer.metadata.items()
            if key not in (METADATA, NOTES)
        }
        stored = (
            {METADATA: classes.model_dump(mode="json")} if classes is not None else {}
        )
        layer.metadata = other_metadata | stored | {NOTES: notes}
        if set(layer.features.columns) <= {
            "index",
            "class",
        }:  # else it is a table of somebody else's
            named = {**self.names, 0: self.name(0) if self.background else "unlabelled"}
            layer.features = {
                "index": sorted(named),
                "class": [named[value] for value in sorted(named)],
            }

    def is_background(self, counts: Counts | None) -> bool:
        """Return True if 0 is a class, by the user's choice or else by `RULE`."""
        return (
            means_background(counts, given=self.given)
            if self.background is None
            else self.background
        )

    def look_like_objects(self, counts: Counts | None) -> bool:
        """Return True if there are too many unnamed values for them to be classes."""
        return (
            counts is not None
            and len(counts.total.keys() - self.names.keys() - {0}) > MAX_INFERRED
        )

    def is_behind(self, layer: LabelsLayer, rows: list[int]) -> bool:
        """Return True if a class was painted that the stored class map of the layer
        lacks.
        """
        stored = stored_classes(layer)
        return (
            stored is not None
            and bool(rows)
            and set(stored.values) != set(rows) - self.unused
        )

    def rows(self, counts: Counts | None, painted: Iterable[int] = ()) -> list[int]:
        """Label values of the classes, used or not.

        Those found, known, or just painted.
        """
        zero = [0] if self.is_background(counts) else []
        if self.objects:
            return [*zero, 1]
        if self.look_like_objects(counts):
            return []
        counted_values = counts.total if counts is not None else ()
        return zero + sorted(
            {*counted_values, *self.names, *self.unused, *painted} - {0}
        )

    def pixels(self, counts: Counts, value: int) -> int:
        """Pixels of a row."""
        if self.objects and value:
            return counts.pixels - counts.total.get(0, 0)
        return counts.total.get(value, 0)

    def zero_text(self, counts: Counts | None) -> str:
        """Describe the meaning of 0, and its share of the pixels."""
        if counts is None or not counts.pixels:
            return ""
        if not (zeros := counts.total.get(0, 0)):
            return "No pixel is 0."
        meaning = "background" if self.is_background(counts) else "unlabelled"
        return f"0 is {meaning}: {_percent(zeros / counts.pixels)} of the pixels"

    def problem(self, counts: Counts, rows: list[int]) -> str:
        """Explain why the labels cannot be trained on; empty when they can."""
        if self.look_like_objects(counts) and not self.objects:
            return (
                "The labels look like object ids: treat all objects as one class, or"
                " choose other labels."
            )
        if not any(counts.total):
            return (
                f"No pixels are labelled yet: {'choose' if rows else 'add'} a class,"
                " then paint."
            )
        labelled = [value for value in rows if self.pixels(counts, value)]
        used = [value for value in labelled if value not in self.unused]
        if len(used) > 1:
            return ""
        if len(labelled) > 1:
            return (
                "Fewer than two labelled classes are in use: tick Use for more of them."
            )
        hint = (
            ", or let 0 mean background"
            if counts.total.get(0) and 0 not in rows
            else ""
        )
        return f"Only one class is labelled: paint some pixels of at least two{hint}."

    def why_kept(self, value: int, counts: Counts | None) -> str:
        """Explain why a row cannot be removed; empty when it can.

        `counts` may be None.
        """
        if value == 0:
            return "Choose “unlabelled” below to drop the background"
        if self.objects:
            return "This class stands for all objects"
        if counts is None:
            return "The pixels are not counted yet"
        pixels = self.pixels(counts, value)
        return (
            f"“{self.name(value)}” has {pixels:,} pixels: erase them first, or"
            " untick Use"
            if pixels
            else ""
        )

    def name(self, value: int) -> str:
        """The name of a value; where it has none, one that no other has."""
        if value in self.names:
            return self.names[value]
        plain = (
            "background"
            if value == 0
            else "objects"
            if self.objects
            else f"class {value}"
        )
        taken = {name for number, name in self.names.items() if number != value}
        return plain if plain not in taken else f"{plain} ({value})"

    def color(self, layer: LabelsLayer, value: int) -> str:
        """Return the ``#rrggbb`` of a value in the layer, else the stored one."""
        if (color := shown_color(layer, value)) is not None:
            return color
        return self.colors.get(value) or (
            BACKGROUND if value == 0 else free_color(self.colors.values())
        )

    def class_map(self, layer: LabelsLayer, values: Iterable[int]) -> ClassMap | None:
        """The class map of the rows `values`, or None when none of them is used."""
        used = [value for value in values if value not in self.unused]
        if not used:
            return None
        names: list[str] = []
        for value in used:
            name = self.name(value)
            names.append(name if name not in names else f"{name} ({value})")
        return ClassMap(
            names=tuple(names),
            values=tuple(used),
            colors=tuple(self.color(layer, value) for value in used),
            unlabelled=tuple(
                sorted(self.unused - set(used) | (set() if 0 in used else {0}))
            ),
            rest=names[used.index(1)] if self.objects and 1 in used else None,
        )


def shown_color(layer: LabelsLayer, value: int) -> str | None:
    """``#rrggbb`` that the layer shows for a value, None where it shows nothing."""
    colormap = layer.colormap
    if isinstance(colormap, DirectLabelColormap):
        rgba = colormap.color_dict.get(value, colormap.default_color)
    elif value == colormap.background_value:
        return None
    else:  # every label, also while the viewer shows the selected one only
        plain = (
            colormap.model_copy(update={"use_selection": False})
            if colormap.use_selection
            else colormap
        )
        rgba = plain.map(value)
    if rgba[3] == 0:
        return None
    return "#{:02x}{:02x}{:02x}".format(
        *(round(255 * float(part)) for part in rgba[:3])
    )


def free_color(taken: Iterable[str]) -> str:
    """The first of our colours that is not yet taken."""
    used = {color.lower() for color in taken}
    return next(color for color in default_colors(len(used) + 1) if color not in used)


def unseen(layer: LabelsLayer, values: Iterable[int]) -> list[int]:
    """Values (0 aside) that a layer with a colour for each value has none for, so that
    nobody could see them.
    """
    colormap = layer.colormap
    if not isinstance(colormap, DirectLabelColormap) or colormap.default_color[3] > 0:
        return []
    return [
        value for value in values if value != 0 and value not in colormap.color_dict
    ]


def set_colors(
    layer: LabelsLayer,
    colors: dict[int, str],
    values: Iterable[int],
    *,
    others: str | None = None,
) -> None:
    """Show `colors` of values, with those of all other `values` as they are.

    `others`: one colour for what is left.
    """
    colormap = layer.colormap
    if isinstance(colormap, DirectLabelColormap):
        colors_by_value: dict[int | None, Any] = dict(colormap.color_dict)
    else:
        rows = {value: shown_color(layer, value) for value in values}
        colors_by_value = {
            value: color for value, color in rows.items() if color is not None
        }
        colors_by_value |= {None: np.zeros(4), 0: np.zeros(4)}
    if others is not None:
        colors_by_value = {0: colors_by_value.get(0, np.zeros(4)), None: others}
    layer.colormap = DirectLabelColormap(
        color_dict=colors_by_value | colors,
        use_selection=layer.show_selected_label,
        selection=layer.selected_label,
        background_value=colormap.background_value,
    )


def _percent(part: float) -> str:
    """Format a share as ``61 %``; never round to 0 or 100 %."""
    if part < 0.001:
        return "under 0.1 %"
    if part == 1:
        return "100 %"
    return (
        f"{min(100 * part, 99.9):.1f} %"
        if part < 0.01 or part > 0.99
        else f"{100 * part:.0f} %"
    )
