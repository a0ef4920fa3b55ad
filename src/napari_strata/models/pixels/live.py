"""Segmentation of what a viewer shows, from the strokes that it holds at the moment.

`FeatureCache` keeps the features of the planes that were looked at. `fit_strokes` fits
a classifier on the current strokes, and `segment` segments a part of a plane, at half
resolution first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from napari_strata.core.classes import IGNORE
from napari_strata.core.network_sections import Pixels
from napari_strata.core.tiling import Box
from napari_strata.models.pixels import kernels
from napari_strata.models.pixels.classifier import PixelClassifier, guide_of
from napari_strata.models.pixels.features import compute_features
from napari_strata.models.pixels.guided_filter import estimate_noise
from napari_strata.models.pixels.threads import single_threaded_pool
from napari_strata.models.tiled import class_indices

Array = np.ndarray[Any, Any]

PLANES = 8
"""Planes whose features are kept; one of 1024 x 996 pixels takes 39 MB."""


@dataclass(frozen=True, eq=False)
class PlaneFeatures:
    """Features of a plane, and its grey values.

    Parameters
    ----------
    features
        float16 (F, H, W).
    image
        scaled grey values float32 (C, H, W).
    noise
        standard deviation of its noise.
    """

    features: Tensor
    image: Tensor
    noise: float


class FeatureCache:
    """Features of the planes that were asked for last.

    Parameters
    ----------
    read
        gives the scaled grey values float32 (C, H, W) of a plane, from its key.
    levels
        octave levels of the features.
    planes
        number of planes that are kept.
    device
        that computes and keeps them.

    Fitting and segmenting both use the rounded float16 values, so that a pixel under a
    stroke has the same features in both.
    """

    def __init__(
        self,
        read: Callable[[Hashable], Array],
        *,
        levels: int,
        planes: int = PLANES,
        device: torch.device | str = "cpu",
    ) -> None:
        self.levels = levels
        self.device = torch.device(device)
        self._read = read
        self._most = planes
        self._planes: OrderedDict[Hashable, PlaneFeatures] = OrderedDict()
        self._strokes: dict[Hashable, tuple[Array, Array]] = {}

    def plane(self, key: Hashable) -> PlaneFeatures:
        """Return the features of a plane; they are computed if they are not kept."""
        if key not in self._planes:
            image = torch.from_numpy(self._read(key))
            noise = estimate_noise(guide_of(image).numpy())
            image = image.to(self.device)
            with single_threaded_pool() as pool:
                # In one thread: the caller stays free, torch's own threads do not spin.
                job = pool.submit(compute_features, image, self.levels)
                features = job.result().half()
            self._planes[key] = PlaneFeatures(features, image, noise)
            while len(self._planes) > self._most:
                self._planes.popitem(last=False)
        self._planes.move_to_end(key)
        return self._planes[key]

    def labelled(self, strokes: Mapping[Hashable, Array]) -> tuple[Array, Array]:
        """Return features and classes of all labelled pixels.

        Those under strokes that have not changed are kept, also of planes that are not.

        Parameters
        ----------
        strokes
            class indices uint8 (H, W) of each plane that has some, or `IGNORE`.

        Returns
        -------
        float32 (n, F) and int64 (n,).
        """
        for key in self._strokes.keys() - strokes.keys():
            del self._strokes[key]
        features, labels = [], []
        for key, painted in strokes.items():
            places = np.flatnonzero(painted != IGNORE)
            known_places, known = self._strokes.get(key, (None, None))
            if known_places is None or not np.array_equal(known_places, places):
                rows = self.plane(key).features.flatten(1)
                picked = rows[:, torch.from_numpy(places).to(self.device)]
                known = picked.float().T.cpu().numpy()
                self._strokes[key] = (places, known)
            assert known is not None
            features.append(known)
            labels.append(painted.ravel()[places].astype(np.int64))
        if not features:
            return np.empty((0, 0), np.float32), np.empty(0, np.int64)
        return np.concatenate(features), np.concatenate(labels)

    def forget(self, key: Hashable | None = None) -> None:
        """Drop a plane whose grey values have changed, or all of them."""
        if key is None:
            self._planes.clear()
            self._strokes.clear()
        else:
            self._planes.pop(key, None)
            self._strokes.pop(key, None)


def fit_strokes(
    cache: FeatureCache,
    strokes: Mapping[Hashable, Array],
    *,
    classes: int,
    section: Pixels,
    seed: int = 0,
) -> PixelClassifier:
    """Fit a classifier on the current strokes.

    Parameters
    ----------
    strokes
        see `FeatureCache.labelled`; at least one pixel.
    section
        trees and filter; its levels are those of the cache.
    """
    features, labels = cache.labelled(strokes)
    noise = [cache.plane(key).noise for key in strokes]
    return PixelClassifier.fit(
        features,
        labels,
        classes=classes,
        section=section,
        levels=cache.levels,
        noise=float(np.median(noise)),
        seed=seed,
    )


def segment(
    classifier: PixelClassifier, plane: PlaneFeatures, box: Box, *, step: int = 1
) -> tuple[Array, Array]:
    """Segment a part of a plane.

    Parameters
    ----------
    box
        rows and columns.
    step
        1 for every pixel, 2 for every second row and column: a quarter of the work. The
        filter's radius is divided by it, too.

    Returns
    -------
    class indices uint8 (h, w), and the margin float32 (h, w) between the two largest
    probabilities, with h and w those of the box, divided by the step and rounded up.
    """
    rows, columns = box
    coarse = classifier.coarser(step)
    with single_threaded_pool() as pool:
        bands = _bands(rows, step, count=pool.size)
        jobs = [
            pool.submit(_segment_box, coarse, plane, band, columns, step)
            for band in bands
        ]
        indices, margins = zip(*(job.result() for job in jobs), strict=True)
    return np.concatenate(indices), np.concatenate(margins)


def _bands(rows: slice, step: int, *, count: int) -> list[slice]:
    """Cut rows into bands of about the same height.

    They begin at multiples of a step from the first row.
    """
    total = -(-(rows.stop - rows.start) // step)
    cuts = sorted({total * i // count for i in range(count + 1)})
    starts = [rows.start + cut * step for cut in cuts[:-1]]
    return [
        slice(start, stop)
        for start, stop in zip(starts, [*starts[1:], rows.stop], strict=True)
    ]


@torch.inference_mode()
def _segment_box(
    classifier: PixelClassifier,
    plane: PlaneFeatures,
    rows: slice,
    columns: slice,
    step: int,
) -> tuple[Array, Array]:
    """`segment`, in this thread."""
    margin = 2 * classifier.filter_radius * step
    read, crop = [], []
    for part, length in zip((rows, columns), plane.image.shape[-2:], strict=True):
        # As many steps before the part as the filter looks back.
        before = min(part.start // step, margin // step)
        start = part.start - before * step
        read.append(slice(start, min(part.stop + margin, length), step))
        crop.append(slice(before, before - (part.start - part.stop) // step))
    features = plane.features[:, *read].float()
    chances = classifier.probabilities(features, plane.image[:, *read])[:, *crop]
    best = chances.topk(2, dim=0).values
    indices = class_indices(chances[None])[0].cpu().numpy()
    return indices, (best[0] - best[1]).cpu().numpy()


def warm_up() -> None:
    """Compile or load what the first stroke would wait for."""
    kernels.warm_up()
