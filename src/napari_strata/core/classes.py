"""ClassMap: the only answer to what a label value means.

Label values (whatever numbers or colours a person painted) become class indices 0..K-1 with `IGNORE` for pixels that
carry no label, and back. Nothing else in the project maps classes.
"""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, model_validator

from napari_strata.core.errors import LabelError

IGNORE = 255
"""Class index of pixels that are not labelled; so a class map has at most 255 classes."""

MAX_INFERRED = 64
"""More distinct values than this are taken as instances or an image, not as classes."""

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
# Paul Tol's bright and light schemes: told apart by the colour-blind.

Array = np.ndarray[Any, Any]


class ClassMap(BaseModel):
    """Names, colours and label values of the classes, and which values mean "not labelled".

    Parameters
    ----------
    names
        class names, in the order of the class indices.
    values
        label value of each class; what `decode` writes.
    colors
        ``#rrggbb`` of each class; chosen for you when left out.
    unlabelled
        values that mean "not labelled": never trained on, never scored. Empty when every value is a class.
    rgb
        colour of each class in an RGB-coded mask, or None when masks hold values.
    rest
        name of the class that takes every value not listed (instance ids as foreground), or None.
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
        if isinstance(raw, dict) and not raw.get("colors"):
            return raw | {"colors": default_colors(len(raw.get("names", ())))}
        return raw

    @model_validator(mode="after")
    def _check(self) -> ClassMap:
        count = len(self.names)
        found = (
            f"class map with names {list(self.names)} and values {list(self.values)}"
        )
        if not 1 <= count <= IGNORE:
            raise LabelError(
                f"{found}: found {count} classes; 1 to {IGNORE} are possible."
            )
        if (
            len(self.values) != count
            or len(self.colors) != count
            or (self.rgb and len(self.rgb) != count)
        ):
            raise LabelError(
                f"{found}: every class needs one name, one value and one colour."
            )
        if len(set(self.names)) != count or len(set(self.values)) != count:
            raise LabelError(
                f"{found}: a name or a value stands twice; each class needs its own."
            )
        if both := sorted(set(self.values) & set(self.unlabelled)):
            raise LabelError(
                f"{found}: {both} cannot be a class and unlabelled at once; drop it "
                "from one of the two."
            )
        if self.rest is not None and self.rest not in self.names:
            raise LabelError(f"{found}: rest={self.rest!r} is not one of the names.")
        return self

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def foreground(
        cls, names: tuple[str, str] = ("background", "foreground")
    ) -> ClassMap:
        """0 is background, every other value (an instance id, 255, ...) is foreground, written as 1."""
        return cls(names=names, values=(0, 1), rest=names[1])

    @classmethod
    def from_values(
        cls,
        values: Iterable[int],
        *,
        unlabelled: Sequence[int] = (),
        names: Sequence[str] = (),
    ) -> ClassMap:
        """A class for each value that is not unlabelled, in rising order.

        Raises
        ------
        LabelError
            when nothing is left to learn, or the values are too many to be classes.
        """
        found = sorted({int(v) for v in values})
        kept = [v for v in found if v not in set(unlabelled)]
        if not kept:
            raise LabelError(
                f"found only label values {found}, all unlabelled: nothing to learn "
                "from; paint some pixels of each "
                "class, or change which values are unlabelled."
            )
        if len(kept) > MAX_INFERRED:
            raise LabelError(
                f"found {len(kept)} label values ({kept[0]} to {kept[-1]}): too many "
                "for classes; if they are object "
                "ids, ask for foreground against background (--foreground, "
                "ClassMap.foreground())."
            )
        return cls(
            names=tuple(names) or tuple(f"class {v}" for v in kept),
            values=tuple(kept),
            unlabelled=tuple(unlabelled),
        )

    def with_unlabelled(self, values: Sequence[int]) -> ClassMap:
        """The same classes, less those whose values (packed colours of an RGB-coded map) are to be unlabelled.

        Raises
        ------
        LabelError
            when no class is left.
        """
        if not values:
            return self
        keys = (
            [r << 16 | g << 8 | b for r, g, b in self.rgb] if self.rgb else self.values
        )
        kept = [i for i, key in enumerate(keys) if key not in set(values)]
        if not kept:
            raise LabelError(
                f"values {list(self.values)} are all unlabelled: nothing to learn; "
                "name fewer values."
            )
        names = tuple(self.names[i] for i in kept)
        return ClassMap(
            names=names,
            values=tuple(self.values[i] for i in kept),
            colors=tuple(self.colors[i] for i in kept),
            unlabelled=tuple(sorted({*self.unlabelled, *values})),
            rgb=tuple(self.rgb[i] for i in kept) if self.rgb else None,
            rest=self.rest if self.rest in names else None,
        )

    @classmethod
    def from_rgb(
        cls, colors: Sequence[tuple[int, int, int]], *, names: Sequence[str] = ()
    ) -> ClassMap:
        """Classes of an RGB-coded mask; written back as values 0..K-1 with the same colours."""
        hexes = tuple("#{:02x}{:02x}{:02x}".format(*c) for c in colors)
        return cls(
            names=tuple(names) or hexes,
            values=tuple(range(len(colors))),
            colors=hexes,
            rgb=tuple((int(r), int(g), int(b)) for r, g, b in colors),
        )

    def encode(self, labels: Array) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Label values -> class indices 0..K-1 (uint8), `IGNORE` where unlabelled.

        Parameters
        ----------
        labels
            integer or bool array of any shape; for an RGB-coded map, 3 (or 4) channels first.

        Raises
        ------
        LabelError
            when the array is not of integers, or holds a value that is neither a class nor unlabelled.
        """
        if self.rgb is not None and labels.ndim > 2 and labels.shape[0] in (3, 4):
            return self._encode_rgb(labels)
        keys, index = np.unique(check_integers(labels), return_inverse=True)
        table = {v: i for i, v in enumerate(self.values)} | dict.fromkeys(
            self.unlabelled, IGNORE
        )
        other = self.names.index(self.rest) if self.rest is not None else None
        codes = [table.get(int(key), other) for key in keys]
        if unknown := [int(k) for k, c in zip(keys, codes, strict=True) if c is None]:
            shown = ", ".join(map(str, unknown[:8])) + (
                ", ..." if len(unknown) > 8 else ""
            )
            raise LabelError(
                f"label value {shown} is not in the class map (classes "
                f"{list(self.values)}, unlabelled "
                f"{list(self.unlabelled)}): add it as a class or name it unlabelled."
            )
        return np.asarray(codes, np.uint8)[index].reshape(labels.shape)

    def _encode_rgb(self, labels: Array) -> np.ndarray[Any, np.dtype[np.uint8]]:
        assert self.rgb is not None
        packed = pack_rgb(labels)
        out = np.full(packed.shape, IGNORE, np.uint8)
        known = np.zeros(packed.shape, bool)
        for index, color in enumerate(self.rgb):
            hit = packed == (color[0] << 16 | color[1] << 8 | color[2])
            out[hit] = index
            known |= hit
        for value in self.unlabelled:  # a packed colour
            known |= packed == value
        if not known.all():
            stray = f"#{int(packed[~known][0]):06x}"
            raise LabelError(
                f"colour {stray} is not in the class map {list(self.colors)}: add it "
                "as a class."
            )
        return out

    def decode(self, indices: Array) -> Array:
        """Class indices -> label values, in the smallest of uint8/16/32 that holds them (int32 for negative ones)."""
        table = np.asarray(self.values, self.dtype)
        return table[indices]

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype that `decode` writes."""
        return smallest_dtype(min(self.values), max(self.values))

    def table(self) -> list[dict[str, Any]]:
        """One row a class: index, name, value, color."""
        rows = zip(self.names, self.values, self.colors, strict=True)
        return [
            {"index": i, "name": n, "value": v, "color": c}
            for i, (n, v, c) in enumerate(rows)
        ]


def pack_rgb(labels: Array) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Colours (3 or 4 channels first) as single integers 0xRRGGBB."""
    red, green, blue = (labels[i].astype(np.int64) for i in range(3))
    packed: np.ndarray[Any, np.dtype[np.int64]] = red << 16 | green << 8 | blue
    return packed


def check_integers(labels: Array) -> Array:
    """`labels` as integers; bool counts.

    Raises
    ------
    LabelError
        for floats and other dtypes: cutting 0.33 to 0 would lose classes without a word.
    """
    if labels.dtype.kind not in "uib":
        shown = (
            ", ".join(f"{v:g}" for v in np.unique(labels)[:5])
            if labels.dtype.kind == "f"
            else ""
        )
        raise LabelError(
            "found labels of dtype "
            f"{labels.dtype}{f' ({shown}, ...)' if shown else ''}; labels must be "
            "integers: "
            "save them as uint8 or uint16 with one whole number a class."
        )
    return labels


def smallest_dtype(low: int, high: int) -> np.dtype[Any]:
    """The smallest unsigned integer dtype that holds `low`..`high`; int32 when `low` is negative.

    Raises
    ------
    LabelError
        when no dtype that TIFF viewers read holds them.
    """
    choices = (np.uint8, np.uint16, np.uint32) if low >= 0 else (np.int32,)
    for dtype in choices:
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return np.dtype(dtype)
    raise LabelError(
        f"label values {low} to {high} do not fit 32-bit integers; renumber the labels."
    )


def default_colors(count: int) -> tuple[str, ...]:
    """`count` distinct colours as ``#rrggbb``, the first ten safe for the colour-blind."""
    colors = list(_COLORS[:count])
    for i in range(len(colors), count):
        red, green, blue = colorsys.hsv_to_rgb(
            (i * 0.618034) % 1.0, 0.65, 0.85 - 0.25 * (i % 3) / 2
        )
        colors.append(
            "#{:02x}{:02x}{:02x}".format(*(round(c * 255) for c in (red, green, blue)))
        )
    return tuple(colors)
