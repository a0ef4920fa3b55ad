"""Classes of a Labels layer: names, colours, use, and meaning of 0."""

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

TABLE_METADATA = "napari_strata_table"
"""Key of a layer's metadata for facts that a class map does not contain.

These are names and colours of unused values.
"""
BACKGROUND_COLOR = "#888888"
"""Colour of the background in curves and tables; the viewer shows 0 transparent."""

ZERO_RULE = (
    "Labels that you paint: 0 is unlabelled and not used for training.\nLabels from a"
    " file, a sample or a plugin: 0 is the class background if every slice has labels"
    " or there is only one other value; otherwise there are slices to label, and 0 is"
    " unlabelled.\nLabels with class names: the classes determine it. This choice"
    " changes no pixel."
)


def stored_classes(layer: LabelsLayer) -> ClassMap | None:
    """Return the class map in a layer's metadata, or None.

    For an image that was converted to labels, the key contains its file.
    """
    stored = layer.metadata.get(METADATA) or {}
    return ClassMap.model_validate(stored) if "names" in stored else None


def has_source(layer: LabelsLayer) -> bool:
    """Return True if a layer comes from a file, a sample or a plugin."""
    source = layer.source
    return bool(source.path or source.sample or source.widget)


def means_background(counts: Counts | None, *, given: bool) -> bool:
    """Return True if 0 is a class by `ZERO_RULE`, if the user has not decided."""
    if counts is None:
        return given
    others = len(counts.total) - (0 in counts.total)
    return others > MAX_INFERRED or (
        given and (counts.labelled_everywhere or others == 1)
    )


@dataclass
class LabelClasses:
    """Classes of a layer, stored in its metadata.

    Parameters
    ----------
    names, colors
        Names and colours by label value. The layer's own colours take precedence.
    unused
        Values other than 0 that are not used for training.
    background
        Whether 0 is a class; None if the user has not decided.
    objects
        Whether all values except 0 are one class.
    given
        Whether the labels come from a source; see `has_source`.
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

        The class map takes precedence over the table.
        """
        table = layer.metadata.get(TABLE_METADATA) or {}
        label_classes = cls(
            names={int(value): str(name) for value, name in table.get("names", ())},
            colors={int(value): str(color) for value, color in table.get("colors", ())},
            unused={int(value) for value in table.get("unused", ())},
            background=table.get("background"),
            objects=bool(table.get("objects", False)),
            given=has_source(layer),
        )
        if (classes := stored_classes(layer)) is not None:
            label_classes.names |= dict(zip(classes.values, classes.names, strict=True))
            label_classes.colors |= dict(
                zip(classes.values, classes.colors, strict=True)
            )
            label_classes.unused = {*classes.unlabelled} - {0}
            label_classes.background = 0 in classes.values
            label_classes.objects = classes.rest is not None
        return label_classes

    def store(self, layer: LabelsLayer, classes: ClassMap | None) -> None:
        """Store class map, table and names (as features) in the layer."""
        table = {
            "names": [[value, name] for value, name in sorted(self.names.items())],
            "colors": [[value, color] for value, color in sorted(self.colors.items())],
            "unused": sorted(self.unused),
            "background": self.background,
            "objects": self.objects,
        }
        other_metadata = {
            key: value
            for key, value in layer.metadata.items()
            if key not in (METADATA, TABLE_METADATA)
        }
        stored = (
            {METADATA: classes.model_dump(mode="json")} if classes is not None else {}
        )
        layer.metadata = other_metadata | stored | {TABLE_METADATA: table}
        # A table with other columns belongs to another plugin.
        if set(layer.features.columns) <= {"index", "class"}:
            named = {**self.names, 0: self.name(0) if self.background else "unlabelled"}
            layer.features = {
                "index": sorted(named),
                "class": [named[value] for value in sorted(named)],
            }

    def is_background(self, counts: Counts | None) -> bool:
        """Return True if 0 is a class, by the user's choice or by `ZERO_RULE`."""
        return (
            means_background(counts, given=self.given)
            if self.background is None
            else self.background
        )

    def look_like_objects(self, counts: Counts | None) -> bool:
        """Return True if there are too many unnamed values to be classes."""
        return (
            counts is not None
            and len(counts.total.keys() - self.names.keys() - {0}) > MAX_INFERRED
        )

    def is_behind(self, layer: LabelsLayer, rows: list[int]) -> bool:
        """Return True if the stored class map of the layer lacks a painted class."""
        stored = stored_classes(layer)
        return (
            stored is not None
            and bool(rows)
            and set(stored.values) != set(rows) - self.unused
        )

    def rows(self, counts: Counts | None, painted: Iterable[int] = ()) -> list[int]:
        """Return the label values of all classes, used or unused.

        They were counted, named before, or just painted.
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
        """Return the number of pixels of a row."""
        if self.objects and value:
            return counts.pixels - counts.total.get(0, 0)
        return counts.total.get(value, 0)

    def zero_text(self, counts: Counts | None) -> str:
        """Describe the meaning of 0, and the percentage of its pixels."""
        if counts is None or not counts.pixels:
            return ""
        if not (zeros := counts.total.get(0, 0)):
            return "No pixel is 0."
        meaning = "background" if self.is_background(counts) else "unlabelled"
        return f"0 is {meaning}: {_percent(zeros / counts.pixels)} of the pixels"

    def problem(self, counts: Counts, rows: list[int]) -> str:
        """Explain why the labels cannot be used; empty if they can."""
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
                "Fewer than two labelled classes are in use: check Use for more of"
                " them."
            )
        hint = (
            ", or choose that 0 means background"
            if counts.total.get(0) and 0 not in rows
            else ""
        )
        return f"Only one class is labelled: paint some pixels of at least two{hint}."

    def why_kept(self, value: int, counts: Counts | None) -> str:
        """Explain why a row cannot be removed; empty if it can."""
        if value == 0:
            return "Choose “unlabelled” below to remove the background"
        if self.objects:
            return "This class stands for all objects"
        if counts is None:
            return "The pixels are not counted yet"
        pixels = self.pixels(counts, value)
        return (
            f"“{self.name(value)}” has {pixels:,} pixels: erase them first, or"
            " uncheck Use"
            if pixels
            else ""
        )

    def name(self, value: int) -> str:
        """Return the name of a value, or a default name that is not used yet."""
        if value in self.names:
            return self.names[value]
        if value == 0:
            default = "background"
        elif self.objects:
            default = "objects"
        else:
            default = f"class {value}"
        used = {name for number, name in self.names.items() if number != value}
        return default if default not in used else f"{default} ({value})"

    def color(self, layer: LabelsLayer, value: int) -> str:
        """Return the ``#rrggbb`` of a value in the layer, or the stored one."""
        if (color := shown_color(layer, value)) is not None:
            return color
        return self.colors.get(value) or (
            BACKGROUND_COLOR if value == 0 else unused_color(self.colors.values())
        )

    def class_map(self, layer: LabelsLayer, values: Iterable[int]) -> ClassMap | None:
        """Return the class map of the rows, or None if all are unused."""
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
    """Return the ``#rrggbb`` of a value in the layer, or None if it is transparent."""
    colormap = layer.colormap
    if isinstance(colormap, DirectLabelColormap):
        rgba = colormap.color_dict.get(value, colormap.default_color)
    elif value == colormap.background_value:
        return None
    else:  # for any label, even if the viewer shows only the selected label
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


def unused_color(used_colors: Iterable[str]) -> str:
    """Return the first default colour that is not used yet."""
    used = {color.lower() for color in used_colors}
    return next(color for color in default_colors(len(used) + 1) if color not in used)


def invisible_values(layer: LabelsLayer, values: Iterable[int]) -> list[int]:
    """Return the values except 0 for which a layer has no visible colour."""
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
    """Set the colours of some values.

    Parameters
    ----------
    colors
        ``#rrggbb`` by value.
    values
        Values whose colours are kept.
    others
        One colour for all other values.
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
    """Format a fraction as ``61 %``, without rounding to 0 or 100 %."""
    if part < 0.001:
        return "under 0.1 %"
    if part == 1:
        return "100 %"
    return (
        f"{min(100 * part, 99.9):.1f} %"
        if part < 0.01 or part > 0.99
        else f"{100 * part:.0f} %"
    )
