"""Leakage: check that validation is independent of training, and large enough.

Three traces of a leak are looked for: pixels that stand on both sides (overlapping
patches, copies), planes that are nearly the same (a copy that was compressed, the next
slice of a thin stack), and patches whose edges continue each other, because they were
cut from one picture. A few planes represent a volume.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.ndimage import uniform_filter, uniform_filter1d

from napari_strata.core.classes import ClassMap
from napari_strata.data.regions import (
    LabelledRegion,
    join_names,
    label_counts,
    spread_planes,
)

Array = np.ndarray[Any, Any]

PIXELS = 5_000
"""Fewer labelled validation pixels than this are too few.

Were they independent, 5,000 at an accuracy of .85 would give it to +-.01 (95 %).
Neighbouring pixels are not independent, so the truth is worse: the bound is lax.
"""

CLASS_PIXELS = 200
"""Fewer labelled validation pixels of one class than this are too few.

200 independent pixels give a recall of .85 to +-.05.
"""

MANY_REGIONS = 8
"""With so many regions to train on, a single one to validate on is an accident."""

SHARED = 0.2
"""Share of a plane's rows or columns on both sides, from which it overlaps.

Bars with a scale and the microscope's settings, the same in every picture of a session,
are at most a tenth of the height.
"""

ALIKE = 0.5
"""Correlation of the signs of fine detail, from which two planes are nearly alike.

Between independent pictures (micro-CT, electron microscopy, nuclei, aerial, satellite)
at most .22 was found, between slices of a stack that is continuous but coarse .47. A
copy saved as JPEG of quality 90 has .54 to .87 (.2 where most of the picture is empty,
and is not found).
"""

CONTINUES = 0.6
MARGIN = 0.15
LARGEST_STEP = 2
"""Conditions under which two edges continue each other.

Their fine detail correlates more than `CONTINUES`, and more by `MARGIN` than with any
other edge, and the step between them is no more than `LARGEST_STEP` times one within a
picture. In 171 patches cut from slices 253 such pairs were found, and 2 when one of the
edges was turned round, which says how many are so by chance; in 60 tiles of aerial
surveys 13 and 0 (neighbours by their names), in 300 independent satellite pictures 37
and 49.
"""

CHANCE = 4
"""Edges must continue each other this many times more often than by chance."""

SIDE = 4096
"""Pixels of a side that are looked at."""

DETAIL_SIDE = 48
"""Pixels of a side of a block whose detail is compared."""

DETAILED = 16
"""Changes along a line that make it distinctive."""

PIXELS_READ = 2**27
"""Pixels read at most; of more, evenly chosen planes are read."""

PLANES = 3
"""Planes of a volume that are looked at."""


@dataclass(frozen=True, eq=False)
class _Trace:
    """Features of a plane that reveal a leak.

    Parameters
    ----------
    rows, columns
        A hash of each row and column with detail, uint64.
    edges
        Grey values of the two outermost lines at each edge, the outer one first.
    detail
        Signs of the detail inside.
    """

    region: LabelledRegion
    rows: Array
    columns: Array
    edges: dict[str, Array]
    detail: Array


_Pairs = list[tuple[_Trace, _Trace]]
"""Validation planes, each with the training plane that it leaks from."""


class Traces:
    """Traces of regions, each made once, however many splits of them are judged."""

    def __init__(self, regions: Sequence[LabelledRegion] = ()) -> None:
        self._cache: dict[Any, _Trace] = {}
        pixels = sum(math.prod(plane.shape) for plane in _planes(regions))
        self._step = max(1, -(-pixels // PIXELS_READ))

    def of(self, regions: Sequence[LabelledRegion]) -> list[_Trace]:
        """Compute the traces of the planes of `regions`.

        Of too many planes, evenly spaced ones are taken.
        """
        return [self._trace(plane) for plane in _planes(regions)[:: self._step]]

    def _trace(self, plane: LabelledRegion) -> _Trace:
        position = repr((sorted(plane.index.items()), plane.box))
        key = (id(plane.pair), position)
        if key not in self._cache:
            self._cache[key] = _trace(plane)
        return self._cache[key]


def find_leaks(
    training: Sequence[LabelledRegion],
    validation: Sequence[LabelledRegion],
    *,
    traces: Traces | None = None,
) -> list[str]:
    """Describe the plainest way in which validation shows what training has seen.

    Parameters
    ----------
    traces
        Traces of the regions from another split of them.

    Returns
    -------
    list of str
        One sentence, since planes that are the same are also alike; empty when there is
        no leak.
    """
    if not training or not validation:
        return []
    traces = traces or Traces([*training, *validation])
    training_traces, validation_traces = traces.of(training), traces.of(validation)
    for find, sentence in (
        (_find_overlapping, _OVERLAP),
        (_find_alike, _ALIKE),
        (_find_bordering, _BORDER),
    ):
        pairs = find(training_traces, validation_traces)
        if pairs:
            validating, training_trace = pairs[0]
            return [
                sentence.format(
                    leaks=len(pairs),
                    planes=len(validation_traces),
                    plane=validating.region.name,
                    other=training_trace.region.name,
                )
            ]
    return []


_ADVICE = "so the scores are better than they would be on a new picture; {}"
_OVERLAP = (
    "{leaks} of {planes} validation planes hold pixels that train as well, such as "
    "{plane} (also in {other}), "
    + _ADVICE.format("take out the copies, or hold back whole images or specimens.")
)
_ALIKE = (
    "{leaks} of {planes} validation planes look nearly like one that trains, such as "
    "{plane} and {other}, "
    + _ADVICE.format("hold back slices that lie farther apart, or other images.")
)
_BORDER = (
    "{leaks} of {planes} validation patches continue a patch that trains, such as "
    "{plane} beside {other}: they were cut from the same picture, "
    + _ADVICE.format(
        "split by the picture that they come from (--group in crossval, or --val)."
    )
)


def too_small(
    training: Sequence[LabelledRegion],
    validation: Sequence[LabelledRegion],
    classes: ClassMap,
) -> list[str]:
    """Write a sentence for each reason why validation holds too little."""
    if not validation:
        return []
    counts = label_counts(validation, classes).sum(axis=0)
    total = int(counts.sum())
    warnings = []
    if total < PIXELS:
        warnings.append(
            f"validation has {total} labelled pixels in all, too few to say much "
            "(below "
            f"{PIXELS}, a score moves by hundredths by chance alone): label more, or "
            "hold back more (training.validation)."
        )
    rare = []
    for name, count in zip(classes.names, counts.tolist(), strict=True):
        if 0 < count < CLASS_PIXELS:
            rare.append(f"{name!r} ({count})")
    if rare and total >= PIXELS:
        which = "that class" if len(rare) == 1 else "those classes"
        warnings.append(
            f"validation has fewer than {CLASS_PIXELS} labelled pixels of "
            f"{join_names(rare)}: read the score of {which} as a guess."
        )
    if len(validation) == 1 and len(training) >= MANY_REGIONS:
        noun = "plane" if validation[0].axes == "YX" else "volume"
        warnings.append(
            f"one {noun} of {len(training) + 1} validates, so the score hangs on which "
            "one it is; hold back more (training.validation), or cross-validate "
            "(napari-strata crossval)."
        )
    return warnings


def _planes(regions: Sequence[LabelledRegion]) -> list[LabelledRegion]:
    return [plane for region in regions for plane in spread_planes(region, PLANES)]


def _trace(plane: LabelledRegion) -> _Trace:
    height, width = plane.shape
    top = max(0, (height - SIDE) // 2)
    left = max(0, (width - SIDE) // 2)
    inner = (
        slice(top, top + min(height, SIDE)),
        slice(left, left + min(width, SIDE)),
    )
    image = plane.block(inner).read_image()
    grey = np.nan_to_num(image.astype(np.float32).mean(axis=0), posinf=0.0, neginf=0.0)
    edges = {
        "top": grey[:2],
        "bottom": grey[::-1][:2],
        "left": grey.T[:2],
        "right": grey.T[::-1][:2],
    }
    # The second line of a plane one pixel high is its first.
    edges = {side: lines[[0, -1]].copy() for side, lines in edges.items()}
    turned = np.rot90(image, axes=(1, 2))
    return _Trace(
        region=plane,
        rows=_hash_rows(image),
        columns=_hash_rows(turned),
        edges=edges,
        detail=_detail(grey),
    )


def _hash_rows(image: Array) -> Array:
    """Hash each row of (C, H, W) that has detail, uint64.

    Equal rows have equal hashes.
    """
    image = np.ascontiguousarray(image)
    changes = (np.diff(image, axis=2) != 0).any(axis=0).sum(axis=1)
    integers = image
    if image.dtype.kind == "f":
        integers = image.view(f"u{image.dtype.itemsize}")
    rng = np.random.default_rng(0)
    hashes = np.zeros(image.shape[1], np.uint64)
    for channel in integers:
        weights = rng.integers(1, 2**64, channel.shape[1], np.uint64, endpoint=False)
        hashes += channel.astype(np.uint64) @ weights  # modulo 2**64
    return np.unique(hashes[changes >= DETAILED])


def _edge_detail(line: Array) -> Array:
    """Detail of an edge (less its local mean), of length 1.

    Zeros where there is none.
    """
    if np.count_nonzero(np.diff(line)) < DETAILED:
        return np.zeros_like(line)
    detail = line - uniform_filter1d(line, 9)
    length = float(np.linalg.norm(detail))
    scaled: Array = detail / length if length else detail
    return scaled


def _detail(grey: Array) -> Array:
    """Signs of the detail (less the local mean) in four blocks, int8.

    Signs, so that a hot pixel weighs no more than any other.
    """
    signs = []
    for y in (0.25, 0.75):
        for x in (0.25, 0.75):
            top = _block_start(y, grey.shape[0])
            left = _block_start(x, grey.shape[1])
            block = grey[top : top + DETAIL_SIDE, left : left + DETAIL_SIDE]
            spread = float(np.ptp(block)) or 1.0
            detail = np.round((block - uniform_filter(block, 9)) / spread, 4)
            signs.append(np.sign(detail).astype(np.int8).ravel())
    return np.concatenate(signs)


def _block_start(share: float, length: int) -> int:
    start = share * length - DETAIL_SIDE / 2
    return int(np.clip(start, 0, max(length - DETAIL_SIDE, 0)))


def _find_overlapping(
    training: Sequence[_Trace], validation: Sequence[_Trace]
) -> _Pairs:
    """Find validation planes that share `SHARED` of their rows or columns."""
    pairs = {}
    for lines, axis in (("rows", 0), ("columns", 1)):
        hashes = [getattr(trace, lines) for trace in training]
        all_hashes = np.unique(np.concatenate(hashes))
        for trace in validation:
            own = getattr(trace, lines)
            common = own[_is_among(own, all_hashes)]
            length = min(trace.region.shape[axis], SIDE)
            if len(common) >= max(SHARED * length, 1):
                shared = [
                    int(_is_among(common, other_hashes).sum())
                    for other_hashes in hashes
                ]
                pairs[id(trace)] = trace, training[int(np.argmax(shared))]
    return list(pairs.values())


def _is_among(hashes: Array, others: Array) -> Array:
    """Test each of `hashes` for being in `others`; both are sorted."""
    if not len(others):
        return np.zeros(len(hashes), bool)
    positions = np.searchsorted(others, hashes).clip(max=len(others) - 1)
    is_among: Array = others[positions] == hashes
    return is_among


def _find_alike(training: Sequence[_Trace], validation: Sequence[_Trace]) -> _Pairs:
    """Find validation planes whose detail correlates with that of a training plane."""
    pairs = []
    for training_traces, validation_traces in _by_shape(training, validation):
        first = np.stack([trace.detail for trace in training_traces])
        second = np.stack([trace.detail for trace in validation_traces])
        first, second = first.astype(np.float32), second.astype(np.float32)
        norms = np.sqrt(np.outer(np.abs(second).sum(axis=1), np.abs(first).sum(axis=1)))
        # Less than a quarter of one block with detail is too little to compare.
        comparable = norms > DETAIL_SIDE**2 / 4
        scores = np.where(comparable, second @ first.T / np.maximum(norms, 1), 0)
        for i, j in enumerate(scores.argmax(axis=1)):
            if scores[i, j] > ALIKE:
                pairs.append((validation_traces[i], training_traces[j]))
    return pairs


def _find_bordering(training: Sequence[_Trace], validation: Sequence[_Trace]) -> _Pairs:
    """Find validation patches that continue a training patch.

    There are none unless edges continue each other far more often than by chance.
    """
    matches = by_chance = 0
    candidates: list[tuple[float, _Trace, _Trace]] = []
    for training_traces, validation_traces in _by_shape(training, validation):
        traces = [*training_traces, *validation_traces]
        for side, opposite in (("right", "left"), ("bottom", "top")):
            edges = np.stack([trace.edges[side] for trace in traces])
            others = np.stack([trace.edges[opposite] for trace in traces])
            by_chance += len(_continuing_edges(edges, others[:, :, ::-1]))
            continuing = _continuing_edges(edges, others)
            matches += len(continuing)
            for score, i, j in continuing:
                # Training traces come first.
                training_number, validation_number = min(i, j), max(i, j)
                if training_number < len(training_traces) <= validation_number:
                    pair = traces[validation_number], traces[training_number]
                    candidates.append((score, *pair))
    if matches < CHANCE * (by_chance + 1):
        return []
    best: dict[int, tuple[_Trace, _Trace]] = {}
    candidates.sort(key=lambda candidate: -candidate[0])
    for _, validation_trace, training_trace in candidates:
        best.setdefault(id(validation_trace), (validation_trace, training_trace))
    return list(best.values())


def _continuing_edges(edges: Array, others: Array) -> list[tuple[float, int, int]]:
    """Find edges (N, 2, length) that continue each other and no other edge.

    Returns the correlation of their detail, and their numbers. Each correlates more
    with the other's detail than with any other edge by a margin, and from one to the
    other grey values change no more than `LARGEST_STEP` times as much as from an edge
    to the line beside it.
    """
    if len(edges) < 3:
        return []
    details = np.stack([_edge_detail(line) for line in edges[:, 0]])
    other_details = np.stack([_edge_detail(line) for line in others[:, 0]])
    scores = details @ other_details.T
    np.fill_diagonal(scores, -1)
    best = scores.argmax(axis=1)
    best_of_other = scores.argmax(axis=0)
    second_score, best_score = np.partition(scores, -2, axis=1)[:, -2:].T
    clear = (
        (best_score > CONTINUES)
        & (best_score - second_score > MARGIN)
        & (best_of_other[best] == np.arange(len(best)))
    )
    continuing = []
    for i in np.flatnonzero(clear).tolist():
        j = int(best[i])
        step = _root_mean_square(edges[i, 0], others[j, 0])
        own_step = _root_mean_square(edges[i, 0], edges[i, 1])
        other_step = _root_mean_square(others[j, 0], others[j, 1])
        if step <= LARGEST_STEP * max(own_step, other_step):
            continuing.append((float(scores[i, j]), i, j))
    return continuing


def _root_mean_square(line: Array, other: Array) -> float:
    return float(np.sqrt(np.mean((line - other) ** 2)))


def _by_shape(
    training: Sequence[_Trace], validation: Sequence[_Trace]
) -> Iterator[tuple[list[_Trace], list[_Trace]]]:
    """Group traces by the shape of their regions, for shapes that are on both sides."""
    for shape in {trace.region.shape for trace in validation}:
        first = [trace for trace in training if trace.region.shape == shape]
        second = [trace for trace in validation if trace.region.shape == shape]
        if first and second:
            yield first, second
