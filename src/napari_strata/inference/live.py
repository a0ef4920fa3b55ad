"""Live segmentation: a pixel classifier that is fitted again after each stroke."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from napari_strata.core.classes import IGNORE, ClassMap
from napari_strata.core.errors import LabelError
from napari_strata.core.geometry import octave_reach
from napari_strata.core.image import AnnotatedImage, Image
from napari_strata.core.network_sections import LEVELS, Pixels
from napari_strata.core.normalization import Scale
from napari_strata.core.recipe import Recipe
from napari_strata.core.spec import ModelSpec, resolve
from napari_strata.core.tiling import Box, Tile, plan_tiles
from napari_strata.data.strokes import number_strokes
from napari_strata.data.windows import SIDE, choose_window, count_windows
from napari_strata.inference.levels import CHOICE_PIXELS, choose_levels
from napari_strata.models.pixels.classifier import PixelClassifier, guide_of
from napari_strata.models.pixels.features import compute_features, features_at
from napari_strata.models.pixels.guided_filter import estimate_noise
from napari_strata.models.pixels.threads import single_threaded_pool

Array = np.ndarray[Any, Any]
Plane: TypeAlias = tuple[tuple[str, int], ...]
"""Index of a plane as sorted pairs, such as ``(("Z", 3),)``; empty for a 2D image."""

TILE = 512
"""Side of the tiles of a plane, in pixels."""
CACHE_BYTES = 2**30
"""Memory for features: of about eight planes of 1024 x 1024 pixels and 3 levels."""
MASK_BYTES = 2**26
"""Memory for masks and their margins: of 21 planes of 1024 x 1024 pixels."""
PLANES_KEPT = 2
"""Scaled planes that are kept: the one in view, and the one before it."""
COARSE_STEP = 2
"""The coarse mask is computed for every second pixel along Y and X."""
CHOICE_TILE = 256
"""Side of the tiles of `choose_levels`: small, so that it can be stopped soon."""
COARSE_TREES = 20
"""Trees of the coarse mask after a stroke: a fit of a fifth of the time."""


@dataclass(frozen=True, eq=False)
class MaskPart:
    """Label values of a part of a plane.

    Parameters
    ----------
    box
        Rows and columns in the plane.
    labels
        Label values (h, w).
    stage
        "coarse": half the resolution, without filter; "full": the final labels.
    margins
        Differences between the probabilities of the two likeliest classes, float16
        (h, w); None in a coarse part.
    """

    box: Box
    labels: Array
    stage: Literal["coarse", "full"]
    margins: Array | None = None


@dataclass(frozen=True, eq=False)
class NextWindow:
    """Window to be painted next; see `LiveSegmentation.find_window`.

    Parameters
    ----------
    index
        T and Z of the plane.
    box
        Rows and columns of the window.
    margin
        Mean difference between the probabilities of the two likeliest classes.
    labels
        Label values of the mask in the window (h, w).
    changed
        Share of the pixels whose label changed since the window before, on the planes
        that were segmented for both; None if there is no such plane.
    """

    index: dict[str, int]
    box: Box
    margin: float
    labels: Array
    changed: float | None


@dataclass(frozen=True, eq=False)
class _Mask:
    """Label values and margins (H, W) of a plane that a classifier segmented."""

    classifier: PixelClassifier
    labels: Array
    margins: Array


@dataclass(frozen=True, eq=False)
class _Strokes:
    """Labelled pixels of a plane: flat indices, class indices and features (n, F).

    `numbers` has the number of the stroke of each pixel, from 1 on; `windows` is the
    number of small windows among them.
    """

    positions: Array
    labels: Array
    features: Array
    numbers: Array
    windows: int
    noise: float

    @property
    def count(self) -> int:
        """Number of strokes."""
        return int(self.numbers.max())


class LiveSegmentation:
    """A pixel classifier of the strokes on one image.

    Call `set_labels` for each plane whose labels have changed, then `fit`, then
    `iter_mask` for the plane in view. Features of strokes and of planes in view are
    kept, so that a second stroke costs little.

    Parameters
    ----------
    image
        Image of any size; planes are read when they are needed.
    classes
        Meaning of the label values.
    recipe
        A recipe of the kind ``pixels``. Where it leaves the number of octave levels
        open, the smallest is taken; `choose_levels` compares them.
    device
        Device that computes features and masks.

    Raises
    ------
    LabelError, ImageError
        As `core.spec.resolve`.
    """

    def __init__(
        self, image: Image, classes: ClassMap, recipe: Recipe, *, device: torch.device
    ) -> None:
        section = recipe.network
        assert isinstance(section, Pixels)
        if section.levels is None:
            section = section.model_copy(update={"levels": min(LEVELS)})
            recipe = recipe.model_copy(update={"network": section})
        self.image = image
        self.section = section
        self.device = device
        self.seed = recipe.training.seed
        nothing = np.broadcast_to(np.uint8(0), image.label_shape)
        pair = AnnotatedImage(image, image.labels_like(nothing, classes=classes))
        self.spec: ModelSpec = resolve(recipe, pair, classes=classes)
        samples = np.concatenate(image.samples(), axis=1)
        self._scale: Scale = self.spec.normalization.scale_for(samples, image.dtype)
        self._strokes: dict[Plane, _Strokes] = {}
        self._planes: OrderedDict[Plane, Tensor] = OrderedDict()
        self._features: OrderedDict[tuple[Plane, int], Tensor] = OrderedDict()
        self._classifier: PixelClassifier | None = None
        self._masks: OrderedDict[Plane, _Mask] = OrderedDict()
        self._window_classifier: PixelClassifier | None = None
        self._window_labels: dict[Plane, Array] = {}
        self._changed: float | None = None

    @property
    def stroke_count(self) -> int:
        """Number of strokes on all planes."""
        return sum(strokes.count for strokes in self._strokes.values())

    @property
    def pixel_count(self) -> int:
        """Number of labelled pixels on all planes."""
        return sum(len(strokes.labels) for strokes in self._strokes.values())

    def set_labels(self, index: Mapping[str, int], labels: Array) -> None:
        """Take up the labels of a plane.

        Features are computed for the pixels that were not labelled before.

        Parameters
        ----------
        index
            T and Z of the plane, those that the image has.
        labels
            Label values (H, W).
        """
        plane = _key(index)
        positions, class_indices = self._labelled_pixels(labels)
        if not len(positions):
            self.forget_labels(index)
            return
        before = self._strokes.get(plane)
        is_same = before is not None and np.array_equal(before.positions, positions)
        if before is not None and is_same:
            if np.array_equal(before.labels, class_indices):
                return
            features, noise = before.features, before.noise
        else:
            features, noise = self._stroke_features(plane, positions, before)
        numbers, windows = _number_strokes(positions, class_indices, labels.shape)
        self._strokes[plane] = _Strokes(
            positions, class_indices, features, numbers, windows, noise
        )
        self._classifier = None

    def _labelled_pixels(self, labels: Array) -> tuple[Array, Array]:
        """Flat indices and class indices of the labelled pixels of a plane."""
        classes, values = self.spec.classes, labels.ravel()
        if 0 in classes.unlabelled:  # few pixels are left, which is fast
            positions = np.flatnonzero(values)
        else:
            positions = np.arange(values.size)
        class_indices = classes.encode(values[positions])
        is_labelled = class_indices != IGNORE
        return positions[is_labelled], class_indices[is_labelled].astype(np.int64)

    def forget_labels(self, index: Mapping[str, int]) -> None:
        """Forget the labels of a plane."""
        if self._strokes.pop(_key(index), None) is not None:
            self._classifier = None

    def _stroke_features(
        self, plane: Plane, positions: Array, before: _Strokes | None
    ) -> tuple[Array, float]:
        """Features (n, F) of labelled pixels, and the noise of their plane."""
        scaled = self._scaled(plane)
        if before is None:
            guide = guide_of(scaled, self.spec.neighbours)
            noise = estimate_noise(guide.numpy())
            return self._features_at(scaled, positions), noise
        is_known = np.isin(positions, before.positions)
        features = np.empty((len(positions), before.features.shape[1]), np.float32)
        rows = np.searchsorted(before.positions, positions[is_known])
        features[is_known] = before.features[rows]
        if not is_known.all():
            features[~is_known] = self._features_at(scaled, positions[~is_known])
        return features, before.noise

    def _features_at(self, scaled: Tensor, positions: Array) -> Array:
        with single_threaded_pool():
            return features_at(
                scaled, positions, self.section.resolved_levels, device=self.device
            )

    def fit(self) -> PixelClassifier:
        """Fit the classifier, unless no label has changed since the last fit.

        Raises
        ------
        LabelError
            when fewer than two classes are labelled.
        """
        if self._classifier is None:
            self._classifier = self._fit(self.section)
        return self._classifier

    def choose_levels(self) -> tuple[int, str]:
        """Choose the number of octave levels by held-out strokes, and say why.

        It takes seconds, and changes nothing. For a segmentation with these levels,
        give them in the recipe.

        Raises
        ------
        LabelError
            when nothing is labelled.
        """
        if not self._strokes:
            raise LabelError("found no strokes; paint two classes at least.")
        rng = np.random.default_rng(self.seed)
        share = min(1.0, CHOICE_PIXELS / self.pixel_count)
        features, labels, numbers = [], [], []
        last_stroke = 0
        for plane, strokes in self._strokes.items():
            size = math.ceil(share * len(strokes.labels))
            chosen = np.sort(rng.choice(len(strokes.labels), size, replace=False))
            features.append(
                features_at(
                    self._scaled(plane),
                    strokes.positions[chosen],
                    max(LEVELS),
                    device=self.device,
                    tile=CHOICE_TILE,
                )
            )
            labels.append(strokes.labels[chosen])
            numbers.append(strokes.numbers[chosen] + last_stroke)
            last_stroke += strokes.count
        return choose_levels(
            np.concatenate(features),
            np.concatenate(labels),
            np.concatenate(numbers),
            classes=len(self.spec.classes),
            channels=self.spec.in_channels,
            section=self.section,
            seed=self.seed,
        )

    def _fit_coarse(self) -> PixelClassifier:
        """Fit a few trees, unless there are all trees for these labels."""
        if self._classifier is not None:
            return self._classifier
        trees = min(self.section.trees, COARSE_TREES)
        return self._fit(self.section.model_copy(update={"trees": trees}))

    def _fit(self, section: Pixels) -> PixelClassifier:
        strokes = list(self._strokes.values())
        labels = np.concatenate([each.labels for each in strokes] or [np.empty(0, int)])
        painted = np.unique(labels)
        if len(painted) < 2:
            names = [self.spec.classes.names[index] for index in painted]
            raise LabelError(
                f"found strokes of {len(painted)} classes"
                f" ({', '.join(names) or 'none'}); paint two classes at least."
            )
        features = np.concatenate([each.features for each in strokes])
        if len(labels) > section.pixels:
            rng = np.random.default_rng(self.seed)
            chosen = np.sort(rng.choice(len(labels), section.pixels, replace=False))
            features, labels = features[chosen], labels[chosen]
        return PixelClassifier.fit(
            features,
            labels,
            classes=len(self.spec.classes),
            section=section,
            levels=section.resolved_levels,
            windows=sum(each.windows for each in strokes),
            noise=float(np.median([each.noise for each in strokes])),
            neighbours=self.spec.neighbours,
            seed=self.seed,
        )

    def iter_mask(
        self,
        index: Mapping[str, int],
        visible: Box | None = None,
        *,
        coarse: bool = True,
        threads: int | None = None,
    ) -> Generator[MaskPart, None, None]:
        """Segment a plane, what is visible first.

        Close the generator when the view or the strokes change.

        Parameters
        ----------
        index
            T and Z of the plane.
        visible
            Rows and columns in view; None for the whole plane.
        coarse
            True to give a coarse mask of the visible part first.
        threads
            Number of threads on a CPU; None for as many as torch has.

        Yields
        ------
        Parts of the mask. Each pixel of the plane is in one part of the stage "full".
        """
        plane = _key(index)
        shape = self.image.size("Y"), self.image.size("X")
        labels = np.zeros(shape, self.spec.classes.dtype)
        margins = np.zeros(shape, np.float16)
        for part in self._iter_parts(plane, visible, coarse=coarse, threads=threads):
            if part.margins is not None:
                labels[part.box] = part.labels
                margins[part.box] = part.margins
            yield part
        mask = _Mask(self.fit(), labels, margins)
        self._masks[plane] = mask
        self._masks.move_to_end(plane)
        kept = MASK_BYTES // (mask.labels.nbytes + mask.margins.nbytes)
        while len(self._masks) > max(kept, 1):
            self._masks.popitem(last=False)

    def _iter_parts(
        self, plane: Plane, visible: Box | None, *, coarse: bool, threads: int | None
    ) -> Generator[MaskPart, None, None]:
        """Segment the tiles of a plane."""
        self._scaled(plane)
        height, width = self.image.size("Y"), self.image.size("X")
        tiles = plan_tiles(
            (height, width),
            tile=TILE,
            halo=2 * self.section.resolve_filter_radius(),
            stride=self.spec.stride,
        )
        near, far = _order(tiles, visible)
        if coarse:
            few_trees = self._fit_coarse()
            yield from self._iter_tiles(few_trees, plane, near, "coarse", threads)
        yield from self._iter_tiles(self.fit(), plane, near + far, "full", threads)

    def _iter_tiles(
        self,
        classifier: PixelClassifier,
        plane: Plane,
        tiles: Sequence[tuple[Tile, int]],
        stage: Literal["coarse", "full"],
        threads: int | None,
    ) -> Generator[MaskPart, None, None]:
        """Segment numbered tiles, on a CPU several at a time."""
        if self.device.type != "cpu":
            for tile, number in tiles:
                yield self._part(classifier, plane, tile, number, stage)
            return
        threads = threads or torch.get_num_threads()
        with single_threaded_pool(threads) as pool:
            # Few at a time, so that little work is lost when this is closed.
            for start in range(0, len(tiles), threads):
                parts = [
                    pool.submit(self._part, classifier, plane, tile, number, stage)
                    for tile, number in tiles[start : start + threads]
                ]
                for part in parts:
                    yield part.result()

    def _part(
        self,
        classifier: PixelClassifier,
        plane: Plane,
        tile: Tile,
        number: int,
        stage: Literal["coarse", "full"],
    ) -> MaskPart:
        """Segment a tile."""
        with torch.inference_mode():
            features = self._tile_features(plane, tile, number)
            if stage == "coarse":
                sampled = features[:, *tile.crop][:, ::COARSE_STEP, ::COARSE_STEP]
                sums = classifier.trees.sums(sampled.flatten(1))
                indices = sums.argmax(0).reshape(sampled.shape[1:]).cpu().numpy()
                indices = indices.repeat(COARSE_STEP, 0).repeat(COARSE_STEP, 1)
                down, across = (part.stop - part.start for part in tile.write)
                labels = self.spec.classes.decode(indices[:down, :across])
                return MaskPart(tile.write, labels, stage)
            image = self._scaled(plane)[:, *tile.read].to(self.device)
            probabilities = classifier.probabilities(features, image)[:, *tile.crop]
            best, winners = probabilities.max(0)
            second = probabilities.scatter(0, winners[None], -1).amax(0)
            margins = (best - second).half().cpu().numpy()
            labels = self.spec.classes.decode(winners.cpu().numpy())
        return MaskPart(tile.write, labels, stage, margins)

    def find_window(
        self,
        index: Mapping[str, int],
        *,
        side: int = SIDE,
        skipped: Sequence[tuple[Mapping[str, int], Box]] = (),
        threads: int | None = None,
    ) -> NextWindow:
        """Find the window where the mask is least certain.

        It is on one of the planes that `iter_mask` has segmented. A plane whose mask
        is older than the strokes is segmented again before a window on it is chosen.
        The same call gives the same window until the labels change.

        Parameters
        ----------
        index
            T and Z of the plane in view.
        side
            Side of the window, in pixels.
        skipped
            Planes and boxes that are not wanted; no window comes near to them.
        threads
            Number of threads, as for `iter_mask`.

        Raises
        ------
        LabelError
            when fewer than two classes are labelled, or when there is no free place.
        """
        self._update_mask(_key(index), threads)
        while True:
            planes = sorted(self._masks)
            window = choose_window(
                [self._masks[plane].margins for plane in planes],
                [self._taken(plane, skipped) for plane in planes],
                side=side,
            )
            if window is None:
                raise LabelError(
                    f"found no free place for a window of {side} x {side} pixels on"
                    f" the {len(planes)} planes looked at: turn to another plane, and"
                    " ask again."
                )
            plane = planes[window.plane]
            if not self._update_mask(plane, threads):
                break
        labels = self._masks[plane].labels[window.box]
        changed = self._measure_change()
        return NextWindow(dict(plane), window.box, window.margin, labels, changed)

    def _update_mask(self, plane: Plane, threads: int | None) -> bool:
        """Segment a plane unless its mask is up to date; True if it was segmented."""
        mask = self._masks.get(plane)
        if mask is not None and mask.classifier is self.fit():
            return False
        for _ in self.iter_mask(dict(plane), coarse=False, threads=threads):
            pass
        return True

    def _taken(
        self, plane: Plane, skipped: Sequence[tuple[Mapping[str, int], Box]]
    ) -> Array:
        """Pixels (H, W) of a plane that are labelled or were skipped."""
        taken = np.zeros((self.image.size("Y"), self.image.size("X")), bool)
        if plane in self._strokes:
            taken.ravel()[self._strokes[plane].positions] = True
        for index, box in skipped:
            if _key(index) == plane:
                taken[box] = True
        return taken

    def _measure_change(self) -> float | None:
        """Share of the pixels that have another label than at the window before.

        Only planes whose mask was up to date then and is now are compared.
        """
        classifier = self.fit()
        if classifier is self._window_classifier:
            return self._changed
        labels = {
            plane: mask.labels
            for plane, mask in self._masks.items()
            if mask.classifier is classifier
        }
        shares = [
            np.mean(now != self._window_labels[plane])
            for plane, now in labels.items()
            if plane in self._window_labels
        ]
        self._changed = float(np.mean(shares)) if shares else None
        self._window_classifier, self._window_labels = classifier, labels
        return self._changed

    def _tile_features(self, plane: Plane, tile: Tile, number: int) -> Tensor:
        """Features (F, h, w) of what a tile reads, from the cache if they are there."""
        key = (plane, number)
        features = self._features.get(key)
        if features is None:
            scaled = self._scaled(plane)
            reach = octave_reach(self.section.resolved_levels)
            reach = math.ceil(reach / self.spec.stride) * self.spec.stride
            outer = [
                slice(max(part.start - reach, 0), min(part.stop + reach, length))
                for part, length in zip(tile.read, scaled.shape[1:], strict=True)
            ]
            inner = [
                slice(part.start - around.start, part.stop - around.start)
                for part, around in zip(tile.read, outer, strict=True)
            ]
            image = scaled[:, *outer].to(self.device)
            whole = compute_features(image, self.section.resolved_levels)
            features = whole[:, *inner].clone()
            self._features[key] = features
            self._drop_oldest()
        else:
            self._features.move_to_end(key)
        return features

    def _drop_oldest(self) -> None:
        used = sum(each.nbytes for each in list(self._features.values()))
        while used > CACHE_BYTES and len(self._features) > 1:
            _, oldest = self._features.popitem(last=False)
            used -= oldest.nbytes

    def _scaled(self, plane: Plane) -> Tensor:
        """Scaled grey values float32 (C, H, W) of a plane, on the CPU."""
        scaled = self._planes.get(plane)
        if scaled is None:
            grey = self.image.read(dict(plane))
            scaled = torch.from_numpy(self._scale.apply(grey))
            self._planes[plane] = scaled
            while len(self._planes) > PLANES_KEPT:
                self._planes.popitem(last=False)
        return scaled


def _key(index: Mapping[str, int]) -> Plane:
    return tuple(sorted(index.items()))


def _number_strokes(
    positions: Array, labels: Array, shape: tuple[int, ...]
) -> tuple[Array, int]:
    """Number the strokes of a plane, pixel by pixel, and count its windows.

    Only the box around them is looked at.
    """
    rows, columns = np.divmod(positions, shape[1])
    rows, columns = rows - rows.min(), columns - columns.min()
    box = np.full((rows.max() + 1, columns.max() + 1), IGNORE, np.uint8)
    box[rows, columns] = labels
    return number_strokes(box)[rows, columns], count_windows(box)


def _order(
    tiles: Sequence[Tile], visible: Box | None
) -> tuple[list[tuple[Tile, int]], list[tuple[Tile, int]]]:
    """Tiles and their numbers: those in view from its centre outwards, then others."""
    numbered = [(tile, number) for number, tile in enumerate(tiles)]
    if visible is None:
        return numbered, []
    centre = [(part.start + part.stop) / 2 for part in visible]

    def distance(entry: tuple[Tile, int]) -> float:
        return math.hypot(
            *(
                (part.start + part.stop) / 2 - middle
                for part, middle in zip(entry[0].write, centre, strict=True)
            )
        )

    numbered.sort(key=distance)
    near = [entry for entry in numbered if _overlaps(entry[0].write, visible)]
    far = [entry for entry in numbered if not _overlaps(entry[0].write, visible)]
    return near, far


def _overlaps(box: Box, other: Box) -> bool:
    return all(
        one.start < two.stop and two.start < one.stop
        for one, two in zip(box, other, strict=True)
    )
