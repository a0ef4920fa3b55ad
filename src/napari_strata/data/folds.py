"""Folds: k splits in which every labelled place validates once, by image, slice or specimen, of volumes by block.

As in a single split, slices of a long labelled stack go together in runs, and the slices beside a run do not train.
Among seeded draws the one wins whose worst fold has the most classes in both halves, and then whose folds are the most
even in labelled pixels and in each class.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from napari_strata.core.classes import ClassMap
from napari_strata.core.errors import LabelError
from napari_strata.core.image import AnnotatedImage
from napari_strata.data.blocks import fold_cuts
from napari_strata.data.leakage import Traces, find_leaks, too_small
from napari_strata.data.regions import Part, counts_of, shown, whole
from napari_strata.data.split import (
    DRAWS,
    RUN,
    Split,
    Unit,
    by_image,
    by_slice,
    distinct,
    empty_images,
    missing_classes,
    stretches_of,
)

Array = np.ndarray[Any, Any]


def fold_pairs(
    pairs: AnnotatedImage | Sequence[AnnotatedImage],
    folds: int,
    *,
    seed: int,
    classes: ClassMap,
    group: str | None = None,
    axes: str = "YX",
) -> list[Split]:
    """Split `pairs` `folds` times, so that each labelled part validates in exactly one fold; the same for one seed.

    Whole images where there are at least `folds` of them, else slices (time points where an image has three or more):
    scattered ones, or of a long labelled stack consecutive ones, whose neighbours are left out of training. With
    ``axes="ZYX"`` volumes are never taken apart by slices: where there are too few, blocks of every one validate in
    turn, with a gap to what trains.

    Parameters
    ----------
    folds
        how many, at least 2.
    group
        regular expression that finds the specimen in each image's name, or else in its path: its first group, or the
        whole match where it has none. All images of a specimen stay in one fold.

    Raises
    ------
    LabelError
        when there are fewer images, slices or specimens than folds, when `group` is no regular expression or does not
        match an image, when nothing is labelled, or when one image is given twice.
    """
    if folds < 2:
        raise LabelError(
            f"found folds={folds}; cross-validation needs at least 2: each part validates once."
        )
    pairs = distinct(pairs)
    parts = whole(pairs, classes, axes)
    units = _specimens(parts, group) if group else by_image(parts)
    if not group and len(units) < folds:
        units = by_slice(parts)
    if len(units) >= folds:
        held = _best(units, folds, classes, np.random.default_rng([seed, 2]))
        sides = [_sides(units, held == number) for number in range(folds)]
    else:
        cuts = fold_cuts(parts, classes, folds) if axes == "ZYX" and not group else []
        sides = [(cut.training, cut.validation, cut.text) for cut in cuts]
    if not sides:
        raise LabelError(_too_few(units, parts, folds, group))
    traces, notes = Traces(parts), empty_images(pairs, parts)
    splits = []
    for learn, check, text in sides:
        doubts = [
            *missing_classes(learn, check, classes),
            *find_leaks(learn, check, traces=traces),
        ]
        splits.append(Split(learn, check, text, (*notes, *doubts)))
    # Every part validates once, so smallness is judged over all folds together.
    first = splits[0]
    small = tuple(too_small([], parts, classes))
    return [
        Split(first.training, first.validation, first.text, (*first.warnings, *small)),
        *splits[1:],
    ]


def _specimens(parts: Sequence[Part], group: str) -> list[Unit]:
    """Images of one specimen as a unit each. Raises `LabelError`."""
    try:
        pattern = re.compile(group)
    except re.error as error:
        raise LabelError(
            f"--group {group!r} is not a regular expression ({error}); needed is one that finds the specimen in the "
            "name of each image, for example --group '^(rock[0-9]+)_'."
        ) from None
    found: dict[str, list[Part]] = {}
    lost: dict[str, None] = {}
    for part in parts:
        name = _specimen(part.pair, pattern)
        if name is None:
            lost[part.pair.name] = None
        else:
            found.setdefault(name, []).append(part)
    if lost:
        raise LabelError(
            f"--group {group!r} finds no specimen in the name or path of {shown(list(lost))}; needed is a regular "
            "expression that matches every image."
        )
    return [
        Unit(members, name, "specimens", members[0].pair)
        for name, members in found.items()
    ]


def _specimen(pair: AnnotatedImage, pattern: re.Pattern[str]) -> str | None:
    for text in (pair.name, pair.image.source or ""):
        if match := pattern.search(text):
            return next(
                (one for one in match.groups() if one is not None), match.group()
            )
    return None


def _too_few(
    units: Sequence[Unit], parts: Sequence[Part], folds: int, group: str | None
) -> str:
    images = len({id(part.pair) for part in parts})
    word = units[0].word
    found = f"{len(units)} {word if len(units) != 1 else word.removesuffix('s')}"
    if not group and parts[0].axes == "ZYX":
        found = (
            "one labelled volume"
            if len(parts) == 1
            else f"{len(parts)} labelled volumes"
        )
        return (
            f"found {found} and no axis along which {folds} blocks hold labels each, with a gap to what trains; use "
            "fewer --folds, or label more."
        )
    if group:
        found += f" ({shown([unit.name for unit in units])}) in {images} images"
    elif word != "images":
        found = (
            f"{images} image{'s' if images != 1 else ''} with {found} labelled in all"
        )
    fewer = (
        f"use --folds {len(units)}"
        if len(units) > 1
        else "hold back a part of it instead (train)"
    )
    return f"found {found}, fewer than the {folds} folds asked for; {fewer}, or label more."


class _Rank(NamedTuple):
    """How good an assignment to folds is, larger is better."""

    both: int  # classes in both halves, in the worst fold
    total: int  # the same, over all folds
    unevenness: (
        float  # minus the largest deviation of a fold's share of all labelled pixels
    )
    classes: float  # minus the mean deviation of a fold's share of each class


def _best(
    units: Sequence[Unit], folds: int, classes: ClassMap, rng: np.random.Generator
) -> Array:
    """The fold of each unit, int64."""
    counts = np.array([counts_of(unit.parts, classes).sum(axis=0) for unit in units])
    runs = (
        units[0].word not in ("images", "specimens")
        and max(map(len, stretches_of(units))) > RUN
    )
    draws = [
        _consecutive(len(units), folds, rng) if runs else _scattered(counts, folds, rng)
        for _ in range(DRAWS)
    ]
    return max(draws, key=lambda held: _rank(counts, held, folds))


def _rank(counts: Array, held: Array, folds: int) -> _Rank:
    shares = np.array(
        [counts[held == fold].sum(axis=0) for fold in range(folds)], np.float64
    )
    total = shares.sum(axis=0)
    both = ((shares > 0) & (shares < total)).sum(axis=1)
    pixels = np.abs(shares.sum(axis=1) / total.sum() - 1 / folds).max()
    each = np.abs(shares / np.maximum(total, 1) - 1 / folds)[:, total > 0].mean()
    return _Rank(
        int(both.min()), int(both.sum()), -round(float(pixels), 2), -float(each)
    )


def _scattered(counts: Array, folds: int, rng: np.random.Generator) -> Array:
    """Units in random order, equally many in each fold."""
    held = np.empty(len(counts), np.int64)
    held[rng.permutation(len(counts))] = np.arange(len(counts)) % folds
    return held


def _consecutive(count: int, folds: int, rng: np.random.Generator) -> Array:
    """Neighbours together: cuts at equal distances, each moved by up to a quarter of one."""
    step = count / folds
    moved = step * (np.arange(1, folds) + rng.uniform(-0.25, 0.25, folds - 1))
    cuts = np.clip(
        np.round(moved), np.arange(1, folds), count - folds + np.arange(1, folds)
    )
    held: Array = np.searchsorted(cuts, np.arange(count), side="right")
    return held


def _sides(units: Sequence[Unit], held: Array) -> tuple[list[Part], list[Part], str]:
    """Training, validation, and what is held back in words."""
    dropped = _beside(units, held)
    names = [
        [unit.name for unit, yes in zip(units, side, strict=True) if yes]
        for side in (held, dropped)
    ]
    text = f"{len(names[0])} of {len(units)} {_word(units)}: {_shown(names[0], run=bool(names[1]))}"
    if names[1]:
        text += f"; left out beside {'it' if len(names[0]) == 1 else 'them'}: {shown(names[1])}"
    sides = [
        [
            part
            for unit, yes in zip(units, side, strict=True)
            if yes
            for part in unit.parts
        ]
        for side in (~(held | dropped), held)
    ]
    return sides[0], sides[1], text


def _beside(units: Sequence[Unit], held: Array) -> Array:
    """Which units lie next to one that is held back, in a long stretch of slices, and so must not train."""
    dropped = np.zeros(len(units), bool)
    if units[0].word in ("images", "specimens"):
        return dropped
    for stretch in stretches_of(units):
        if len(stretch) > RUN:
            own = held[stretch]
            beside = np.zeros_like(own)
            beside[1:] |= own[:-1]
            beside[:-1] |= own[1:]
            dropped[stretch] = beside & ~own
    return dropped


def _word(units: Sequence[Unit]) -> str:
    words = {unit.word for unit in units}
    return words.pop() if len(words) == 1 else "slices"


def _shown(names: Sequence[str], *, run: bool) -> str:
    return f"{names[0]} to {names[-1]}" if run and len(names) > 2 else shown(names)
