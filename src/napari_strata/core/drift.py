"""Drift: whether grey values and structures of an image occurred in training.

A model keeps histograms of tiles of its training images, and the energies of octave
bands. The histogram of another image is fitted by a mixture of those of the tiles: the
same materials in other proportions are explained, other grey values are not. The band
energies tell blur, noise and another pixel size, which histograms hardly see.

Everything here is numpy. `training.drift` measures a reference, and `inference.drift`
compares an image.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from napari_strata.core.events import Message
from napari_strata.core.normalization import Scale

Array = np.ndarray[Any, Any]

TILES = 256
"""Tiles of a reference, at most."""
SIDE = 64
"""Side of a tile in pixels."""
BINS = 64
"""Bins of a histogram."""
SPAN = 4.0
"""Spreads on either side of the centre that the bins cover.

Values beyond count in the first and the last bin.
"""
BANDS = 4
"""Octave bands: differences over 1, 2, 4 and 8 pixels."""

NOTICE_SHARE, ASK_SHARE = 0.01, 0.05
"""Unexplained shares from which there is a notice, and a question, at least."""
NOTICE_DETAIL = 0.25
"""Change of detail from which there is a notice, at least."""

STEPS = 300
"""Steps of expectation and maximisation."""

LARGEST_TABLE = 2**17
"""Range of integers up to which each value is counted by itself."""

FLOOR = 1e-6
"""Energy of a band, in squared spreads, below which there is nothing but rounding."""


@dataclass(frozen=True, eq=False)
class Appearance:
    """Grey values and structures of a plane or a tile.

    Parameters
    ----------
    histogram
        Share of the pixels in each bin, smoothed, float64 (channels, `BINS`).
    energies
        Mean squared differences in each octave band, in squared spreads, float64
        (channels, `BANDS`); NaN where the plane is too small.
    pixels
        Number of valid pixels.
    """

    histogram: Array
    energies: Array
    pixels: int


@dataclass(frozen=True, eq=False)
class DriftReference:
    """What a model knows of the appearance of its training images.

    Parameters
    ----------
    center, spread
        Of each channel, in normalised grey values: bins cover `SPAN` spreads around the
        centre. They are 0 and 1 where the model's normalisation measures its scale on
        images.
    histograms
        Of the tiles, and of all pixels of each class, float16 (channels, tiles and
        classes, `BINS`).
    energies
        Mean energies of the octave bands, float64 (channels, `BANDS`).
    share, detail
        Medians of unexplained share and of detail of the training images, each
        compared with the others; NaN for a single image of one plane.
    tile_share, tile_detail
        The same of single tiles, each compared with all others.
    """

    center: tuple[float, ...]
    spread: tuple[float, ...]
    histograms: Array
    energies: Array
    share: float
    detail: float
    tile_share: float
    tile_detail: float

    def limits(self, pixels: int) -> tuple[float, float, float]:
        """Return the limits for a plane with so many valid pixels.

        A small plane differs more by chance: the deviation of single tiles counts,
        divided by a root of the number of tiles in it. Bands average quickly, by the
        square root. Histograms of neighbouring tiles are alike, so that of theirs the
        cube root fits crops better (see docs/drift.md).

        Returns
        -------
        share and detail from which there is a notice, and share from which there is a
        question.
        """
        tiles = max(pixels / SIDE**2, 1.0)
        share = _largest(
            NOTICE_SHARE, 3 * self.share, 3 * self.tile_share / math.cbrt(tiles)
        )
        detail = _largest(
            NOTICE_DETAIL, 3 * self.detail, 3 * self.tile_detail / math.sqrt(tiles)
        )
        return share, detail, max(ASK_SHARE, 2 * share)

    def compare(self, appearance: Appearance) -> tuple[Array, Array]:
        """Compare a plane with the training tiles.

        Returns
        -------
        unexplained share, and signed change of detail, of each channel. A negative
        change means smoother than in training.
        """
        shares = []
        for tiles, histogram in zip(self.histograms, appearance.histogram, strict=True):
            shares.append(unexplained_shares(histogram[None], tiles)[0])
        return np.array(shares), detail_changes(appearance.energies, self.energies)

    def to_text(self) -> str:
        """Write the reference as text, for the header of a model file."""
        return json.dumps(
            {
                "center": self.center,
                "spread": self.spread,
                "histograms": _encode(self.histograms, "<f2"),
                "energies": _encode(self.energies, "<f8"),
                "share": _to_json(self.share),
                "detail": _to_json(self.detail),
                "tile_share": _to_json(self.tile_share),
                "tile_detail": _to_json(self.tile_detail),
            }
        )

    @classmethod
    def from_text(cls, text: str) -> DriftReference | None:
        """Read what `to_text` wrote; None for ``null``."""
        values = json.loads(text)
        if values is None:
            return None
        medians = {
            name: _from_json(values[name])
            for name in ("share", "detail", "tile_share", "tile_detail")
        }
        return cls(
            center=tuple(values["center"]),
            spread=tuple(values["spread"]),
            histograms=_decode(values["histograms"], "<f2"),
            energies=_decode(values["energies"], "<f8"),
            **medians,
        )


def measure_appearance(
    blocks: Sequence[Array],
    scale: Scale,
    center: Sequence[float],
    spread: Sequence[float],
) -> Appearance | None:
    """Measure the appearance of a plane from blocks of it, each (C, Y, X).

    Parameters
    ----------
    scale
        The model's scale for this image.
    center, spread
        As those of `DriftReference`.

    Returns
    -------
    None when no pixel is valid.
    """
    histograms, energies = [], []
    pixels = 0
    for channel in range(len(blocks[0])):
        bins = Bins.of(scale, channel, center, spread)
        planes = [block[channel] for block in blocks]
        counts = np.sum([bins.count(plane) for plane in planes], axis=0)
        total = float(counts.sum())
        if not total:
            return None
        pixels = round(total)
        histograms.append(smooth(counts / total))
        energies.append(_band_energies(planes, bins))
    return Appearance(np.array(histograms), np.array(energies), pixels)


@dataclass(frozen=True)
class Bins:
    """`BINS` bins of grey values, over `SPAN` spreads around the centre."""

    center: float
    spread: float

    @classmethod
    def of(
        cls,
        scale: Scale,
        channel: int,
        center: Sequence[float],
        spread: Sequence[float],
    ) -> Bins:
        """Return the bins of a channel; parameters as those of `measure_appearance`."""
        return cls(
            scale.center[channel] + scale.spread[channel] * center[channel],
            scale.spread[channel] * spread[channel],
        )

    def count(self, values: Array) -> Array:
        """Count grey values in the bins.

        An integer stands for all values that are rounded to it, also where it is stored
        as a float. So bins that are narrower than one grey value are not empty in turn.
        Values that are not finite do not count.
        """
        edges = self.center + self.spread * np.linspace(-SPAN, SPAN, BINS + 1)
        values = values.ravel()
        if values.dtype.kind == "f":
            values = values[np.isfinite(values)]
        table = _count_integers(values)
        if table is not None:
            first, counts = table
            bounds = first - 0.5 + np.arange(len(counts) + 1)
            below = np.concatenate([[0], np.cumsum(counts)]).astype(np.float64)
            at_edges = np.interp(edges, bounds, below)
            at_edges[0], at_edges[-1] = 0.0, below[-1]
            return np.diff(at_edges)
        bins = (values.astype(np.float64) - edges[0]) * (BINS / (edges[-1] - edges[0]))
        bins = np.clip(bins, 0, BINS - 1).astype(np.intp)
        return np.bincount(bins, minlength=BINS).astype(np.float64)


def _count_integers(values: Array) -> tuple[int, Array] | None:
    """Smallest value, and counts from it on; None for a wide range or fractions."""
    if not values.size:
        return None
    if values.dtype.kind == "b":
        values = values.astype(np.uint8)
    if values.dtype == np.uint8:
        return 0, np.bincount(values, minlength=256)
    low, high = values.min(), values.max()
    if float(high) - float(low) >= LARGEST_TABLE:
        return None
    if values.dtype.kind == "f" and not (values == np.rint(values)).all():
        return None
    first = int(low)
    return first, np.bincount(values.astype(np.int64) - first)


def smooth(shares: Array) -> Array:
    """Spread histograms (..., bins) by one bin; their sums stay."""
    sides = [(0, 0)] * (shares.ndim - 1)
    padded = np.pad(shares, [*sides, (1, 1)], mode="symmetric")
    return 0.25 * padded[..., :-2] + 0.5 * shares + 0.25 * padded[..., 2:]


def _band_energies(planes: Sequence[Array], bins: Bins) -> Array:
    """Mean squared differences within blocks of 2 x 2 pixels, for each octave.

    Values beyond the bins are cut off: a hot pixel is no structure. Blocks with a pixel
    that is not finite do not count.
    """
    sums, counts = np.zeros(BANDS), np.zeros(BANDS)
    for plane in planes:
        with np.errstate(over="ignore"):
            values = plane.astype(np.float32)
        if plane.dtype.kind == "f":
            values = np.where(np.isfinite(values), values, np.float32(np.nan))
        values = np.clip((values - bins.center) / bins.spread, -SPAN, SPAN)
        for band in range(BANDS):
            rows, columns = values.shape[0] // 2 * 2, values.shape[1] // 2 * 2
            if not (rows and columns):
                break
            corners = [
                values[y:rows:2, x:columns:2] for y in range(2) for x in range(2)
            ]
            mean = (corners[0] + corners[1] + corners[2] + corners[3]) / 4
            energy = sum((corner - mean) ** 2 for corner in corners)
            is_valid = np.isfinite(mean)
            sums[band] += float(np.sum(energy, where=is_valid, dtype=np.float64)) / 4
            counts[band] += int(is_valid.sum())
            values = mean
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def detail_changes(energies: Array, reference: Array) -> Array:
    """Largest changes of the log2 ratio of neighbouring band energies, with its sign.

    Contrast changes all bands alike and does not count.

    Parameters
    ----------
    energies, reference
        Of shape (..., `BANDS`).
    """
    changes = _log_ratios(energies) - _log_ratios(reference)
    changes = np.where(np.isfinite(changes), changes, 0.0)
    largest = np.abs(changes).argmax(-1)
    signed: Array = np.take_along_axis(changes, largest[..., None], -1)[..., 0]
    return signed


def _log_ratios(energies: Array) -> Array:
    ratios: Array = np.diff(-np.log2(np.asarray(energies) + FLOOR), axis=-1)
    return ratios


def fit_mixture(histograms: Array, tiles: Array, allowed: Array | None = None) -> Array:
    """Fit each histogram by a mixture of those of tiles, by expectation maximisation.

    The weights are those of the largest likelihood.

    Parameters
    ----------
    histograms
        (n, bins), each with the sum 1.
    tiles
        (tiles, bins), each with the sum 1.
    allowed
        Bool (n, tiles): the tiles that a histogram may be made of. All by default.

    Returns
    -------
    weights (n, tiles), each row with the sum 1.
    """
    weights = np.ones((len(histograms), len(tiles)))
    if allowed is not None:
        weights *= allowed
    weights /= weights.sum(1, keepdims=True)
    for _ in range(STEPS):
        mixtures = np.maximum(weights @ tiles, 1e-12)
        weights *= (histograms / mixtures) @ tiles.T
        weights /= np.maximum(weights.sum(1, keepdims=True), 1e-300)
    return weights


def unexplained_shares(
    histograms: Array, tiles: Array, allowed: Array | None = None
) -> Array:
    """Share of each histogram that no mixture of the tiles explains, 0 to 1.

    It is half the sum of absolute differences. Parameters are those of `fit_mixture`.
    """
    # float16 has changed the sums a little.
    tiles = tiles.astype(np.float64)
    tiles = tiles / tiles.sum(1, keepdims=True)
    mixtures = fit_mixture(histograms, tiles, allowed) @ tiles
    shares: Array = 0.5 * np.abs(histograms - mixtures).sum(1)
    return shares


@dataclass(frozen=True)
class PlaneDrift:
    """Comparison of one plane with the training images.

    Parameters
    ----------
    index
        T and Z of the plane, those that the image has.
    unexplained
        Share of the grey values that do not occur in the training images, 0 to 1; of
        several channels, the largest.
    detail
        Largest change of the log2 ratio of neighbouring octave bands; negative where
        the plane is smoother than the training images.
    share_limit, detail_limit, ask_limit
        Share and detail from which there is a notice, and share from which there is a
        question.
    """

    index: Mapping[str, int]
    unexplained: float
    detail: float
    share_limit: float
    detail_limit: float
    ask_limit: float

    @property
    def share_excess(self) -> float:
        """Ratio of the unexplained share to its limit."""
        return self.unexplained / self.share_limit

    @property
    def detail_excess(self) -> float:
        """Ratio of the change of detail to its limit."""
        return abs(self.detail) / self.detail_limit

    @property
    def excess(self) -> float:
        """The larger of both ratios."""
        return max(self.share_excess, self.detail_excess)

    @property
    def level(self) -> str:
        """``ask``, ``notice``, or empty."""
        if self.unexplained > self.ask_limit:
            return "ask"
        return "notice" if self.excess > 1 else ""


@dataclass(frozen=True)
class Drift:
    """How far an image is from those that a model was trained on.

    Parameters
    ----------
    name
        Of the image.
    planes
        Planes that were compared, spread evenly over the image.
    kind
        Kind of the model's normalisation.
    notes
        What else differs from the training images, in words: pixel size, dtype.
    doubts
        What the range of grey values says to a model of an earlier version, which has
        no reference, in words.
    is_known
        False for such a model.
    """

    name: str
    planes: tuple[PlaneDrift, ...] = ()
    kind: str = "physical"
    notes: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    is_known: bool = True

    @property
    def level(self) -> str:
        """``ask`` where labels may well be wrong, ``notice``, or empty: all is usual.

        The most unusual plane counts.
        """
        levels = {plane.level for plane in self.planes}
        if "ask" in levels or self.doubts:
            return "ask"
        return "notice" if "notice" in levels or self.notes else ""

    @property
    def unexplained(self) -> float:
        """Largest unexplained share of a plane, 0 to 1; NaN without a reference."""
        return max((plane.unexplained for plane in self.planes), default=math.nan)

    @property
    def detail(self) -> float:
        """Largest change of detail of a plane; NaN without a reference."""
        return max((abs(plane.detail) for plane in self.planes), default=math.nan)

    @property
    def excess(self) -> float:
        """Largest ratio of share or detail of a plane to its limit."""
        return max((plane.excess for plane in self.planes), default=0.0)

    @property
    def questions(self) -> tuple[str, ...]:
        """What makes wrong labels likely, in words; empty unless `level` is ``ask``."""
        asking = [plane for plane in self.planes if plane.level == "ask"]
        texts = list(self.doubts)
        if asking:
            texts.append(self._describe_share(max(asking, key=lambda p: p.unexplained)))
        return tuple(texts)

    @property
    def sentences(self) -> tuple[str, ...]:
        """What is unusual, in words, and what it may come from."""
        texts = [*self.notes, *self.questions]
        by_share = max(self.planes, key=lambda p: p.share_excess, default=None)
        if by_share is not None and by_share.share_excess > 1:
            if not any(plane.level == "ask" for plane in self.planes):
                texts.append(self._describe_share(by_share))
        by_detail = max(self.planes, key=lambda p: p.detail_excess, default=None)
        if by_detail is not None and by_detail.detail_excess > 1:
            texts.append(self._describe_detail(by_detail))
        return tuple(texts)

    @property
    def messages(self) -> list[Message]:
        """The sentences as messages; those of a mere notice are no warnings."""
        serious = {*self.notes, *self.questions}
        return [
            Message(text, "warning" if text in serious else "info")
            for text in self.sentences
        ]

    def as_dict(self) -> dict[str, Any]:
        """Return plain data, with None for what is not known."""
        planes = []
        for plane in self.planes:
            planes.append(asdict(plane) | {"level": plane.level})
        return {
            "name": self.name,
            "level": self.level,
            "is_known": self.is_known,
            "unexplained": _to_json(self.unexplained),
            "detail": _to_json(self.detail),
            "sentences": list(self.sentences),
            "planes": planes,
        }

    def describe(self) -> str:
        """Result in words, also where nothing is unusual."""
        lines = list(self.sentences)
        if not self.is_known:
            lines.append(
                f"{self.name}: the model is of an earlier version and has no reference "
                "of its training images, so only the range of the grey values was "
                "compared; train again for a closer look."
            )
        elif not lines:
            lines.append(
                f"{self.name}: looks like the training images "
                f"({100 * self.unexplained:.2g} % of the grey values do not occur in "
                "them)."
            )
        return "\n".join(lines)

    def _describe_share(self, plane: PlaneDrift) -> str:
        scaled = ""
        if self.kind == "relative":
            scaled = ", each scaled to its own range"
        text = (
            f"{self.name}: {100 * plane.unexplained:.2g} % of the grey values"
            f"{self._where(plane)} do not occur in the training images{scaled}."
        )
        if plane.level == "ask":
            question = "Was the scan calibrated in the same way?"
            if self.kind == "relative":
                question = "Was the image taken in the same way?"
            text += f" {question}"
        return text

    def _describe_detail(self, plane: PlaneDrift) -> str:
        if plane.detail < 0:
            change, causes = "smoother", "blurred, denoised or enlarged"
        else:
            change, causes = "rougher", "noisier, sharpened or reduced"
        return (
            f"{self.name}: fine structures{self._where(plane)} are {change} than in the"
            f" training images (detail {plane.detail:+.2g}). Is it {causes}?"
        )

    def _where(self, plane: PlaneDrift) -> str:
        """Name the plane of several that were compared."""
        if len(self.planes) < 2:
            return ""
        return " of " + " ".join(f"{axis}={i}" for axis, i in plane.index.items())


def _largest(*values: float) -> float:
    return max(value for value in values if not math.isnan(value))


def _encode(array: Array, dtype: str) -> dict[str, Any]:
    data = np.ascontiguousarray(array, np.dtype(dtype)).tobytes()
    text = base64.b64encode(data).decode("ascii")
    return {"shape": list(array.shape), "data": text}


def _decode(value: Mapping[str, Any], dtype: str) -> Array:
    array = np.frombuffer(base64.b64decode(value["data"]), np.dtype(dtype))
    return array.reshape(value["shape"]).astype(np.dtype(dtype).newbyteorder("="))


def _to_json(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _from_json(value: float | None) -> float:
    return math.nan if value is None else float(value)
