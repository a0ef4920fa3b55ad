"""Split labelled regions into training and validation.

Images are held back where there are several, else slices (for a 3D network, which sees
whole volumes, time points), else a strip of every one, with a gap. Among seeded draws,
the one wins that has the most classes in both halves, then the one whose share of
labelled pixels is closest to the share asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from napari_strata.core.classes import ClassMap
from napari_strata.core.errors import LabelError
from napari_strata.core.image import AnnotatedImage, Image, as_pairs
from napari_strata.data.blocks import best_cut, rank_split
from napari_strata.data.label_meaning import warn_of_meaning
from napari_strata.data.leakage import find_leaks, too_small
from napari_strata.data.regions import (
    LabelledRegion,
    all_regions,
    count_labels,
    join_names,
    label_counts,
    labelled_regions,
)
from napari_strata.data.strokes import are_strokes

Array = np.ndarray[Any, Any]

DRAWS = 64
"""Seeded draws among which the best is chosen."""

LONG_RUN = 8
"""More labelled slices in a row than this are a stack whose neighbours look alike."""


STROKES_TEXT = "whole strokes, held back in turn; all of them train the model"
"""Description of a split that leaves it to the fit to hold strokes back."""


@dataclass(frozen=True)
class Split:
    """Regions that train, regions that validate, and a description.

    Parameters
    ----------
    text
        Description of what is held back, such as ``2 of 8 slices: 3, 7``.
    warnings
        Each class that is missing from one half, each image without a labelled pixel,
        a way in which validation shows what trains (`find_leaks`), and a validation
        that is too small (`too_small`).
    """

    training: list[LabelledRegion]
    validation: list[LabelledRegion]
    text: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Unit:
    """Regions that stay together: those of an image, a slice or a time point.

    Parameters
    ----------
    noun
        What the unit is, in the plural, such as ``slices``.
    number
        Index along Z or T.
    """

    regions: list[LabelledRegion]
    name: str
    noun: str
    pair: AnnotatedImage
    number: int = 0


@dataclass(frozen=True)
class _Draw:
    """Numbers of the units that validate, and of those that are left out."""

    held_back: tuple[int, ...]
    left_out: tuple[int, ...] = ()


def split_pairs(
    pairs: AnnotatedImage | Sequence[AnnotatedImage],
    *,
    fraction: float | None,
    seed: int,
    classes: ClassMap,
    axes: str = "YX",
    strokes_train: bool = False,
) -> Split:
    """Hold back about `fraction` of the labelled pixels for validation.

    The same seed gives the same split. From 1 on, `fraction` is a number of images (of
    slices, where those are held back).

    Images are held back whole when there are at least three and one of them is not far
    more than was asked for; else slices (time points where there are three or more):
    scattered ones, or of a long labelled stack, whose neighbouring slices look alike, a
    run of slices whose two neighbours are left out; else a strip of every slice,
    separated from the rest by a gap. With ``axes="ZYX"`` whole volumes (or time points)
    are held back, else a strip of every volume across the best of Z, Y and X. Single
    slices of what trains are never held back.

    With `strokes_train` nothing is held back where there are strokes only: a fit holds
    whole strokes back in turn, and then takes them all.

    Raises
    ------
    LabelError
        When nothing is labelled, a label value is not in the class map, or one image
        stands in both halves.
    """
    pairs = distinct_pairs(pairs)
    regions = labelled_regions(pairs, classes, axes)
    warnings = [
        *warn_of_meaning(pairs, classes),
        *warn_empty_images(pairs, regions),
    ]
    if fraction and strokes_train and are_strokes(regions):
        return Split(regions, [], STROKES_TEXT, tuple(warnings))
    if fraction:
        rng = np.random.default_rng([seed, 1])
        split = _draw_split(regions, fraction, classes, rng)
    else:
        text = "none, as the recipe asks (training.validation=0)"
        split = Split(regions, [], text)
    if fraction and not split.validation:
        warnings.append(
            "nothing could be held back for validation: no strip leaves labels in both "
            "halves; label more, or give validation images of their own."
        )
    warnings += _warn_scores(split, classes)
    return Split(split.training, split.validation, split.text, tuple(warnings))


def split_given(
    training: AnnotatedImage | Sequence[AnnotatedImage],
    validation: AnnotatedImage | Sequence[AnnotatedImage],
    classes: ClassMap,
    axes: str = "YX",
) -> Split:
    """Return the split that the user made, with the same warnings.

    Raises
    ------
    LabelError
        When nothing is labelled in one half, a label value is not in the class map, or
        an image is in both halves.
    """
    training, validation = as_pairs(training), as_pairs(validation)
    _refuse_shared(training, validation)
    training_regions = labelled_regions(training, classes, axes)
    validation_regions = labelled_regions(validation, classes, axes)
    names = [pair.name for pair in validation]
    noun = "image" if len(names) == 1 else "images"
    text = f"{len(names)} {noun} given: {join_names(names)}"
    split = Split(training_regions, validation_regions, text)
    warnings = [
        *warn_of_meaning([*training, *validation], classes),
        *warn_empty_images(training, training_regions),
        *warn_empty_images(validation, validation_regions),
        *_warn_scores(split, classes),
    ]
    return Split(training_regions, validation_regions, text, tuple(warnings))


def find_new_regions(
    pair: AnnotatedImage,
    training: Sequence[LabelledRegion],
    validation: Sequence[LabelledRegion],
    classes: ClassMap,
    axes: str = "YX",
) -> tuple[list[LabelledRegion], list[str]]:
    """Find planes (volumes) of a pair that got their first labels after the split.

    They train, but what is held back stays so. Where strips are held back, only the
    part trains that trains in the nearest plane; else, planes beside a held-back one
    are left out.

    Parameters
    ----------
    training, validation
        Regions of this pair.

    Returns
    -------
    list of LabelledRegion
        Further regions to train on, counted.
    list of str
        Names of the planes that are left out.
    """
    known = {_position(region) for region in (*training, *validation)}
    added, left_out = [], []
    for region in all_regions(pair, axes):
        if _position(region) in known:
            continue
        counted = count_labels(region, classes)
        if counted.counts is None or not counted.counts.any():
            continue
        if any(part.box != region.box for part in validation):
            nearest = min(_distance(region, part) for part in training)
            for part in training:
                if _distance(region, part) == nearest:
                    block = count_labels(region.block(part.box), classes)
                    if block.counts is not None and block.counts.any():
                        added.append(block)
        elif any(_distance(region, part) == 1 for part in validation):
            left_out.append(region.name)
        else:
            added.append(counted)
    return added, left_out


def distinct_pairs(
    pairs: AnnotatedImage | Sequence[AnnotatedImage],
) -> list[AnnotatedImage]:
    """Return each pair once.

    Raises
    ------
    LabelError
        When two pairs hold the same image.
    """
    distinct = list({id(pair): pair for pair in as_pairs(pairs)}.values())
    for number, pair in enumerate(distinct):
        _refuse_shared(distinct[:number], [pair])
    return distinct


def warn_missing_classes(
    training: Sequence[LabelledRegion],
    validation: Sequence[LabelledRegion],
    classes: ClassMap,
) -> list[str]:
    """Write a sentence for the classes without a labelled pixel in one half."""
    training_pixels = label_counts(training, classes).sum(axis=0)
    validation_pixels = label_counts(validation, classes).sum(axis=0)
    nowhere, not_training, not_validation = [], [], []
    for i, name in enumerate(classes.names):
        subject = f"{name!r} (value {classes.values[i]})"
        if not training_pixels[i] and not validation_pixels[i]:
            nowhere.append(subject)
        elif not training_pixels[i]:
            not_training.append(subject)
        elif validation and not validation_pixels[i]:
            not_validation.append(subject)
    return [
        *_warn_without("anywhere", nowhere, ("it", "they"), "cannot be learnt"),
        *_warn_without("in training", not_training, ("it", "they"), "cannot be learnt"),
        *_warn_without(
            "in validation",
            not_validation,
            ("its score is", "their scores are"),
            "not known",
        ),
    ]


def _warn_without(
    place: str, subjects: Sequence[str], who: tuple[str, str], what: str
) -> list[str]:
    """Write a sentence about classes without labels; `who` is for one and several."""
    if not subjects:
        return []
    if len(subjects) == 1:
        start = f"class {subjects[0]} has"
    else:
        start = f"classes {', '.join(subjects[:-1])} and {subjects[-1]} have"
    return [f"{start} no labelled pixel {place}, so {who[len(subjects) > 1]} {what}."]


def warn_empty_images(
    pairs: Sequence[AnnotatedImage], regions: Sequence[LabelledRegion]
) -> list[str]:
    """Write a sentence that names the images without a labelled pixel, if any."""
    labelled = {id(region.pair) for region in regions}
    names = [pair.name for pair in pairs if id(pair) not in labelled]
    if not names:
        return []
    return [f"no labelled pixel, so left out: {join_names(names)}."]


def units_by_image(
    regions: Sequence[LabelledRegion], fraction: float = 1.0
) -> list[Unit]:
    """Return whole images as units.

    There are none where one image would be far more than the `fraction` asked for.
    """
    groups = [list(group) for _, group in groupby(regions, key=_pair_id)]
    if 1 / len(groups) > 2 * fraction and len(regions) > len(groups):
        return []
    units = []
    for group in groups:
        pair = group[0].pair
        units.append(Unit(group, pair.name, "images", pair))
    return units


def units_by_slice(regions: Sequence[LabelledRegion]) -> list[Unit]:
    """Return slices as units, or time points where an image has three or more.

    Regions at one index stay together. Volumes have no slices, only time points.
    """
    several_images = len({id(region.pair) for region in regions}) > 1
    units = []
    for _, group in groupby(regions, key=_pair_id):
        members = list(group)
        pair = members[0].pair
        time_points = len({region.index.get("T") for region in members})
        volumes = members[0].axes == "ZYX"
        by_time = time_points > 2 or "Z" not in pair.image.axes or volumes
        axis = "T" if by_time else "Z"
        noun = "slices"
        if by_time and ("T" in pair.image.axes or volumes):
            noun = "time points"
        by_number: dict[int, list[LabelledRegion]] = {}
        for region in members:
            by_number.setdefault(_number(region, axis), []).append(region)
        for number in sorted(by_number):
            name = f"{pair.name} {number}" if several_images else str(number)
            units.append(Unit(by_number[number], name, noun, pair, number))
    return units


def consecutive_runs(units: Sequence[Unit]) -> list[list[int]]:
    """Group the numbers of units that follow each other in one image without a hole."""
    runs: list[list[int]] = []
    for i, unit in enumerate(units):
        previous = units[i - 1]
        follows = previous.pair is unit.pair and previous.number + 1 == unit.number
        if i > 0 and follows:
            runs[-1].append(i)
        else:
            runs.append([i])
    return runs


def noun_of(units: Sequence[Unit]) -> str:
    """Return what the units are, in the plural; ``slices`` where they differ."""
    nouns = {unit.noun for unit in units}
    return nouns.pop() if len(nouns) == 1 else "slices"


def _draw_split(
    regions: list[LabelledRegion],
    fraction: float,
    classes: ClassMap,
    rng: np.random.Generator,
) -> Split:
    """Hold back the best draw of images or slices, or a strip of every region."""
    for units in (units_by_image(regions, fraction), units_by_slice(regions)):
        if len(units) >= 3:
            draw = _best_draw(units, _as_share(fraction, units), classes, rng)
            training, validation = [], []
            for i, unit in enumerate(units):
                if i not in draw.held_back and i not in draw.left_out:
                    training += unit.regions
            for i in draw.held_back:
                validation += units[i].regions
            return Split(training, validation, _describe_draw(units, draw))
    if fraction >= 1:
        or_slices = " or slices" if regions[0].axes == "YX" else ""
        raise LabelError(
            f"training.validation={fraction:g} asks for a number of images{or_slices}, "
            "but fewer than three are labelled; give a share of the picture, such as "
            "0.2, or images to validate on (--val)."
        )
    cut = best_cut(regions, classes, fraction=fraction, rng=rng)
    if cut is None:
        return Split(regions, [], "none: too little is labelled")
    return Split(cut.training, cut.validation, cut.text)


def _as_share(fraction: float, units: Sequence[Unit]) -> float:
    """Return a share as it is, and a number of units as a share of them."""
    if fraction >= len(units):
        raise LabelError(
            f"training.validation={fraction:g} asks for so many {units[0].noun}, but "
            f"only {len(units)} are labelled; give a smaller number, or a share such "
            "as 0.1."
        )
    return fraction if fraction < 1 else fraction / len(units)


def _warn_scores(split: Split, classes: ClassMap) -> list[str]:
    """Write all warnings that make a score of this split worth less than it looks."""
    return [
        *warn_missing_classes(split.training, split.validation, classes),
        *find_leaks(split.training, split.validation),
        *too_small(split.training, split.validation, classes),
    ]


def _refuse_shared(
    pairs: Sequence[AnnotatedImage], others: Sequence[AnnotatedImage]
) -> None:
    for pair in pairs:
        for other_pair in others:
            if _is_same_image(pair.image, other_pair.image):
                raise LabelError(
                    f"{other_pair.name}: found it twice among the images to train and "
                    "validate on; a score on an image that was trained on means "
                    "nothing, so give each image once."
                )


def _is_same_image(image: Image, other: Image) -> bool:
    """Return True for images of one file, name, shape and content, or one memory."""
    origin = (image.source, image.name, image.shape)
    if image.source is not None and origin == (other.source, other.name, other.shape):
        first = image.read(next(image.planes()))
        second = other.read(next(other.planes()))
        return np.array_equal(first, second, equal_nan=True)
    if image.data is other.data:
        return True
    if isinstance(image.data, np.ndarray) and isinstance(other.data, np.ndarray):
        return np.shares_memory(image.data, other.data)
    return False


def _position(region: LabelledRegion) -> tuple[int, int]:
    """Index of a plane or volume along T and Z."""
    return _number(region, "T"), _number(region, "Z")


def _distance(region: LabelledRegion, other: LabelledRegion) -> int:
    """Steps along T and Z between two regions of an image."""
    pairs = zip(_position(region), _position(other), strict=True)
    return sum(abs(index - other_index) for index, other_index in pairs)


def _pair_id(region: LabelledRegion) -> int:
    return id(region.pair)


def _number(region: LabelledRegion, axis: str) -> int:
    index = region.index.get(axis, 0)
    return index.start if isinstance(index, slice) else index


def _best_draw(
    units: Sequence[Unit], fraction: float, classes: ClassMap, rng: np.random.Generator
) -> _Draw:
    counts = np.array(
        [label_counts(unit.regions, classes).sum(axis=0) for unit in units]
    )
    runs = consecutive_runs(units)
    has_long_run = max(map(len, runs)) > LONG_RUN
    draws = []
    for _ in range(DRAWS):
        if has_long_run:
            draws.append(_draw_run(runs, fraction, rng))
        else:
            draws.append(_draw_scattered(len(units), fraction, rng))

    def score(draw: _Draw) -> tuple[int, int, float]:
        held_back = counts[list(draw.held_back)].sum(axis=0)
        absent = [*draw.held_back, *draw.left_out]
        training = np.delete(counts, absent, axis=0).sum(axis=0)
        return rank_split(training, held_back, fraction)

    return max(draws, key=score)


def _draw_scattered(count: int, fraction: float, rng: np.random.Generator) -> _Draw:
    size = min(max(1, round(fraction * count)), count - 1)
    held_back = rng.choice(count, size, replace=False)
    return _Draw(tuple(sorted(held_back.tolist())))


def _draw_run(
    runs: Sequence[list[int]], fraction: float, rng: np.random.Generator
) -> _Draw:
    """Hold back neighbours from a long run, and leave out the units beside them."""
    count = sum(map(len, runs))
    longest = max(map(len, runs))
    size = min(max(1, round(fraction * count)), longest - 3)
    candidates = []
    for run in runs:
        if len(run) > LONG_RUN:
            candidates += [(run, start) for start in range(len(run) - size + 1)]
    run, start = candidates[rng.integers(len(candidates))]
    stop = start + size
    left_out = [*run[max(start - 1, 0) : start], *run[stop : stop + 1]]
    return _Draw(tuple(run[start:stop]), tuple(left_out))


def _describe_draw(units: Sequence[Unit], draw: _Draw) -> str:
    """Describe a draw, such as ``2 of 8 slices: 3, 7``.

    With a gap: ``4 of 40 slices: 12 to 15; left out beside them: 11, 16``.
    """
    names = [units[i].name for i in draw.held_back]
    text = f"{len(names)} of {len(units)} {noun_of(units)}: "
    if not draw.left_out:
        return text + join_names(names)
    is_single = len(names) == 1
    text += names[0] if is_single else f"{names[0]} to {names[-1]}"
    left_out = join_names([units[i].name for i in draw.left_out])
    return f"{text}; left out beside {'it' if is_single else 'them'}: {left_out}"
