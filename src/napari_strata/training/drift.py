"""Reference of the training images, by which a model knows unusual ones later."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from napari_strata.core import normalization as norm
from napari_strata.core.drift import (
    BINS,
    SIDE,
    TILES,
    Appearance,
    Bins,
    DriftReference,
    detail_changes,
    measure_appearance,
    smooth,
    unexplained_shares,
)
from napari_strata.core.image import Image, spread_slices
from napari_strata.core.normalization import Scale
from napari_strata.core.spec import ModelSpec
from napari_strata.data.neighbours import own_channels, own_scale
from napari_strata.data.regions import LabelledRegion, spread_planes

Array = np.ndarray[Any, Any]

PLANES = 64
"""Planes that tiles are taken from, at most, which bounds the time."""

STEPS = np.array([0.7548776662466927, 0.5698402909980532])
"""Steps of a sequence that fills a square evenly, however many points it has.

Roberts, The unreasonable effectiveness of quasirandom sequences (2018).
"""

COMPARED_TILES = 64
"""Tiles that are compared with all others, at most."""

CLASS_PIXELS = 1000
"""Labelled pixels of a class, at least, that give a histogram."""

SMALLEST_SHARE = 0.25
"""Share of valid pixels that a tile has at least."""


@dataclass(frozen=True, eq=False)
class _Plane:
    """A training plane, and the image or slice that it comes from.

    `classes` has the pixels of each class in each bin (channels, classes, bins).
    """

    group: Hashable
    whole: Appearance
    tiles: list[Appearance]
    classes: Array


def measure_reference(
    regions: Sequence[LabelledRegion], spec: ModelSpec, *, seed: int
) -> DriftReference | None:
    """Measure histograms of tiles and band energies of training regions.

    Tiles are spread evenly over the regions, and reproducibly, whatever is labelled in
    them: what is not, such as the surroundings of a specimen, belongs to the image that
    is predicted later. The labelled pixels of each class give one more histogram, so
    that images with more of a material than any tile are no surprise. Pixels that are
    not finite (nodata) do not count; a tile that has few others is left out. Of an
    image smaller than a tile, the tile is the image. Of a volume, tiles are taken from
    planes. With neighbours as channels, the slice itself counts.

    Parameters
    ----------
    regions
        The training regions of a plan.
    spec
        The spec of the plan.
    seed
        Seed of the recipe, which moves the tiles.

    Returns
    -------
    None when there is no valid pixel.
    """
    planes = _choose_planes(regions)
    scales: dict[int, Scale] = {}
    for region in planes:
        image = region.pair.image
        if id(image) not in scales:
            scales[id(image)] = _scale_of(image, spec)
    center, spread = _measure_center(planes, spec, scales)
    groups = _groups(planes)
    offset = np.random.default_rng(seed).random(2)
    measured = []
    for number, region in enumerate(planes):
        count = TILES // len(planes) + (number < TILES % len(planes))
        blocks, labels = _read_blocks(region, spec)
        scale = scales[id(region.pair.image)]
        whole = measure_appearance(blocks, scale, center, spread)
        if whole is None:
            continue
        tiles = []
        for tile in _cut_tiles(blocks, count, offset):
            appearance = measure_appearance([tile], scale, center, spread)
            smallest = SMALLEST_SHARE * tile[0].size
            if appearance is not None and appearance.pixels >= smallest:
                tiles.append(appearance)
        classes = _count_classes(blocks, labels, spec, scale, center, spread)
        measured.append(_Plane(groups[number], whole, tiles, classes))
    return _reference(measured, center, spread)


def _choose_planes(regions: Sequence[LabelledRegion]) -> list[LabelledRegion]:
    """Planes spread evenly over the regions, at most `PLANES`."""
    of_each = math.ceil(PLANES / len(regions))
    planes = [plane for region in regions for plane in spread_planes(region, of_each)]
    positions = np.linspace(0, len(planes) - 1, min(PLANES, len(planes)))
    return [planes[round(position)] for position in positions]


def _scale_of(image: Image, spec: ModelSpec) -> Scale:
    samples = np.concatenate(image.samples(), axis=1)
    scale = spec.normalization.scale_for(samples, image.dtype)
    return own_scale(scale, spec.neighbours)


def _measure_center(
    planes: Sequence[LabelledRegion], spec: ModelSpec, scales: dict[int, Scale]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Centre and spread of the grey values after normalisation.

    They are 0 and 1 where the scale was measured on images.
    """
    count = spec.in_channels // (2 * spec.neighbours + 1)
    if spec.normalization.kind in ("physical", "relative"):
        return (0.0,) * count, (1.0,) * count
    images = {id(region.pair.image): region.pair.image for region in planes}
    normalised = []
    for image in list(images.values())[:: math.ceil(len(images) / 8)]:
        samples = np.concatenate(image.samples(planes=2), axis=1)
        own = own_channels(samples, spec.neighbours)
        normalised.append(scales[id(image)].apply(own))
    measured = norm.measure(np.concatenate(normalised, axis=1))
    return measured.center, measured.spread


def _groups(planes: Sequence[LabelledRegion]) -> list[Hashable]:
    """What each plane comes from: its image, or of a single image the slice."""
    groups: list[Hashable] = [id(region.pair.image) for region in planes]
    if len(set(groups)) == 1:
        groups = [tuple(sorted(region.index.items())) for region in planes]
    return groups


def _read_blocks(
    region: LabelledRegion, spec: ModelSpec
) -> tuple[list[Array], list[Array]]:
    """Blocks (C, Y, X) spread over a plane, and their class indices.

    A small plane is read as a whole.
    """
    rows, columns = region.shape
    blocks, labels = [], []
    for y in spread_slices(rows):
        for x in spread_slices(columns):
            block, indices = region.block((y, x)).read(spec.classes)
            blocks.append(own_channels(block, spec.neighbours))
            labels.append(indices)
    return blocks, labels


def _count_classes(
    blocks: Sequence[Array],
    labels: Sequence[Array],
    spec: ModelSpec,
    scale: Scale,
    center: Sequence[float],
    spread: Sequence[float],
) -> Array:
    """Count the pixels of each class in each bin (channels, classes, bins)."""
    counts = np.zeros((len(blocks[0]), len(spec.classes), BINS))
    for block, indices in zip(blocks, labels, strict=True):
        for index in range(len(spec.classes)):
            values = block[:, indices == index]
            for channel, of_channel in enumerate(values):
                bins = Bins.of(scale, channel, center, spread)
                counts[channel, index] += bins.count(of_channel)
    return counts


def _cut_tiles(blocks: Sequence[Array], count: int, offset: Array) -> list[Array]:
    """Tiles spread evenly over blocks; none twice."""
    places = {}
    for number in range(count):
        block = number % len(blocks)
        _, rows, columns = blocks[block].shape
        height, width = min(SIDE, rows), min(SIDE, columns)
        y, x = (offset + number * STEPS) % 1
        row, column = int(y * (rows - height + 1)), int(x * (columns - width + 1))
        tile = blocks[block][:, row : row + height, column : column + width]
        places[block, row, column] = tile
    return list(places.values())


def _reference(
    planes: Sequence[_Plane], center: tuple[float, ...], spread: tuple[float, ...]
) -> DriftReference | None:
    tiles = [tile for plane in planes for tile in plane.tiles]
    if not tiles:
        return None
    # (channels, tiles, bins)
    histograms = np.stack([tile.histogram for tile in tiles], axis=1)
    energies = _mean_energies(np.stack([plane.whole.energies for plane in planes]))
    components = np.concatenate([histograms, _class_histograms(planes)], axis=1)
    tile_share = tile_detail = math.nan
    if len(tiles) > 1:
        chosen = np.arange(0, len(tiles), math.ceil(len(tiles) / COMPARED_TILES))
        others = np.arange(components.shape[1]) != chosen[:, None]
        shares = _shares(histograms[:, chosen], components, others)
        tile_share = float(np.median(shares))
        tile_energies = np.stack([tile.energies for tile in tiles])
        tile_detail = float(np.median(_details(tile_energies, energies)))
    share, detail = _compare_groups(planes)
    return DriftReference(
        center,
        spread,
        components.astype(np.float16),
        energies,
        share,
        detail,
        tile_share,
        tile_detail,
    )


def _compare_groups(planes: Sequence[_Plane]) -> tuple[float, float]:
    """Compare each image with the others; medians of unexplained share and detail.

    NaN for a single image of one plane.
    """
    groups = list(dict.fromkeys(plane.group for plane in planes))
    if len(groups) < 2:
        return math.nan, math.nan
    shares: list[float] = []
    details: list[float] = []
    for group in groups:
        own = [plane for plane in planes if plane.group == group]
        others = [plane for plane in planes if plane.group != group]
        tiles = [tile.histogram for plane in others for tile in plane.tiles]
        if not tiles:
            continue
        components = np.concatenate(
            [np.stack(tiles, axis=1), _class_histograms(others)], axis=1
        )
        whole = np.stack([plane.whole.histogram for plane in own], axis=1)
        shares += _shares(whole, components).tolist()
        energies = _mean_energies(np.stack([p.whole.energies for p in others]))
        own_energies = np.stack([plane.whole.energies for plane in own])
        details += _details(own_energies, energies).tolist()
    return float(np.median(shares)), float(np.median(details))


def _class_histograms(planes: Sequence[_Plane]) -> Array:
    """Histograms of the classes with enough pixels (channels, classes, bins)."""
    counts = np.sum([plane.classes for plane in planes], axis=0)
    totals = counts[0].sum(-1)
    counts = counts[:, totals >= CLASS_PIXELS]
    return smooth(counts / np.maximum(counts.sum(-1, keepdims=True), 1))


def _mean_energies(energies: Array) -> Array:
    """Mean over the first axis; NaN (a plane too small for a band) does not count."""
    counts = np.isfinite(energies).sum(0)
    sums = np.nansum(energies, axis=0)
    mean: Array = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    return mean


def _shares(histograms: Array, tiles: Array, allowed: Array | None = None) -> Array:
    """Unexplained shares; of several channels, the largest counts."""
    shares = [
        unexplained_shares(channel, of_tiles, allowed)
        for channel, of_tiles in zip(histograms, tiles, strict=True)
    ]
    largest: Array = np.max(shares, axis=0)
    return largest


def _details(energies: Array, reference: Array) -> Array:
    largest: Array = np.abs(detail_changes(energies, reference)).max(axis=1)
    return largest
