"""Split: which parts train and which validate, never two pieces of the same place.

By image where there are several, else by slices (of volumes, which a 3D network sees whole, by time points), else by a
strip of every one with a gap. Among seeded draws the
one wins that has the most classes in both halves, and then the share closest to the one asked for.
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
from napari_strata.data.blocks import best_cut, rank
from napari_strata.data.leakage import find_leaks, too_small
from napari_strata.data.regions import Part, counts_of, shown, whole

Array = np.ndarray[Any, Any]

DRAWS = 64
"""Seeded draws among which the best is chosen."""

RUN = 8
"""More labelled slices in a row than this are taken as a stack whose neighbours resemble each other."""


@dataclass(frozen=True)
class Split:
    """What trains and what validates, in words too.

    `text` says what is held back ("2 of 8 slices: 3, 7"); `warnings` name each class that is missing from one half,
    each image without a labelled pixel, a way in which validation shows what trains (`find_leaks`), and too small a
    validation (`too_small`).
    """

    training: list[Part]
    validation: list[Part]
    text: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Unit:
    """Parts that stay together: an image, a slice, a time point. `number` is its index along Z or T."""

    parts: list[Part]
    name: str
    word: str
    pair: AnnotatedImage
    number: int = 0


@dataclass(frozen=True)
class _Draw:
    """Numbers of the units held back, and of those that neither train nor validate."""

    held: tuple[int, ...]
    dropped: tuple[int, ...] = ()


def split_pairs(
    pairs: AnnotatedImage | Sequence[AnnotatedImage],
    *,
    fraction: float | None,
    seed: int,
    classes: ClassMap,
    axes: str = "YX",
) -> Split:
    """Hold back about `fraction` of the labelled pixels for validation; the same for the same seed.

    From 1 on, `fraction` is a number of images (of slices, where those are held back).

    Images are held back whole when there are at least three and one of them is not far more than was asked for; else
    slices (time points where there are three or more): scattered ones, or of a long labelled stack, whose neighbouring
    slices resemble each other, a run of slices whose two neighbours are left out; else a strip of every slice, apart
    from the rest by a gap. With ``axes="ZYX"`` whole volumes (or time points), else a strip of every volume across the
    best of Z, Y and X: single slices of what trains are never held back.

    Raises
    ------
    LabelError
        when nothing is labelled, a label value is not in the class map, or one image stands in both halves.
    """
    pairs = distinct(pairs)
    parts = whole(pairs, classes, axes)
    notes = empty_images(pairs, parts)
    training, validation, text = (
        parts,
        list[Part](),
        "none, as the recipe asks (training.validation=0)",
    )
    if fraction:
        training, validation, text = _halves(
            parts, fraction, classes, np.random.default_rng([seed, 1])
        )
    if fraction and not validation:
        notes += ("nothing could be held back for validation: no strip leaves labels in both halves; label more, or "
                  "give validation images of their own.",)  # fmt: skip
    return Split(
        training, validation, text, (*notes, *_doubts(training, validation, classes))
    )


def given(
    training: AnnotatedImage | Sequence[AnnotatedImage],
    validation: AnnotatedImage | Sequence[AnnotatedImage],
    classes: ClassMap,
    axes: str = "YX",
) -> Split:
    """The split that the user made, with the same warnings, of planes or (``axes="ZYX"``) of volumes.

    Raises
    ------
    LabelError
        when nothing is labelled in one half, a label value is not in the class map, or an image is in both halves.
    """
    both = as_pairs(training), as_pairs(validation)
    _refuse_shared(*both)
    learn, check = (whole(pairs, classes, axes) for pairs in both)
    names = [pair.name for pair in both[1]]
    text = (
        f"{len(names)} {'image' if len(names) == 1 else 'images'} given: {shown(names)}"
    )
    notes = empty_images(both[0], learn) + empty_images(both[1], check)
    return Split(learn, check, text, (*notes, *_doubts(learn, check, classes)))


def distinct(pairs: AnnotatedImage | Sequence[AnnotatedImage]) -> list[AnnotatedImage]:
    """Each pair once. Raises `LabelError` when two of them are one picture."""
    ones = list({id(pair): pair for pair in as_pairs(pairs)}.values())
    for number, pair in enumerate(ones):
        _refuse_shared(ones[:number], [pair])
    return ones


def _halves(
    parts: list[Part], fraction: float, classes: ClassMap, rng: np.random.Generator
) -> tuple[list[Part], list[Part], str]:
    """Training, validation and what is held back in words."""
    for units in (by_image(parts, fraction), by_slice(parts)):
        if len(units) >= 3:
            draw = _best(units, _share(fraction, units), classes, rng)
            out = {*draw.held, *draw.dropped}
            training = [
                part
                for i, unit in enumerate(units)
                if i not in out
                for part in unit.parts
            ]
            return (
                training,
                [part for i in draw.held for part in units[i].parts],
                _text(units, draw),
            )
    if fraction >= 1:
        raise LabelError(
            f"training.validation={fraction:g} asks for a number of images{_or_slices(parts)}, but fewer than three "
            "are labelled; give a share of the picture, such as 0.2, or images to validate on (--val)."
        )
    cut = best_cut(parts, classes, fraction=fraction, rng=rng)
    return (
        (cut.training, cut.validation, cut.text)
        if cut
        else (parts, [], "none: too little is labelled")
    )


def _or_slices(parts: Sequence[Part]) -> str:
    return " or slices" if parts[0].axes == "YX" else ""


def _share(wanted: float, units: Sequence[Unit]) -> float:
    """A share as it is; a number of units as a share of them."""
    if wanted >= len(units):
        raise LabelError(
            f"training.validation={wanted:g} asks for so many {units[0].word}, but only {len(units)} are labelled; "
            "give a smaller number, or a share such as 0.1."
        )
    return wanted if wanted < 1 else wanted / len(units)


def _doubts(
    training: Sequence[Part], validation: Sequence[Part], classes: ClassMap
) -> list[str]:
    """Everything that makes a score of this split worth less than it looks."""
    honest = [
        *find_leaks(training, validation),
        *too_small(training, validation, classes),
    ]
    return [*missing_classes(training, validation, classes), *honest]


def missing_classes(
    training: Sequence[Part], validation: Sequence[Part], classes: ClassMap
) -> list[str]:
    """A sentence for each class without a labelled pixel in one half."""
    learn, check = (
        counts_of(parts, classes).sum(axis=0) for parts in (training, validation)
    )
    out = []
    for name, value, learned, checked in zip(
        classes.names, classes.values, learn, check, strict=True
    ):
        who = f"class {name!r} (value {value})"
        if not learned and not checked:
            out.append(f"{who} has no labelled pixel anywhere, so it cannot be learnt.")
        elif not learned:
            out.append(
                f"{who} has no labelled pixel in training, so it cannot be learnt."
            )
        elif validation and not checked:
            out.append(
                f"{who} has no labelled pixel in validation, so its score is not known."
            )
    return out


def empty_images(
    pairs: Sequence[AnnotatedImage], parts: Sequence[Part]
) -> tuple[str, ...]:
    """A sentence that names the images without a labelled pixel, or nothing."""
    used = {id(part.pair) for part in parts}
    lost = [pair.name for pair in pairs if id(pair) not in used]
    return (f"no labelled pixel, so left out: {shown(lost)}.",) if lost else ()


def _refuse_shared(
    some: Sequence[AnnotatedImage], others: Sequence[AnnotatedImage]
) -> None:
    for one in some:
        for other in others:
            if _same(one.image, other.image):
                raise LabelError(
                    f"{other.name}: found it twice among the images to train and validate on; a score on an image that "
                    "was trained on means nothing, so give each image once."
                )


def _same(one: Image, other: Image) -> bool:
    """Whether two images are one picture: of one file, name, shape and content, or sharing memory."""
    if one.source is not None and (one.source, one.name, one.shape) == (
        other.source,
        other.name,
        other.shape,
    ):
        first, second = (image.read(next(image.planes())) for image in (one, other))
        return np.array_equal(first, second, equal_nan=True)
    arrays = one.data, other.data
    return arrays[0] is arrays[1] or (
        all(isinstance(a, np.ndarray) for a in arrays) and np.shares_memory(*arrays)
    )


def by_image(parts: Sequence[Part], fraction: float = 1.0) -> list[Unit]:
    """Whole images as units, or none where one image would be far more than the `fraction` asked for."""
    groups = [
        list(group) for _, group in groupby(parts, key=lambda part: id(part.pair))
    ]
    if 1 / len(groups) > 2 * fraction and len(parts) > len(groups):
        return []
    return [
        Unit(group, group[0].pair.name, "images", group[0].pair) for group in groups
    ]


def by_slice(parts: Sequence[Part]) -> list[Unit]:
    """Slices as units, or time points where an image has three or more; what lies at one index stays together.

    Volumes have no slices: time points alone.
    """
    several = len({id(part.pair) for part in parts}) > 1
    units = []
    for _, group in groupby(parts, key=lambda part: id(part.pair)):
        members = list(group)
        pair = members[0].pair
        moments = len({part.index.get("T") for part in members})
        volumes = members[0].axes == "ZYX"
        letter = "T" if moments > 2 or "Z" not in pair.image.axes or volumes else "Z"
        word = (
            "time points"
            if letter == "T" and ("T" in pair.image.axes or volumes)
            else "slices"
        )
        for number in sorted({_number(part, letter) for part in members}):
            name = f"{pair.name} {number}" if several else str(number)
            together = [part for part in members if _number(part, letter) == number]
            units.append(Unit(together, name, word, pair, number))
    return units


def _number(part: Part, letter: str) -> int:
    index = part.index.get(letter, 0)
    return index.start if isinstance(index, slice) else index


def _best(
    units: Sequence[Unit], fraction: float, classes: ClassMap, rng: np.random.Generator
) -> _Draw:
    counts = np.array([counts_of(unit.parts, classes).sum(axis=0) for unit in units])
    stretches = stretches_of(units)
    runs = max(map(len, stretches)) > RUN
    draws = [
        _run(stretches, fraction, rng)
        if runs
        else _scattered(len(units), fraction, rng)
        for _ in range(DRAWS)
    ]
    return max(draws, key=lambda draw: _score(counts, draw, fraction))


def _score(counts: Array, draw: _Draw, fraction: float) -> tuple[int, int, float]:
    held = counts[list(draw.held)].sum(axis=0)
    rest = np.delete(counts, [*draw.held, *draw.dropped], axis=0).sum(axis=0)
    return rank(rest, held, fraction)


def _scattered(count: int, fraction: float, rng: np.random.Generator) -> _Draw:
    held = rng.choice(
        count, min(max(1, round(fraction * count)), count - 1), replace=False
    )
    return _Draw(tuple(sorted(held.tolist())))


def stretches_of(units: Sequence[Unit]) -> list[list[int]]:
    """Numbers of units that follow each other without a hole in one image, as long as can be."""
    out: list[list[int]] = []
    for i, unit in enumerate(units):
        before = units[i - 1]
        joined = i > 0 and before.pair is unit.pair and before.number + 1 == unit.number
        out = [*out[:-1], [*out[-1], i]] if joined else [*out, [i]]
    return out


def _run(
    stretches: Sequence[list[int]], fraction: float, rng: np.random.Generator
) -> _Draw:
    """A run of neighbours held back, and the units next to it on either side dropped."""
    count = sum(map(len, stretches))
    longest = max(map(len, stretches))
    wanted = min(max(1, round(fraction * count)), longest - 3)
    places = [
        (s, start)
        for s in stretches
        if len(s) > RUN
        for start in range(len(s) - wanted + 1)
    ]
    stretch, start = places[rng.integers(len(places))]
    stop = start + wanted
    dropped = [*stretch[max(start - 1, 0) : start], *stretch[stop : stop + 1]]
    return _Draw(tuple(stretch[start:stop]), tuple(dropped))


def _text(units: Sequence[Unit], draw: _Draw) -> str:
    """In words: ``2 of 8 slices: 3, 7`` or ``4 of 40 slices: 12 to 15; left out beside them: 11, 16``."""
    words = {unit.word for unit in units}
    names = [units[i].name for i in draw.held]
    head = (
        f"{len(names)} of {len(units)} {words.pop() if len(words) == 1 else 'slices'}: "
    )
    if not draw.dropped:
        return head + shown(names)
    run = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
    return (
        f"{head}{run}; left out beside {'it' if len(names) == 1 else 'them'}: "
        + shown([units[i].name for i in draw.dropped])
    )
