"""Blocks: a strip of every slice or volume held back for validation, where too few are there to hold back whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from napari_strata.core.classes import ClassMap
from napari_strata.data.regions import Part

Array = np.ndarray[Any, Any]

GAP = 16
"""Pixels between the strip and what trains, so that texture does not run on from one into the other."""

STARTS = 11
"""Positions at which a strip is tried along each axis."""


@dataclass(frozen=True)
class Cut:
    """Blocks that train, blocks that validate (one a part), and the strip in words."""

    training: list[Part]
    validation: list[Part]
    text: str


@dataclass(frozen=True)
class _Strip:
    """`share` of the length of `axis` (a number), `start` of the way from the first to the last place."""

    axis: int
    share: float
    start: float

    @property
    def at_edge(self) -> bool:
        return self.start in (0, 1)

    def bounds(self, length: int) -> tuple[int, int]:
        size = min(max(1, round(self.share * length)), length)
        first = round(self.start * (length - size))
        return first, first + size


@dataclass(frozen=True)
class _Slab:
    """The `number`-th of so many equal strips along `axis`, which meet and leave nothing out."""

    axis: int
    number: int
    folds: int

    def bounds(self, length: int) -> tuple[int, int]:
        return self.number * length // self.folds, (
            self.number + 1
        ) * length // self.folds


def rank(training: Array, validation: Array, fraction: float) -> tuple[int, int, float]:
    """How good a split is, larger is better, from the labelled pixels of each class (K,) in its halves.

    First the classes that are in both halves, then those in training, then how close the share is to `fraction`.
    """
    share = validation.sum() / max(training.sum() + validation.sum(), 1)
    both = int(((training > 0) & (validation > 0)).sum())
    return both, int((training > 0).sum()), -abs(float(share) - fraction)


def best_cut(
    parts: Sequence[Part],
    classes: ClassMap,
    *,
    fraction: float,
    rng: np.random.Generator,
) -> Cut | None:
    """The same strip of every part held back: of full size along all axes but one, `GAP` pixels apart from the rest.

    Strips of `fraction` of the length, and wider ones where labels are sparse, are tried everywhere along every axis
    (of volumes Z too). The best has the most classes in both halves, then the widest gap (thin pictures are cut
    across), then about the share asked for, then is narrow, then lies at an edge; `rng` decides between equals. None
    when no strip leaves labels in both halves.
    """
    profiles = [_profiles(part, classes) for part in parts]
    candidates = []
    for strip in _strips(fraction, len(parts[0].box)):
        gap = min(gap_for(part.shape[strip.axis]) for part in parts)
        held, rest = _halves([profile[strip.axis] for profile in profiles], strip, gap)
        if held.any() and rest.any():
            both, learnt, distance = rank(rest, held, fraction)
            key = (
                both,
                learnt,
                gap,
                round(20 * distance),
                -strip.share,
                strip.at_edge,
                rng.random(),
            )
            candidates.append((key, strip, gap))
    if not candidates:
        return None
    _, strip, gap = max(candidates, key=lambda candidate: candidate[0])
    return _cut(parts, profiles, strip, gap)


def fold_cuts(parts: Sequence[Part], classes: ClassMap, folds: int) -> list[Cut]:
    """As many cuts of every part, across one axis, that hold back each place once; none where labels are too few.

    The axis has the most classes in both halves of its worst fold, then of all folds, then the widest gap, then the
    most even folds.
    """
    profiles = [_profiles(part, classes) for part in parts]
    candidates = []
    for axis in range(len(parts[0].box)):
        gap = min(gap_for(part.shape[axis]) for part in parts)
        slabs = [_Slab(axis, number, folds) for number in range(folds)]
        halves = [
            _halves([profile[axis] for profile in profiles], slab, gap)
            for slab in slabs
        ]
        if all(held.any() and rest.any() for held, rest in halves):
            ranks = [rank(rest, held, 1 / folds) for held, rest in halves]
            both = [one[0] for one in ranks]
            candidates.append(
                (
                    (min(both), sum(both), gap, min(one[2] for one in ranks), -axis),
                    slabs,
                    gap,
                )
            )
    if not candidates:
        return []
    _, slabs, gap = max(candidates, key=lambda candidate: candidate[0])
    return [_cut(parts, profiles, slab, gap) for slab in slabs]


def gap_for(length: int) -> int:
    """Pixels left out beside a strip along an axis of `length` pixels: `GAP`, or a quarter of a short axis."""
    return min(GAP, length // 4)


def _strips(fraction: float, axes: int) -> Iterator[_Strip]:
    shares = {min(factor * fraction, max(0.5, fraction)) for factor in (1, 1.5, 2)}
    for share in sorted(shares):
        for axis in range(axes):
            yield from (
                _Strip(axis, share, float(start)) for start in np.linspace(0, 1, STARTS)
            )


def _profiles(part: Part, classes: ClassMap) -> list[Array]:
    """For each axis the labelled pixels of each class at every place along it, int64 (K, length)."""
    profiles = [np.zeros((len(classes), length), np.int64) for length in part.shape]
    for strip in part.strips():
        labels = strip.read_labels(classes)
        for k in range(len(classes)):
            hit = labels == k
            for axis, (own, here) in enumerate(zip(part.box, strip.box, strict=True)):
                others = tuple(other for other in range(hit.ndim) if other != axis)
                profiles[axis][k, here.start - own.start : here.stop - own.start] += (
                    hit.sum(axis=others)
                )
    return profiles


def _halves(
    profiles: Sequence[Array], strip: _Strip | _Slab, gap: int
) -> tuple[Array, Array]:
    """Labelled pixels of each class in a strip of all parts, and in the rest beyond the gap."""
    held, rest = (
        sum(counts)
        for counts in zip(*(_counts(one, strip, gap) for one in profiles), strict=True)
    )
    return np.asarray(held), np.asarray(rest)


def _counts(profile: Array, strip: _Strip | _Slab, gap: int) -> tuple[Array, Array]:
    first, stop = strip.bounds(profile.shape[1])
    rest = profile[:, : max(first - gap, 0)].sum(axis=1) + profile[:, stop + gap :].sum(
        axis=1
    )
    return profile[:, first:stop].sum(axis=1), rest


def _cut(
    parts: Sequence[Part],
    profiles: Sequence[Sequence[Array]],
    strip: _Strip | _Slab,
    gap: int,
) -> Cut:
    """What trains and what validates where `strip` is held back."""
    cut = Cut([], [], _text(parts, strip, gap))
    for part, profile in zip(parts, (one[strip.axis] for one in profiles), strict=True):
        length = part.shape[strip.axis]
        first, stop = strip.bounds(length)
        rest = (0, max(first - gap, 0)), (min(stop + gap, length), length)
        for side, places in ((cut.training, rest), (cut.validation, [(first, stop)])):
            blocks = (_block(part, profile, strip.axis, bounds) for bounds in places)
            side += [
                block
                for block in blocks
                if block.counts is not None and block.counts.any()
            ]
    return cut


def _block(part: Part, profile: Array, axis: int, bounds: tuple[int, int]) -> Part:
    box = [slice(0, length) for length in part.shape]
    box[axis] = slice(*bounds)
    name = f"{part.name} {_WORDS[part.axes[axis]][0]} {bounds[0]} to {bounds[1] - 1}"
    return part.block(box, name=name, counts=profile[:, slice(*bounds)].sum(axis=1))


_WORDS = {
    "Z": ("planes", "front", "back"),
    "Y": ("rows", "top", "bottom"),
    "X": ("columns", "left", "right"),
}
"""What lies along an axis, and the names of its ends."""


def _text(parts: Sequence[Part], strip: _Strip | _Slab, gap: int) -> str:
    """In words: ``the right 20 % of the only labelled slice, 16 pixels apart``."""
    lines, *ends = _WORDS[parts[0].axes[strip.axis]]
    if isinstance(strip, _Strip) and strip.at_edge:
        what = f"the {ends[int(strip.start)]} {100 * strip.share:.0f} %"
    elif len({part.shape for part in parts}) == 1:
        first, stop = strip.bounds(parts[0].shape[strip.axis])
        what = f"{lines} {first} to {stop - 1}"
    elif isinstance(strip, _Strip):
        what = f"{100 * strip.share:.0f} % of the {lines}"
    else:
        what = f"part {strip.number + 1} of {strip.folds} of the {lines}"
    noun = "volume" if parts[0].axes == "ZYX" else "slice"
    apart = f"{gap} {'planes' if lines == 'planes' else 'pixels'} apart"
    return f"{what} of {f'the only labelled {noun}' if len(parts) == 1 else f'every {noun}'}, {apart}"
