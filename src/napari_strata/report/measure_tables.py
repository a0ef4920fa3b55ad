"""Content of ``measures.json`` as tables and curves, for the page and the dock."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from napari_strata.measure.fractions import NO_MODEL

CONNECTED = "Connected pieces"
SURFACE = "Specific surface"
CHORDS = "Chord lengths"
CORRELATION = "Two-point correlation"
VOLUME = "Representative volume"
ROCK = "From specimen to rock"
TOPICS = (CONNECTED, SURFACE, CHORDS, CORRELATION, VOLUME, ROCK)

ABSENT = "\N{EN DASH}"

EXPLANATIONS = {
    CONNECTED: (
        "Pieces are connected by faces of voxels. Open ones reach the border of the"
        " region. A class that percolates along an axis has pieces from the first"
        " section to the last one."
    ),
    SURFACE: (
        "Area in a unit of the region's volume, from the faces of voxels across each"
        " axis; the mean is 2/3 of all faces, which is right for an isotropic surface."
    ),
    CHORDS: (
        "Mean length of straight pieces within a class. Chords that the border of the"
        " region cuts are left out."
    ),
    CORRELATION: (
        "Probability that two points at a distance lie in the same class. It falls from"
        " the fraction to its square, over the size of a grain."
    ),
    VOLUME: (
        "Standard deviation of the fraction in cubes (squares, of a plane), by their"
        " side. A volume is representative where it is as small as you need."
    ),
    ROCK: (
        "Error of the fraction because the specimen is small, from the integral range."
        " Errors of the labels come on top. It says nothing if the rock differs"
        " elsewhere."
    ),
}


@dataclass(frozen=True)
class Column:
    """Heading of a column, and what it means."""

    text: str
    tip: str = ""


@dataclass(frozen=True)
class ClassTexts:
    """Texts of a class in a table, with tips."""

    name: str
    color: str
    texts: tuple[str, ...]
    tips: tuple[str, ...] = ()


@dataclass(frozen=True)
class TableContent:
    """Columns, the first for the class, and rows."""

    columns: tuple[Column, ...]
    rows: tuple[ClassTexts, ...]


@dataclass(frozen=True)
class CurveData:
    """A curve of a class, with a band if `low` and `high` are given."""

    name: str
    color: str
    xs: tuple[float, ...]
    ys: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()


@dataclass(frozen=True)
class CurvesContent:
    """Curves and the titles of their axes."""

    curves: tuple[CurveData, ...]
    x_title: str
    y_title: str


@dataclass(frozen=True)
class TopicContent:
    """A table, curves or both, and an explanation; `why` says why there is nothing."""

    explanation: str
    table: TableContent | None = None
    curves: CurvesContent | None = None
    why: str = ""


def fraction_table(measures: Mapping[str, Any]) -> TableContent:
    """Return the fractions with their interval, or the reason why there is none."""
    columns = (
        Column("Class"),
        Column("Fraction", "Share of the labelled pixels in the region"),
        Column("95 % interval", "From the model's errors in its validation"),
    )
    rows = []
    for name, fraction in measures["fractions"].items():
        estimate, count = fraction["estimate"], fraction["count"]
        interval = ABSENT
        if fraction["low"] is not None:
            interval = f"{percent(fraction['low'])} \N{EN DASH} " + percent(
                fraction["high"]
            )
        tip = f"Counted: {percent(count)} %"
        if estimate != count:
            tip += f"; corrected by the mean error of the model: {percent(estimate)} %"
        why = fraction["why"]
        texts = (f"{percent(estimate)} %", interval)
        tips = (tip, f"{why[:1].upper()}{why[1:]}." if why else "")
        rows.append(ClassTexts(name, _color(measures, name), texts, tips))
    return TableContent(columns, tuple(rows))


def why_no_interval(measures: Mapping[str, Any]) -> str:
    """Say why classes have no interval; empty if all have one."""
    reasons: dict[str, list[str]] = {}
    for name, fraction in measures["fractions"].items():
        if fraction["interval"] == "none":
            reasons.setdefault(fraction["why"], []).append(name)
    if list(reasons) == [NO_MODEL]:
        return "No interval: choose the model that predicted these labels."
    if len(reasons) == 1 and len(*reasons.values()) == len(measures["fractions"]):
        return f"No interval: {next(iter(reasons))}."
    parts = [f"{', '.join(names)}: {why}." for why, names in reasons.items()]
    return " ".join(["No interval for", *parts]) if parts else ""


def profile_curves(measures: Mapping[str, Any]) -> CurvesContent | None:
    """Return the fractions along the axis, in percent; None without a profile."""
    profile = measures.get("profile")
    if not profile:
        return None
    xs = tuple(profile["positions"])
    curves = []
    for name, values in profile["fractions"].items():
        low = _percents(values["low"])
        has_band = any(map(math.isfinite, low))
        curves.append(
            CurveData(
                name,
                _color(measures, name),
                xs,
                _percents(values["estimate"]),
                low if has_band else (),
                _percents(values["high"]) if has_band else (),
            )
        )
    axis, unit = profile["axis"], short_unit(profile["unit"])
    return CurvesContent(tuple(curves), f"{axis} ({unit})", "%")


def topic_content(measures: Mapping[str, Any], topic: str) -> TopicContent:
    """Return what the dock shows about a measure of shape."""
    makers = {
        CONNECTED: _connected,
        SURFACE: _surface,
        CHORDS: _chords,
        CORRELATION: _correlation,
        VOLUME: _representative_volume,
        ROCK: _rock,
    }
    why = measures.get("why_no_shape", "")
    if why:
        return TopicContent(EXPLANATIONS[topic], why=f"Not measured: {why}.")
    return makers[topic](measures)


def percent(share: float) -> str:
    """Format a share as percent, without the sign, with two decimals."""
    return f"{100 * share:.2f}"


def short_unit(unit: str) -> str:
    """Return the sign of a unit of length."""
    signs = {"micrometer": "µm", "nanometer": "nm", "millimeter": "mm", "pixel": "px"}
    return signs.get(unit, unit)


def _connected(measures: Mapping[str, Any]) -> TopicContent:
    by_class = measures["connected"]
    explanation = EXPLANATIONS[CONNECTED]
    if "why" in by_class:
        return TopicContent(explanation, why=by_class["why"])
    rows, reasons = [], []
    for name, facts in by_class.items():
        texts = [f"{facts['pieces']:,}", _tenths(facts["open"])]
        tips = [
            f"The largest has {_tenths(facts['largest'])} % of the class",
            f"{_tenths(facts['closed'])} % are closed",
        ]
        for axis in "zyx":
            share = facts["through"][axis]
            texts.append(ABSENT if share is None else "no")
            if share:
                texts[-1] = _tenths(share)
            reason = facts["why"].get(axis, "")
            tips.append(reason)
            if reason and reason not in reasons:
                reasons.append(reason)
        color = _color(measures, name)
        rows.append(ClassTexts(name, color, tuple(texts), tuple(tips)))
    columns = (
        Column("Class"),
        Column("Pieces", "Number of connected pieces"),
        Column("Open %", "Share of the class in pieces that reach the border"),
        Column("Z %", "Share of the class that connects both ends along Z"),
        Column("Y %", "Share of the class that connects both ends along Y"),
        Column("X %", "Share of the class that connects both ends along X"),
    )
    if reasons:
        explanation += f" {ABSENT} means: {'; '.join(reasons)}."
    return TopicContent(explanation, TableContent(columns, tuple(rows)))


def _surface(measures: Mapping[str, Any]) -> TopicContent:
    unit = short_unit(measures["about"]["unit"])
    by_class = measures["surface"]
    axes: tuple[str, ...] = ()
    rows = []
    for name, facts in by_class.items():
        axes = tuple(facts["by_axis"])
        values = [facts["specific"], facts["of_class"]]
        values += [facts["by_axis"][axis] for axis in axes]
        texts = tuple(f"{value:.4g}" for value in values)
        rows.append(ClassTexts(name, _color(measures, name), texts))
    columns = [
        Column("Class"),
        Column(f"1/{unit}", "Area in a unit of the region's volume"),
        Column("of class", "Area in a unit of the class's own volume"),
    ]
    for axis in axes:
        tip = f"From the faces across {axis.upper()} alone"
        columns.append(Column(axis.upper(), tip))
    table = TableContent(tuple(columns), tuple(rows))
    return TopicContent(EXPLANATIONS[SURFACE], table)


def _chords(measures: Mapping[str, Any]) -> TopicContent:
    unit = short_unit(measures["about"]["unit"])
    by_class = measures["chords"]
    rows, curves = [], []
    axes: tuple[str, ...] = ()
    for name, by_axis in by_class.items():
        axes = tuple(sorted(by_axis, reverse=True))
        texts, tips = [], []
        for axis in axes:
            chords = by_axis[axis]
            texts.append(ABSENT if chords["mean"] is None else f"{chords['mean']:.4g}")
            tips.append(f"{chords['count']:,} chords, {chords['cut']:,} cut")
        color = _color(measures, name)
        rows.append(ClassTexts(name, color, tuple(texts), tuple(tips)))
        chords = by_axis["x"]
        counts = chords["counts"][1:]
        total = sum(counts)
        if total:
            xs = tuple((i + 1) * chords["step"] for i in range(len(counts)))
            ys = tuple(100 * count / total for count in counts)
            curves.append(CurveData(name, color, xs, ys))
    columns = [Column("Class")]
    for axis in axes:
        tip = f"Mean length along {axis.upper()} in {unit}"
        columns.append(Column(f"{axis.upper()} ({unit})", tip))
    return TopicContent(
        EXPLANATIONS[CHORDS],
        TableContent(tuple(columns), tuple(rows)),
        CurvesContent(tuple(curves), f"chord along X ({unit})", "% of chords"),
    )


def _correlation(measures: Mapping[str, Any]) -> TopicContent:
    unit = short_unit(measures["about"]["unit"])
    curves = []
    for name, facts in measures["correlation"].items():
        xs, ys = _plain(facts["mean"]["distance"]), _plain(facts["mean"]["s2"])
        curves.append(CurveData(name, _color(measures, name), xs, ys))
    content = CurvesContent(tuple(curves), f"distance ({unit})", "probability")
    return TopicContent(EXPLANATIONS[CORRELATION], curves=content)


def _representative_volume(measures: Mapping[str, Any]) -> TopicContent:
    local = measures["local"]
    unit = short_unit(local["unit"])
    curves = []
    for name, points in local["curves"].items():
        xs = tuple(point["side"] for point in points)
        ys = tuple(100 * point["std"] for point in points)
        curves.append(CurveData(name, _color(measures, name), xs, ys))
    if not any(len(curve.xs) > 1 for curve in curves):
        return TopicContent(
            EXPLANATIONS[VOLUME],
            why="The region holds too few cubes; measure a larger one.",
        )
    content = CurvesContent(tuple(curves), f"side ({unit})", "percentage points")
    return TopicContent(EXPLANATIONS[VOLUME], curves=content)


def _rock(measures: Mapping[str, Any]) -> TopicContent:
    rows, reasons = [], []
    for name, facts in measures.get("rock", {}).items():
        interval = pieces = ABSENT
        if facts["half_width"] is not None:
            interval = f"± {percent(facts['half_width'])}"
        if facts["pieces"] is not None:
            pieces = f"{facts['pieces']:,.0f}"
        why = facts["why"]
        if why:
            reasons.append(f"{name}: {why}.")
        texts = (f"{percent(facts['share'])} %", interval, pieces)
        rows.append(ClassTexts(name, _color(measures, name), texts, ("", why, "")))
    columns = (
        Column("Class"),
        Column("Fraction"),
        Column("95 %", "Half width of the interval, in percentage points"),
        Column("Pieces", "Independent pieces in the specimen; 30 are needed"),
    )
    explanation = " ".join([EXPLANATIONS[ROCK], *reasons])
    return TopicContent(explanation, TableContent(columns, tuple(rows)))


def _tenths(share: float) -> str:
    return f"{100 * share:.1f}"


def _color(measures: Mapping[str, Any], name: str) -> str:
    color: str = measures["about"]["colors"].get(name, "#888888")
    return color


def _plain(values: Sequence[float | None]) -> tuple[float, ...]:
    return tuple(math.nan if value is None else value for value in values)


def _percents(values: Sequence[float | None]) -> tuple[float, ...]:
    return tuple(100 * value for value in _plain(values))
