"""Class map: the meaning of label values.

Label values (any numbers or colours that were painted) become class indices 0..K-1,
with `IGNORE` for pixels without a label, and back.
"""

from __future__ import annotations

import colorsys
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, model_validator

from napari_strata.core.errors import LabelError

IGNORE = 255
"""Class index of unlabelled pixels; a class map therefore has at most 255 classes.

The label *value* 255 is something else: a class, unless the class map has it in
`unlabelled`.
"""

MAX_INFERRED = 64
"""More distinct values than this are object ids or grey values, not classes."""

_COLORS = (
    "#4477aa",
    "#ee6677",
    "#228833",
    "#ccbb44",
    "#66ccee",
    "#aa3377",
    "#ee8866",
    "#44bb99",
    "#bbcc33",
    "#ffaabb",
)
# Paul Tol's bright and light schemes, which the colour-blind can distinguish.

_COLOR = re.compile("#[0-9a-fA-F]{6}")

Array = np.ndarray[Any, Any]


class ClassMap(BaseModel):
    """Names, colours and label values of the classes, and the unlabelled values.

    Parameters
    ----------
    names
        Class names, in the order of the class indices.
    values
        Label value of each class, which `decode` writes.
    colors
        ``#rrggbb`` of each class; chosen automatically when left out.
    unlabelled
        Values that mean "not labelled": never trained on, never scored. Empty when
        every value is a class.
    rgb
        Colour of each class in an RGB-coded mask, or None when masks hold values.
    rest
        Name of the class that all other values belong to, or None if other values are
        errors. With it, object ids (1, 2, 3, ...) are one class, the foreground.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    names: tuple[str, ...]
    values: tuple[int, ...]
    colors: tuple[str, ...] = ()
    unlabelled: tuple[int, ...] = ()
    rgb: tuple[tuple[int, int, int], ...] | None = None
    rest: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _fill_colors(cls, raw: Any) -> Any:
        if not isinstance(raw, dict) or raw.get("colors"):
            return raw
        names = raw.get("names")
        count = len(names) if isinstance(names, (list, tuple)) else 0
        return raw | {"colors": default_colors(count)}

    @model_validator(mode="after")
    def _check(self) -> ClassMap:
        count = len(self.names)
        names, values = list(self.names), list(self.values)
        description = f"class map with names {names} and values {values}"
        if not 1 <= count <= IGNORE:
            raise LabelError(
                f"{description}: found {count} classes; 1 to {IGNORE} are possible."
            )
        lengths = {len(self.values), len(self.colors)}
        if self.rgb:
            lengths.add(len(self.rgb))
        if lengths != {count}:
            raise LabelError(
                f"{description}: every class needs one name, one value and one colour."
            )
        wrong = [color for color in self.colors if not _COLOR.fullmatch(color)]
        if wrong:
            raise LabelError(
                f"{description}: found the colour {wrong[0]!r}; a colour is # and six"
                " hexadecimal digits, for example '#4477aa'."
            )
        if len(set(self.names)) != count or len(set(self.values)) != count:
            raise LabelError(
                f"{description}: a name or a value is duplicated; each class needs its"
                " own."
            )
        if both := sorted(set(self.values) & set(self.unlabelled)):
            raise LabelError(
                f"{description}: {both} cannot be a class and unlabelled at once; drop"
                " it from one of the two."
            )
        if self.rest is not None and self.rest not in self.names:
            raise LabelError(
                f"{description}: rest={self.rest!r} is not one of the names."
            )
        return self

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def foreground(
        cls, names: tuple[str, str] = ("background", "foreground")
    ) -> ClassMap:
        """Make a map with 0 as background and all other values as foreground.

        Foreground (an object id, 255, ...) is written as 1.
        """
        return cls(names=names, values=(0, 1), rest=names[1])

    @classmethod
    def from_values(
        cls,
        values: Iterable[int],
        *,
        unlabelled: Sequence[int] = (),
        names: Sequence[str] = (),
    ) -> ClassMap:
        """Make a class for each value that is not unlabelled, in rising order.

        Raises
        ------
        LabelError
            When nothing is left to learn, or the values are too many to be classes.
        """
        distinct = sorted({int(value) for value in values})
        labelled = [value for value in distinct if value not in set(unlabelled)]
        if not labelled:
            raise LabelError(
                f"found only label values {distinct}, all unlabelled: nothing to learn "
                "from; paint some pixels of each "
                "class, or change which values are unlabelled."
            )
        if len(labelled) > MAX_INFERRED:
            raise LabelError(
                f"found {len(labelled)} label values ({labelled[0]} to "
                f"{labelled[-1]}): too many "
                "for classes; if they are object "
                "ids, ask for foreground against background (--foreground, "
                "ClassMap.foreground()); if the mask was smoothed or compressed with "
                "loss, save it again without."
            )
        return cls(
            names=tuple(names) or tuple(f"class {value}" for value in labelled),
            values=tuple(labelled),
            unlabelled=tuple(unlabelled),
        )

    def with_unlabelled(self, values: Sequence[int]) -> ClassMap:
        """Return the classes without those that have one of `values`.

        The values (packed colours, for an RGB-coded map) become unlabelled.

        Raises
        ------
        LabelError
            When no class is left.
        """
        if not values:
            return self
        keys = list(self.values)
        if self.rgb:
            keys = [red << 16 | green << 8 | blue for red, green, blue in self.rgb]
        indices = [i for i, key in enumerate(keys) if key not in set(values)]
        if not indices:
            raise LabelError(
                f"values {list(self.values)} are all unlabelled: nothing to learn; "
                "name fewer values."
            )
        names = tuple(self.names[i] for i in indices)
        return ClassMap(
            names=names,
            values=tuple(self.values[i] for i in indices),
            colors=tuple(self.colors[i] for i in indices),
            unlabelled=tuple(sorted({*self.unlabelled, *values})),
            rgb=tuple(self.rgb[i] for i in indices) if self.rgb else None,
            rest=self.rest if self.rest in names else None,
        )

    @classmethod
    def from_rgb(
        cls, colors: Sequence[tuple[int, int, int]], *, names: Sequence[str] = ()
    ) -> ClassMap:
        """Make the classes of an RGB-coded mask.

        They are written as values 0..K-1 with the same colours.
        """
        hexes = tuple("#{:02x}{:02x}{:02x}".format(*c) for c in colors)
        return cls(
            names=tuple(names) or hexes,
            values=tuple(range(len(colors))),
            colors=hexes,
            rgb=tuple((int(r), int(g), int(b)) for r, g, b in colors),
        )

    def encode(self, labels: Array) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Turn label values into class indices (uint8), `IGNORE` where unlabelled.

        Parameters
        ----------
        labels
            Integer or bool array of any shape; for an RGB-coded map, 3 (or 4) channels
            first.

        Raises
        ------
        LabelError
            When the array is not of integers, or holds a value that is neither a class
            nor unlabelled.
        """
        if self.rgb is not None and labels.ndim > 2 and labels.shape[0] in (3, 4):
            return self._encode_rgb(labels)
        keys, index = np.unique(check_integers(labels), return_inverse=True)
        table: dict[int, int | None] = {v: i for i, v in enumerate(self.values)}
        table |= dict.fromkeys(self.unlabelled, IGNORE)
        rest_index = None if self.rest is None else self.names.index(self.rest)
        values = [int(key) for key in keys]
        codes = [table.get(value, rest_index) for value in values]
        unknown = [value for value in values if table.get(value, rest_index) is None]
        if unknown:
            examples = ", ".join(map(str, unknown[:8]))
            if len(unknown) > 8:
                examples += ", ..."
            raise LabelError(
                f"label value {examples} is not in the class map (classes "
                f"{list(self.values)}, unlabelled "
                f"{list(self.unlabelled)}): add it as a class or name it unlabelled."
            )
        return np.asarray(codes, np.uint8)[index].reshape(labels.shape)

    def _encode_rgb(self, labels: Array) -> np.ndarray[Any, np.dtype[np.uint8]]:
        assert self.rgb is not None
        packed = pack_rgb(labels)
        out = np.full(packed.shape, IGNORE, np.uint8)
        is_known = np.zeros(packed.shape, bool)
        for index, color in enumerate(self.rgb):
            hit = packed == (color[0] << 16 | color[1] << 8 | color[2])
            out[hit] = index
            is_known |= hit
        for value in self.unlabelled:  # a packed colour
            is_known |= packed == value
        if not is_known.all():
            stray = f"#{int(packed[~is_known][0]):06x}"
            raise LabelError(
                f"colour {stray} is not in the class map {list(self.colors)}: add it "
                "as a class. If the mask was smoothed, resized or saved as JPEG, save "
                "it again without."
            )
        return out

    def decode(self, indices: Array) -> Array:
        """Turn class indices into label values.

        They have the smallest of uint8, uint16 and uint32 that holds them, or int32
        where there are negative ones.
        """
        table = np.asarray(self.values, self.dtype)
        return np.take(table, indices)  # twice as fast as table[indices]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype that `decode` writes."""
        return smallest_dtype(min(self.values), max(self.values))

    def table(self) -> list[dict[str, Any]]:
        """Return a row per class: index, name, value, color."""
        rows = zip(self.names, self.values, self.colors, strict=True)
        return [
            {"index": i, "name": n, "value": v, "color": c}
            for i, (n, v, c) in enumerate(rows)
        ]


def pack_rgb(labels: Array) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Pack colours (3 or 4 channels first) into single integers 0xRRGGBB."""
    red, green, blue = (labels[i].astype(np.int64) for i in range(3))
    packed: np.ndarray[Any, np.dtype[np.int64]] = red << 16 | green << 8 | blue
    return packed


def check_integers(labels: Array) -> Array:
    """Return `labels` if they are integers or bool.

    Raises
    ------
    LabelError
        For floats and other dtypes: cutting 0.33 to 0 would lose classes silently.
    """
    if labels.dtype.kind not in "uib":
        examples = ""
        if labels.dtype.kind == "f":
            values = ", ".join(f"{value:g}" for value in np.unique(labels)[:5])
            examples = f" ({values}, ...)"
        raise LabelError(
            "found labels of dtype "
            f"{labels.dtype}{examples}; labels must be "
            "integers: "
            "save them as uint8 or uint16 with one whole number a class."
        )
    return labels


def whole_numbers(labels: Array) -> Array:
    """Return `labels` as integers if they are integers, bool, or whole floats.

    Raises
    ------
    LabelError
        For other floats and other dtypes; see `check_integers`.
    """
    if labels.dtype.kind != "f" or not labels.size:
        return check_integers(labels)
    # The inequality is False for NaN and infinities too.
    is_whole = (np.trunc(labels) == labels) & (np.abs(labels) < np.float64(2**31))
    if not is_whole.all():
        return check_integers(labels)
    return labels.astype(smallest_dtype(int(labels.min()), int(labels.max())))


def smallest_dtype(low: int, high: int) -> np.dtype[Any]:
    """Return the smallest unsigned dtype for `low`..`high`; int32 if `low` is negative.

    Raises
    ------
    LabelError
        When no dtype that TIFF viewers read holds them.
    """
    choices = (np.uint8, np.uint16, np.uint32) if low >= 0 else (np.int32,)
    for dtype in choices:
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return np.dtype(dtype)
    raise LabelError(
        f"label values {low} to {high} do not fit 32-bit integers; renumber the labels."
    )


def default_colors(count: int) -> tuple[str, ...]:
    """Return `count` distinct colours; the first ten are safe for the colour-blind."""
    colors = list(_COLORS[:count])
    for i in range(len(colors), count):
        red, green, blue = colorsys.hsv_to_rgb(
            (i * 0.618034) % 1.0, 0.65, 0.85 - 0.25 * (i % 3) / 2
        )
        colors.append(
            "#{:02x}{:02x}{:02x}".format(*(round(c * 255) for c in (red, green, blue)))
        )
    return tuple(colors)
