"""Blocks: a strip of every slice held back for validation, where there are too few slices to hold back whole ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from napari_strata.classes import ClassMap
from napari_strata.data.parts import Part

Array = np.ndarray[Any, Any]

GAP = 16
"""Pixels between the strip and what trains, so that texture does not run on from one into the other."""

STARTS = 11
"""Positions at which a strip is tried along each axis."""


@dataclass(frozen=True)
class Cut:
    """Blocks that train, blocks that validate (one a slice), and the strip in words."""

    training: list[Part]
    validation: list[Part]
    text: str


@dataclass(frozen=True)
class _Strip:
    """`share` of the length of `axis` (0 rows, 1 columns), `start` of the way from the first to the last place."""

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


def rank(training: Array, validation: Array, fraction: float) -> tuple[int, int, float]:
    """How good a split is, larger is better, from the labelled pixels of each class (K,) in its halves.

    First the classes that are in both halves, then those in training, then how close the share is to `fraction`.
    """
    share = validation.sum() / max(training.sum() + validation.sum(), 1)
    both = int(((training > 0) & (validation > 0)).sum())
    return both, int((training > 0).sum()), -abs(float(share) - fraction)


def best_cut(parts: Sequence[Part], classes: ClassMap, *, fraction: float, rng: np.random.Generator) -> Cut | None:
    """The same strip of every part held back: of full height or full width, `GAP` pixels apart from the rest.

    Strips of `fraction` of the length, and wider ones where labels are sparse, are tried everywhere along both axes.
    The best has the most classes in both halves, then the widest gap (thin pictures are cut across), then about the
    share asked for, then is narrow, then lies at an edge; `rng` decides between equals. None when no strip leaves
    labels in both halves.
    """
    profiles = [_profiles(part, classes) for part in parts]
    candidates = []
    for strip in _strips(fraction):
        gap = min(gap_for(part.shape[strip.axis]) for part in parts)
        held, rest = (sum(c) for c in zip(*(_counts(p[strip.axis], strip, gap) for p in profiles), strict=True))
        if np.any(held) and np.any(rest):
            both, learnt, distance = rank(np.asarray(rest), np.asarray(held), fraction)
            key = (both, learnt, gap, round(20 * distance), -strip.share, strip.at_edge, rng.random())
            candidates.append((key, strip, gap))
    if not candidates:
        return None
    _, strip, gap = max(candidates, key=lambda candidate: candidate[0])
    halves = [_cut(part, profile[strip.axis], strip, gap) for part, profile in zip(parts, profiles, strict=True)]
    training = [block for blocks, _ in halves for block in blocks]
    return Cut(training, [block for _, blocks in halves for block in blocks], _text(parts, strip, gap))


def gap_for(length: int) -> int:
    """Pixels left out beside a strip along an axis of `length` pixels: `GAP`, or a quarter of a short axis."""
    return min(GAP, length // 4)


def _strips(fraction: float) -> Iterator[_Strip]:
    shares = {min(factor * fraction, max(0.5, fraction)) for factor in (1, 1.5, 2)}
    for share in sorted(shares):
        for axis in (0, 1):
            yield from (_Strip(axis, share, float(start)) for start in np.linspace(0, 1, STARTS))


def _profiles(part: Part, classes: ClassMap) -> tuple[Array, Array]:
    """Labelled pixels of each class in every row, int64 (K, H), and in every column, (K, W)."""
    rows, columns = (np.zeros((len(classes), length), np.int64) for length in part.shape)
    for strip in part.strips():
        labels = strip.read_labels(classes)
        top = strip.rows.start - part.rows.start
        for k in range(len(classes)):
            hit = labels == k
            rows[k, top : top + len(labels)] = hit.sum(axis=1)
            columns[k] += hit.sum(axis=0)
    return rows, columns


def _counts(profile: Array, strip: _Strip, gap: int) -> tuple[Array, Array]:
    """Labelled pixels of each class in the strip, and in the rest beyond the gap."""
    first, stop = strip.bounds(profile.shape[1])
    rest = profile[:, : max(first - gap, 0)].sum(axis=1) + profile[:, stop + gap :].sum(axis=1)
    return profile[:, first:stop].sum(axis=1), rest


def _cut(part: Part, profile: Array, strip: _Strip, gap: int) -> tuple[list[Part], list[Part]]:
    length = profile.shape[1]
    first, stop = strip.bounds(length)
    training = [(0, max(first - gap, 0)), (min(stop + gap, length), length)]
    blocks = [[_block(part, profile, strip.axis, bounds) for bounds in side] for side in (training, [(first, stop)])]
    kept = [[block for block in side if block.counts is not None and block.counts.any()] for side in blocks]
    return kept[0], kept[1]


def _block(part: Part, profile: Array, axis: int, bounds: tuple[int, int]) -> Part:
    slices = [slice(0, length) for length in part.shape]
    slices[axis] = slice(*bounds)
    name = f"{part.name} {'rows' if axis == 0 else 'columns'} {bounds[0]} to {bounds[1] - 1}"
    return part.block(slices[0], slices[1], name=name, counts=profile[:, slice(*bounds)].sum(axis=1))


def _text(parts: Sequence[Part], strip: _Strip, gap: int) -> str:
    """In words: ``the right 20 % of the only labelled slice, 16 pixels apart``."""
    share = f"{100 * strip.share:.0f} %"
    if strip.at_edge:
        side = (("top", "bottom"), ("left", "right"))[strip.axis][int(strip.start)]
        what = f"the {side} {share}"
    elif len({part.shape for part in parts}) == 1:
        first, stop = strip.bounds(parts[0].shape[strip.axis])
        what = f"{('rows', 'columns')[strip.axis]} {first} to {stop - 1}"
    else:
        what = f"{share} of the {('rows', 'columns')[strip.axis]}"
    return f"{what} of {'the only labelled slice' if len(parts) == 1 else 'every slice'}, {gap} pixels apart"
