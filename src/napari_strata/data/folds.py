"""Splits for cross-validation, in which every labelled region validates once.

Folds hold back images, slices or specimens, or blocks of volumes. As in a single split,
slices of a long labelled stack go together in runs, and the slices beside a run do not
train. Among seeded draws, the one wins whose worst fold has the most classes in both
halves, then the one whose folds are the most even in labelled pixels and in each class.
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
from napari_strata.data.regions import (
    LabelledRegion,
    join_names,
    label_counts,
    labelled_regions,
)
from napari_strata.data.split import (
    DRAWS,
    LONG_RUN,
    Split,
    Unit,
    consecutive_runs,
    distinct_pairs,
    noun_of,
    units_by_image,
    units_by_slice,
    warn_empty_images,
    warn_missing_classes,
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
    """Split `pairs` `folds` times, so that each labelled region validates exactly once.

    The same seed gives the same folds. Whole images are held back where there are at
    least `folds` of them, else slices (time points where an image has three or more):
    scattered ones, or of a long labelled stack consecutive ones, whose neighbours are
    left out of training. With ``axes="ZYX"`` volumes are never split into slices: where
    there are too few, blocks of every one validate in turn, with a gap to what trains.

    Parameters
    ----------
    folds
        Number of folds, at least 2.
    group
        Regular expression that finds the specimen in each image's name, or else in its
        path: its first group, or the whole match where it has none. All images of a
        specimen stay in one fold.

    Raises
    ------
    LabelError
        When there are fewer images, slices or specimens than folds, when `group` is no
        regular expression or does not match an image, when nothing is labelled, or when
        one image is given twice.
    """
    if folds < 2:
        raise LabelError(
            f"found folds={folds}; cross-validation needs at least 2: each region "
            "validates once."
        )
    pairs = distinct_pairs(pairs)
    regions = labelled_regions(pairs, classes, axes)
    if group:
        units = _units_by_specimen(regions, group)
    else:
        units = units_by_image(regions)
        if len(units) < folds:
            units = units_by_slice(regions)
    splits = []
    if len(units) >= folds:
        rng = np.random.default_rng([seed, 2])
        fold_of_unit = _best_draw(units, folds, classes, rng)
        splits = [_split(units, fold_of_unit == fold) for fold in range(folds)]
    elif axes == "ZYX" and not group:
        cuts = fold_cuts(regions, classes, folds)
        splits = [Split(cut.training, cut.validation, cut.text) for cut in cuts]
    if not splits:
        raise LabelError(_describe_shortage(units, regions, folds, group))
    traces = Traces(regions)
    empty = warn_empty_images(pairs, regions)
    warned = []
    for number, split in enumerate(splits):
        training, validation = split.training, split.validation
        warnings = [
            *empty,
            *warn_missing_classes(training, validation, classes),
            *find_leaks(training, validation, traces=traces),
        ]
        if number == 0:
            # Every region validates once, so size is judged over all folds together.
            warnings += too_small([], regions, classes)
        warned.append(Split(training, validation, split.text, tuple(warnings)))
    return warned


def _units_by_specimen(regions: Sequence[LabelledRegion], group: str) -> list[Unit]:
    """Return the images of each specimen as a unit."""
    try:
        pattern = re.compile(group)
    except re.error as error:
        raise LabelError(
            f"--group {group!r} is not a regular expression ({error}); needed is one "
            "that finds the specimen in the name of each image, for example "
            "--group '^(rock[0-9]+)_'."
        ) from None
    by_specimen: dict[str, list[LabelledRegion]] = {}
    unmatched: list[str] = []
    for region in regions:
        specimen = _find_specimen(region.pair, pattern)
        if specimen is not None:
            by_specimen.setdefault(specimen, []).append(region)
        elif region.pair.name not in unmatched:
            unmatched.append(region.pair.name)
    if unmatched:
        raise LabelError(
            f"--group {group!r} finds no specimen in the name or path of "
            f"{join_names(unmatched)}; needed is a regular expression that matches "
            "every image."
        )
    units = []
    for specimen, members in by_specimen.items():
        units.append(Unit(members, specimen, "specimens", members[0].pair))
    return units


def _find_specimen(pair: AnnotatedImage, pattern: re.Pattern[str]) -> str | None:
    for text in (pair.name, pair.image.source or ""):
        match = pattern.search(text)
        if match:
            groups = [group for group in match.groups() if group is not None]
            return groups[0] if groups else match.group()
    return None


def _describe_shortage(
    units: Sequence[Unit],
    regions: Sequence[LabelledRegion],
    folds: int,
    group: str | None,
) -> str:
    if not group and regions[0].axes == "ZYX":
        volumes = f"{len(regions)} labelled volumes"
        if len(regions) == 1:
            volumes = "one labelled volume"
        return (
            f"found {volumes} and no axis along which {folds} blocks hold labels each, "
            "with a gap to what trains; use fewer --folds, or label more."
        )
    images = len({id(region.pair) for region in regions})
    noun = units[0].noun
    if len(units) == 1:
        noun = noun.removesuffix("s")
    unit_text = f"{len(units)} {noun}"
    if group:
        names = join_names([unit.name for unit in units])
        unit_text += f" ({names}) in {images} images"
    elif units[0].noun != "images":
        plural = "s" if images != 1 else ""
        unit_text = f"{images} image{plural} with {unit_text} labelled in all"
    advice = "hold back a part of it instead (train)"
    if len(units) > 1:
        advice = f"use --folds {len(units)}"
    return (
        f"found {unit_text}, fewer than the {folds} folds asked for; {advice}, or label"
        " more."
    )


class _Rank(NamedTuple):
    """Quality of an assignment to folds; larger is better.

    Parameters
    ----------
    worst_fold, all_folds
        Classes in both halves, in the worst fold and over all folds.
    evenness
        Minus the largest deviation of a fold's share of all labelled pixels.
    class_evenness
        Minus the mean deviation of a fold's share of each class.
    """

    worst_fold: int
    all_folds: int
    evenness: float
    class_evenness: float


def _best_draw(
    units: Sequence[Unit], folds: int, classes: ClassMap, rng: np.random.Generator
) -> Array:
    """Return the fold of each unit, int64."""
    counts = np.array(
        [label_counts(unit.regions, classes).sum(axis=0) for unit in units]
    )
    in_runs = _are_slices(units) and max(map(len, consecutive_runs(units))) > LONG_RUN
    draws = []
    for _ in range(DRAWS):
        if in_runs:
            draws.append(_draw_consecutive(len(units), folds, rng))
        else:
            draws.append(_draw_scattered(len(units), folds, rng))
    return max(draws, key=lambda draw: _rank(counts, draw, folds))


def _are_slices(units: Sequence[Unit]) -> bool:
    """Test whether units are slices or time points, which may have neighbours."""
    return units[0].noun not in ("images", "specimens")


def _rank(counts: Array, fold_of_unit: Array, folds: int) -> _Rank:
    pixels = np.array(
        [counts[fold_of_unit == fold].sum(axis=0) for fold in range(folds)], np.float64
    )
    total = pixels.sum(axis=0)
    in_both = ((pixels > 0) & (pixels < total)).sum(axis=1)
    deviation = np.abs(pixels.sum(axis=1) / total.sum() - 1 / folds).max()
    class_shares = pixels / np.maximum(total, 1)
    class_deviation = np.abs(class_shares - 1 / folds)[:, total > 0].mean()
    return _Rank(
        worst_fold=int(in_both.min()),
        all_folds=int(in_both.sum()),
        evenness=-round(float(deviation), 2),
        class_evenness=-float(class_deviation),
    )


def _draw_scattered(count: int, folds: int, rng: np.random.Generator) -> Array:
    """Put units into folds in random order, equally many into each."""
    fold_of_unit = np.empty(count, np.int64)
    fold_of_unit[rng.permutation(count)] = np.arange(count) % folds
    return fold_of_unit


def _draw_consecutive(count: int, folds: int, rng: np.random.Generator) -> Array:
    """Keep neighbours together.

    Cuts lie at equal distances, each moved by up to a quarter of one.
    """
    step = count / folds
    numbers = np.arange(1, folds)
    moved = step * (numbers + rng.uniform(-0.25, 0.25, folds - 1))
    cuts = np.clip(np.round(moved), numbers, count - folds + numbers)
    fold_of_unit: Array = np.searchsorted(cuts, np.arange(count), side="right")
    return fold_of_unit


def _split(units: Sequence[Unit], held_back: Array) -> Split:
    """Return the split in which the units `held_back` (bool) validate."""
    left_out = _beside(units, held_back)
    training, validation = [], []
    held_back_names, left_out_names = [], []
    for number, unit in enumerate(units):
        if held_back[number]:
            validation += unit.regions
            held_back_names.append(unit.name)
        elif left_out[number]:
            left_out_names.append(unit.name)
        else:
            training += unit.regions
    names = join_names(held_back_names)
    if left_out_names and len(held_back_names) > 2:
        names = f"{held_back_names[0]} to {held_back_names[-1]}"
    text = f"{len(held_back_names)} of {len(units)} {noun_of(units)}: {names}"
    if left_out_names:
        pronoun = "it" if len(held_back_names) == 1 else "them"
        text += f"; left out beside {pronoun}: {join_names(left_out_names)}"
    return Split(training, validation, text)


def _beside(units: Sequence[Unit], held_back: Array) -> Array:
    """Find the units next to one that is held back, in a long run of slices.

    They must not train.
    """
    left_out = np.zeros(len(units), bool)
    if not _are_slices(units):
        return left_out
    for run in consecutive_runs(units):
        if len(run) > LONG_RUN:
            own = held_back[run]
            neighbours = np.zeros_like(own)
            neighbours[1:] |= own[:-1]
            neighbours[:-1] |= own[1:]
            left_out[run] = neighbours & ~own
    return left_out
