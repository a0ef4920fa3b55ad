"""Synthetic stacks with exact labels, for the demo, tests and first steps.

Both imitate how such images are formed: materials are placed in space (these are the
labels), get grey values, and are seen through an instrument that blurs, shades and adds
noise. The grey values of the classes overlap, so that a threshold is not enough: for
seed 0 and the default shapes the best thresholds reach a mean IoU of .69 (sandstone;
clay .36) and .61 (cells). Boosted trees on multiscale features, trained on seed 0,
reach .79 and .87 on seed 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from napari_strata.core.classes import ClassMap
from napari_strata.core.errors import ImageError
from napari_strata.core.image import AnnotatedImage, Image

Array = np.ndarray[Any, Any]
Shape = tuple[int, int, int]

SANDSTONE = ClassMap(
    names=("pore", "clay", "quartz", "heavy mineral"),
    values=(1, 2, 3, 4),
    colors=("#4477aa", "#ee8866", "#ddcc77", "#aa3377"),
)
CELLS = ClassMap(
    names=("background", "cytoplasm", "nucleus"),
    values=(0, 1, 2),
    colors=("#333333", "#44bb99", "#ee6677"),
)


DEMO_RECIPE = "unet-ct"
DEMO_OVERRIDES: Mapping[str, Any] = MappingProxyType(
    {
        "network.widths": (16, 32, 64, 128),
        "training.epochs": 30,
        "patches.per_epoch": 256,
    }
)
"""Overrides of `DEMO_RECIPE` in the demos on the sandstone.

The network is smaller than the recipe's, so that two cores finish within the four
minutes that the README promises.
"""


def sandstone(shape: Shape = (8, 192, 192), *, seed: int = 0) -> AnnotatedImage:
    """Create a micro-CT image of a sandstone.

    It has quartz grains, pores between them, clay in the throats, and bright heavy
    minerals.

    Parameters
    ----------
    shape
        Planes, rows and columns. The rock is continuous along Z; slices are not
        independent.
    seed
        Seed of the random numbers. The same seed gives the same stack; another seed
        gives another piece of the same rock with the same grey values.

    Returns
    -------
    AnnotatedImage
        The image is uint16 with axes ZYX and voxels of 2.1 micrometer. The labels are
        uint8 with the same shape: 1 pore, 2 clay, 3 quartz, 4 heavy mineral
        (`SANDSTONE`). Every voxel is labelled.

    Raises
    ------
    ImageError
        When `shape` is not three positive numbers.

    Notes
    -----
    Grains are cells of a warped Voronoi diagram. A voxel is pore space if it is far
    from the centre of its grain or close to the next grain. Clay fills part of that
    space. It is microporous, so its grey values range from pore to quartz, and only its
    texture distinguishes it from a blurred grain edge. Partial volume, noise, cupping
    and rings are added.
    """
    _check(shape)
    rng = np.random.default_rng(seed)
    labels, grain = _rock(rng, shape)
    grey = np.array([0, 50, 90, 125, 228], np.float32)[labels]
    grey += np.where(
        labels == 3, rng.normal(0, 4, grain.max() + 1).astype(np.float32)[grain], 0
    )
    grey += np.where(labels == 2, 36 * _noise(rng, shape, 1.7), 0)
    grey += np.where(labels == 4, 18 * _noise(rng, shape, 4), 0)
    grey = ndimage.gaussian_filter(grey, 0.9)
    grey += ndimage.gaussian_filter(rng.standard_normal(shape, np.float32), 0.6) * 20
    grey += _rings(rng, shape)
    return _pair(
        grey * 200, labels, SANDSTONE, scale=(2.1, 2.1, 2.1), name=f"sandstone {seed}"
    )


def cells(shape: Shape = (6, 192, 192), *, seed: int = 0) -> AnnotatedImage:
    """Create a widefield fluorescence image of a layer of cells.

    It has nuclei in cytoplasm over a dark background.

    Parameters
    ----------
    shape
        Planes, rows and columns. The first plane is at the coverslip, the last above
        the cells.
    seed
        Seed of the random numbers. Another seed gives another field of view with
        another exposure.

    Returns
    -------
    AnnotatedImage
        The image is uint16 with axes ZYX and voxels of 1 x 0.4 x 0.4 micrometer. The
        labels are uint8 with the same shape: 0 background, 1 cytoplasm, 2 nucleus
        (`CELLS`). Every voxel is labelled.

    Raises
    ------
    ImageError
        When `shape` is not three positive numbers.

    Notes
    -----
    The stain differs between cells, the illumination is uneven, the dye bleaches from
    plane to plane, planes out of focus add haze, and photons are counted with Poisson
    noise. Grey values are relative: the same value has another meaning in another plane
    or corner.
    """
    _check(shape)
    rng = np.random.default_rng(seed)
    labels, cell = _layer(rng, shape)
    count = cell.max() + 1
    uptake = (
        rng.lognormal(0, 0.35, count) * rng.lognormal(0, 0.15, (2, count))
    ).astype(np.float32)[:, cell]
    texture = np.exp(0.3 * _noise(rng, shape, 2.5))
    light = (
        3
        + 18 * (labels == 1) * uptake[0] * texture
        + 65 * (labels == 2) * uptake[1] * np.sqrt(texture)
    )
    haze = ndimage.gaussian_filter(light, (1.5, 8, 8))
    light = 0.8 * ndimage.gaussian_filter(light, (0.4, 1.0, 1.0)) + 0.25 * haze
    photons = rng.poisson(light * _lamp(rng, shape) * rng.uniform(0.8, 1.25))
    camera = 100 + 8 * photons + rng.normal(0, 6, shape)
    return _pair(camera, labels, CELLS, scale=(1.0, 0.4, 0.4), name=f"cells {seed}")


def _rock(rng: np.random.Generator, shape: Shape) -> tuple[Array, Array]:
    """Return label values and the number of the grain of each voxel."""
    distances, grain = _nearest(
        _warped(rng, shape, length=18, by=3.5), _scattered(rng, shape, spacing=38)
    )
    gap = distances[..., 1] - distances[..., 0]
    # Pores are far from the centres of both grains. Where grains touch there are
    # throats, some of which the noise closes. The gap is rounded off near 0, because
    # throats thinner than a voxel would be labelled but invisible.
    pore_space = (
        0.6 * (distances[..., 0] - 24)
        - 0.5 * np.sqrt(gap**2 + 9)
        + 1.9
        + 1.5 * _noise(rng, shape, 22)
    )
    pore_space = ndimage.gaussian_filter(pore_space, 1)
    clay = (
        ndimage.gaussian_filter(_noise(rng, shape, 26) + 0.4 * _noise(rng, shape, 8), 1)
        > 0.3
    )
    labels = np.full(shape, 3, np.uint8)
    labels[pore_space > 0] = 1
    labels[clay & (pore_space > -1.2)] = 2
    labels[_flecks(rng, shape)] = 4
    return labels, grain


def _flecks(rng: np.random.Generator, shape: Shape) -> Array:
    """Place heavy minerals: small irregular bodies, a few in every plane."""
    distances, _ = _nearest(
        _warped(rng, shape, length=6, by=1.2), _scattered(rng, shape, spacing=28)
    )
    size: Array = 4.0 + 1.6 * _noise(rng, shape, 30)
    return distances[..., 0] < size


def _layer(rng: np.random.Generator, shape: Shape) -> tuple[Array, Array]:
    """Return label values and the number of the cell of each voxel."""
    points = _warped(rng, shape, length=20, by=2.8)[..., 1:]
    centers = _scattered(rng, shape[1:], spacing=36, jitter=0.36)
    centers = centers[rng.random(len(centers)) < 0.75]
    distances, cell = _nearest(points, centers)
    height = (np.arange(shape[0], dtype=np.float32) / max(shape[0] - 1, 1))[
        :, None, None
    ]
    reach = rng.uniform(16, 26, len(centers))[cell] * np.sqrt(1.05 - 0.6 * height)
    gap = distances[..., 1] - distances[..., 0]
    body = (distances[..., 0] < reach) & (gap > 2.5)
    nucleus = body & _nuclei(rng, points - centers[cell], cell, height)
    return body.astype(np.uint8) + nucleus, cell


def _nuclei(
    rng: np.random.Generator, offset: Array, cell: Array, height: Array
) -> Array:
    """Return a mask of the voxels in the ellipsoid of their cell's nucleus.

    Parameters
    ----------
    offset
        Distance of each voxel from the centre of its cell along Y and X.
    height
        Position along Z, from 0 to 1.
    """
    count = cell.max() + 1
    offset = offset - rng.normal(0, 2.0, (count, 2))[cell]
    y, x = offset[..., 0], offset[..., 1]
    angle = rng.uniform(0, np.pi, count)
    cos, sin = np.cos(angle)[cell], np.sin(angle)[cell]
    long, middle = rng.uniform(8, 12, count)[cell], rng.uniform(0.25, 0.6, count)[cell]
    across, along = (y * sin - x * cos) / (0.72 * long), (y * cos + x * sin) / long
    inside: Array = across**2 + along**2 + ((height - middle) / 0.8) ** 2 < 1
    return inside


def _scattered(
    rng: np.random.Generator,
    shape: Sequence[int],
    *,
    spacing: float,
    jitter: float = 0.4,
) -> Array:
    """Return random points, one in each cube of side `spacing`.

    The cubes cover the volume and its surroundings.

    Returns
    -------
    Array
        Coordinates in pixels, (points, dimensions).
    """
    cubes = np.indices([int(np.ceil(n / spacing)) + 4 for n in shape])
    corners = cubes.reshape(len(shape), -1).T - 2
    points: Array = (
        corners + 0.5 + rng.uniform(-jitter, jitter, corners.shape)
    ) * spacing
    return points


def _nearest(points: Array, centers: Array) -> tuple[Array, Array]:
    """Return the distances (points, 2) to the two nearest centres, and the nearest.

    The nearest centre is given by its number.
    """
    distance, index = cKDTree(centers).query(points, k=2, workers=-1)
    return distance.astype(np.float32), index[..., 0]


def _warped(
    rng: np.random.Generator, shape: Shape, *, length: float, by: float
) -> Array:
    """Return smoothly distorted coordinates (Z, Y, X, 3) of the voxels."""
    return np.stack(
        [
            axis + by * _noise(rng, shape, length)
            for axis in np.indices(shape, np.float32)
        ],
        axis=-1,
    )


def _noise(rng: np.random.Generator, shape: Shape, length: float) -> Array:
    """Return a smooth random field that changes over `length` pixels.

    It has mean 0 and standard deviation 1 at every voxel.
    """
    splines = [_spline(rng, n, length) for n in shape]
    field = rng.standard_normal([s.shape[1] for s in splines], np.float32)
    for spline in splines:  # each step replaces the first axis by a finer last axis
        field = np.tensordot(field, spline, axes=(0, 1))
    return field


def _spline(rng: np.random.Generator, count: int, length: float) -> Array:
    """Return weights (count, knots) of a cubic B-spline with unit variance.

    The coefficients of the spline are independent random numbers.
    """
    position = rng.random() + np.arange(count) / length
    knots = np.arange(int(position[-1]) + 4)
    distance = np.abs(position[:, None] + 1 - knots)
    weights = (
        np.clip(2 - distance, 0, None) ** 3 - 4 * np.clip(1 - distance, 0, None) ** 3
    )
    out: Array = (weights / np.sqrt((weights**2).sum(axis=1, keepdims=True))).astype(
        np.float32
    )
    return out


def _rings(rng: np.random.Generator, shape: Shape) -> Array:
    """Return ring artefacts and cupping in grey levels.

    The rings are around the rotation axis and differ between detector rows.
    """
    rows, columns = np.indices(shape[1:], np.float32)
    radius = np.hypot(rows - 0.46 * shape[1], columns - 0.53 * shape[2])
    bins = int(radius.max()) + 2
    profile = rng.standard_normal((shape[0], bins), np.float32) + rng.standard_normal(
        bins, np.float32
    )
    profile = (
        10
        * (profile - ndimage.uniform_filter1d(profile, 9, axis=1))
        * (rng.random(bins) < 0.3)
    )
    rings = np.stack([np.interp(radius, np.arange(bins), line) for line in profile])
    cupping = 5 * (radius / radius.max()) ** 2
    out: Array = (rings / np.sqrt(1 + radius / 40) + cupping).astype(np.float32)
    return out


def _lamp(rng: np.random.Generator, shape: Shape) -> Array:
    """Return the illumination of each voxel, uneven in XY and fading along Z."""
    rows, columns = (np.linspace(-1, 1, n, dtype=np.float32) for n in shape[1:])
    y, x = rng.uniform(-0.4, 0.4, 2)
    field = np.exp(-((rows[:, None] - y) ** 2 + (columns - x) ** 2) / 1.6)
    bleached = np.exp(-np.arange(shape[0], dtype=np.float32) / max(shape[0], 2) * 0.7)
    out: Array = bleached[:, None, None] * field
    return out


def _pair(
    grey: Array,
    labels: Array,
    classes: ClassMap,
    *,
    scale: tuple[float, ...],
    name: str,
) -> AnnotatedImage:
    data = np.clip(np.round(grey), 0, 65535).astype(np.uint16)
    image = Image(data, "ZYX", scale=scale, units=("micrometer",) * 3, name=name)
    return AnnotatedImage(image, image.labels_like(labels, classes=classes))


def _check(shape: Shape) -> None:
    if len(shape) != 3 or min(shape) < 1:
        raise ImageError(
            f"found sample shape {tuple(shape)}; needed are three sizes, for example"
            " (8, 192, 192)."
        )
