"""Strips for validation, where too few slices or volumes can be held back whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from napari_strata.core.classes import ClassMap
from napari_strata.data.regions import LabelledRegion

Array = np.ndarray[Any, Any]

GAP = 16
"""Pixels between a strip and what trains, so that texture does not continue across."""

POSITIONS = 11
"""Positions at which a strip is tried along each axis."""

AXIS_WORDS = {
    "Z": ("planes", "front", "back"),
    "Y": ("rows", "top", "bottom"),
    "X": ("columns", "left", "right"),
}
"""What lies along an axis, and the names of its ends."""


@dataclass(frozen=True)
class Cut:
    """Blocks that train, blocks that validate (one per region), and a description."""

    training: list[LabelledRegion]
    validation: list[LabelledRegion]
    text: str


@dataclass(frozen=True)
class _Strip:
    """Part of an axis.

    Parameters
    ----------
    axis
        Number of the axis.
    share
        Length of the strip as a share of the axis.
    position
        0 where the strip lies at the start of the axis, 1 at its end.
    """

    axis: int
    share: float
    position: float

    @property
    def at_edge(self) -> bool:
        return self.position in (0, 1)

    def bounds(self, length: int) -> tuple[int, int]:
        size = min(max(1, round(self.share * length)), length)
        first = round(self.position * (length - size))
        return first, first + size


@dataclass(frozen=True)
class _FoldStrip:
    """One of `folds` equal strips along an axis, which together cover it."""

    axis: int
    fold: int
    folds: int

    def bounds(self, length: int) -> tuple[int, int]:
        first = self.fold * length // self.folds
        stop = (self.fold + 1) * length // self.folds
        return first, stop


def rank_split(
    training: Array, validation: Array, fraction: float
) -> tuple[int, int, float]:
    """Rank a split by the labelled pixels of each class (K,) in its halves.

    A better split compares as larger. First come the classes in both halves, then those
    in training, then the distance of validation's share from `fraction`.
    """
    share = validation.sum() / max(training.sum() + validation.sum(), 1)
    in_both = int(((training > 0) & (validation > 0)).sum())
    return in_both, int((training > 0).sum()), -abs(float(share) - fraction)


def best_cut(
    regions: Sequence[LabelledRegion],
    classes: ClassMap,
    *,
    fraction: float,
    rng: np.random.Generator,
) -> Cut | None:
    """Hold back the same strip of every region; None if no strip leaves labels in both.

    The strip has full size along all axes but one, and lies `GAP` pixels from the rest.
    Strips of `fraction` of the length, and wider ones where labels are sparse, are
    tried everywhere along every axis (of volumes also Z). The best has the most classes
    in both halves, then the widest gap (thin images are cut across), then about the
    share asked for, then is narrow, then lies at an edge; `rng` decides between equals.
    """
    profiles = [_profiles(region, classes) for region in regions]
    best_rank, best_strip, best_gap = None, None, 0
    for strip in _strips(fraction, len(regions[0].box)):
        gap = _common_gap(regions, strip.axis)
        held_back, rest = _count_halves(
            [profile[strip.axis] for profile in profiles], strip, gap
        )
        if held_back.any() and rest.any():
            in_both, trained, closeness = rank_split(rest, held_back, fraction)
            rank = (
                in_both,
                trained,
                gap,
                round(20 * closeness),
                -strip.share,
                strip.at_edge,
                rng.random(),
            )
            if best_rank is None or rank > best_rank:
                best_rank, best_strip, best_gap = rank, strip, gap
    if best_strip is None:
        return None
    return _cut(regions, profiles, best_strip, best_gap)


def fold_cuts(
    regions: Sequence[LabelledRegion], classes: ClassMap, folds: int
) -> list[Cut]:
    """Cut every region `folds` times across one axis: each block validates once.

    There are no cuts where labels are too few. The axis has the most classes in both
    halves of its worst fold, then of all folds, then the widest gap, then the most even
    folds.
    """
    profiles = [_profiles(region, classes) for region in regions]
    candidates = []
    for axis in range(len(regions[0].box)):
        gap = _common_gap(regions, axis)
        axis_profiles = [profile[axis] for profile in profiles]
        strips = [_FoldStrip(axis, fold, folds) for fold in range(folds)]
        ranks = []
        for strip in strips:
            held_back, rest = _count_halves(axis_profiles, strip, gap)
            if held_back.any() and rest.any():
                ranks.append(rank_split(rest, held_back, 1 / folds))
        if len(ranks) == folds:
            in_both = [classes_in_both for classes_in_both, _, _ in ranks]
            worst_closeness = min(closeness for _, _, closeness in ranks)
            rank = (min(in_both), sum(in_both), gap, worst_closeness, -axis)
            candidates.append((rank, strips, gap))
    if not candidates:
        return []
    _, strips, gap = max(candidates, key=lambda candidate: candidate[0])
    return [_cut(regions, profiles, strip, gap) for strip in strips]


def gap_for(length: int) -> int:
    """Pixels left out beside a strip along an axis.

    `GAP`, or a quarter of a short axis.
    """
    return min(GAP, length // 4)


def _common_gap(regions: Sequence[LabelledRegion], axis: int) -> int:
    return min(gap_for(region.shape[axis]) for region in regions)


def _strips(fraction: float, axes: int) -> Iterator[_Strip]:
    widest = max(0.5, fraction)
    shares = {min(factor * fraction, widest) for factor in (1, 1.5, 2)}
    for share in sorted(shares):
        for axis in range(axes):
            for position in np.linspace(0, 1, POSITIONS):
                yield _Strip(axis, share, float(position))


def _profiles(region: LabelledRegion, classes: ClassMap) -> list[Array]:
    """Labelled pixels of each class along each axis: int64 (K, length) per axis."""
    profiles = [np.zeros((len(classes), length), np.int64) for length in region.shape]
    for strip in region.strips():
        labels = strip.read_class_indices(classes)
        for k in range(len(classes)):
            of_class = labels == k
            for axis in range(labels.ndim):
                others = tuple(
                    dimension for dimension in range(labels.ndim) if dimension != axis
                )
                first = strip.box[axis].start - region.box[axis].start
                stop = strip.box[axis].stop - region.box[axis].start
                profiles[axis][k, first:stop] += of_class.sum(axis=others)
    return profiles


def _count_halves(
    profiles: Sequence[Array], strip: _Strip | _FoldStrip, gap: int
) -> tuple[Array, Array]:
    """Labelled pixels of each class in a strip of all regions, and beyond its gap."""
    held_back = np.zeros(len(profiles[0]), np.int64)
    rest = np.zeros(len(profiles[0]), np.int64)
    for profile in profiles:
        first, stop = strip.bounds(profile.shape[1])
        held_back += profile[:, first:stop].sum(axis=1)
        rest += profile[:, : max(first - gap, 0)].sum(axis=1)
        rest += profile[:, stop + gap :].sum(axis=1)
    return held_back, rest


def _cut(
    regions: Sequence[LabelledRegion],
    profiles: Sequence[Sequence[Array]],
    strip: _Strip | _FoldStrip,
    gap: int,
) -> Cut:
    """Hold `strip` back of every region. Blocks without labels are dropped."""
    training: list[LabelledRegion] = []
    validation: list[LabelledRegion] = []
    for region, axis_profiles in zip(regions, profiles, strict=True):
        profile = axis_profiles[strip.axis]
        length = region.shape[strip.axis]
        first, stop = strip.bounds(length)
        before = (0, max(first - gap, 0))
        after = (min(stop + gap, length), length)
        for bounds in (before, after):
            block = _block(region, profile, strip.axis, bounds)
            if block.counts is not None and block.counts.any():
                training.append(block)
        block = _block(region, profile, strip.axis, (first, stop))
        if block.counts is not None and block.counts.any():
            validation.append(block)
    return Cut(training, validation, _describe(regions, strip, gap))


def _block(
    region: LabelledRegion, profile: Array, axis: int, bounds: tuple[int, int]
) -> LabelledRegion:
    first, stop = bounds
    box = [slice(0, length) for length in region.shape]
    box[axis] = slice(first, stop)
    lines, _, _ = AXIS_WORDS[region.axes[axis]]
    name = f"{region.name} {lines} {first} to {stop - 1}"
    return region.block(box, name=name, counts=profile[:, first:stop].sum(axis=1))


def _describe(
    regions: Sequence[LabelledRegion], strip: _Strip | _FoldStrip, gap: int
) -> str:
    """Describe a strip.

    ``the right 20 % of the only labelled slice, 16 pixels apart``.
    """
    lines, start, end = AXIS_WORDS[regions[0].axes[strip.axis]]
    if isinstance(strip, _Strip) and strip.at_edge:
        edge = end if strip.position else start
        text = f"the {edge} {100 * strip.share:.0f} %"
    elif len({region.shape for region in regions}) == 1:
        first, stop = strip.bounds(regions[0].shape[strip.axis])
        text = f"{lines} {first} to {stop - 1}"
    elif isinstance(strip, _Strip):
        text = f"{100 * strip.share:.0f} % of the {lines}"
    else:
        text = f"part {strip.fold + 1} of {strip.folds} of the {lines}"
    noun = "volume" if regions[0].axes == "ZYX" else "slice"
    where = f"every {noun}" if len(regions) > 1 else f"the only labelled {noun}"
    unit = "planes" if lines == "planes" else "pixels"
    return f"{text} of {where}, {gap} {unit} apart"
