"""Honesty: does validation see pictures that training has not, and enough of them to say anything?

Three traces of a leak are looked for: pixels that stand on both sides (overlapping patches, copies), planes that are
nearly the same (a copy that was compressed, the next slice of a thin stack), and patches whose edges continue each
other, because they were cut from one picture. Of a volume a few planes stand for it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.ndimage import uniform_filter, uniform_filter1d

from napari_strata.core.classes import ClassMap
from napari_strata.data.regions import Part, counts_of, planes_of, shown

Array = np.ndarray[Any, Any]

PIXELS = 5_000
"""Fewer labelled validation pixels than this are too few: were they independent, 5,000 at an accuracy of .85 would give
it to +-.01 (95 %). Neighbouring pixels are not independent, so the truth is worse: the bound is a lax one."""

CLASS_PIXELS = 200
"""The same for one class: 200 independent pixels give a recall of .85 to +-.05."""

MANY = 8
"""With this many planes or more to train on, one plane to validate on is an accident of which one it is."""

SHARED = 0.2
"""Share of a plane's rows or columns that also stand on the other side, from which it counts as overlapping. Bars with
a scale and the microscope's settings, the same in every picture of a session, are at most a tenth of the height."""

ALIKE = 0.5
"""Correlation of fine detail, as signs, from which two planes are nearly alike. Between independent pictures
(micro-CT, electron microscopy, nuclei, aerial, satellite) at most .22 was found, between slices of a stack that is
continuous but coarse .47; a copy saved as JPEG of quality 90 has .54 to .87 (.2 where most of the picture is empty,
and is not found)."""

CONTINUES, MARGIN, STEP = 0.6, 0.15, 2
"""Two edges continue each other when their fine detail correlates more than this, and more by this margin than with any
other edge, and the step between them is no more than this many times one within a picture. In 171 patches cut from
slices 253 such pairs were found, and 2 when one of the edges was turned round, which says how many are so by chance;
in 60 tiles of aerial surveys 13 and 0 (neighbours by their names), in 300 independent satellite pictures 37 and 49."""

CHANCE = 4
"""How many times more often than by chance edges must continue each other before anything is said."""

SIDE, DETAIL, DETAILED = 4096, 48, 16
"""Pixels of a side that are looked at, of a block whose detail is compared; changes along a line that tell it apart."""

BUDGET = 2**27
"""Pixels read at most for this; of more, evenly chosen planes."""

PLANES = 3
"""Planes of a volume that are looked at."""


@dataclass(frozen=True, eq=False)
class _Trace:
    """What is kept of a part: a number for each row and column with detail, its four edges (two lines of grey values
    each, the outer one first), the detail inside."""

    part: Part
    rows: Array
    columns: Array
    edges: dict[str, Array]
    detail: Array


class Traces:
    """Looks at each part once, however many splits of the same parts are judged."""

    def __init__(self, parts: Sequence[Part] = ()) -> None:
        self._known: dict[Any, _Trace] = {}
        self._skip = max(
            1, -(-sum(math.prod(plane.shape) for plane in _planes(parts)) // BUDGET)
        )

    def of(self, parts: Sequence[Part]) -> list[_Trace]:
        """Traces of `parts` (of volumes, of planes), or of evenly chosen ones where all are too many pixels."""
        return [self._one(plane) for plane in _planes(parts)[:: self._skip]]

    def _one(self, part: Part) -> _Trace:
        key = id(part.pair), repr((sorted(part.index.items()), part.box))
        if key not in self._known:
            self._known[key] = _trace(part)
        return self._known[key]


def _planes(parts: Sequence[Part]) -> list[Part]:
    return [plane for part in parts for plane in planes_of(part, PLANES)]


def find_leaks(
    training: Sequence[Part],
    validation: Sequence[Part],
    *,
    traces: Traces | None = None,
) -> list[str]:
    """A sentence for the plainest way in which validation shows what training has seen; empty where none is found.

    Parameters
    ----------
    traces
        what is known of the parts from another split of them.
    """
    if not training or not validation:
        return []
    known = traces or Traces([*training, *validation])
    learn, check = known.of(training), known.of(validation)
    # One leak is one sentence: planes that are the same are also alike.
    for judge, sentence in (
        (_overlapping, _OVERLAP),
        (_alike, _ALIKE),
        (_bordering, _BORDER),
    ):
        if pairs := judge(learn, check):
            one, other = pairs[0]
            return [
                sentence.format(
                    n=len(pairs), m=len(check), one=one.part.name, other=other.part.name
                )
            ]
    return []


_ADVICE = "so the scores are better than they would be on a new picture; {}"
_OVERLAP = (
    "{n} of {m} validation planes hold pixels that train as well, such as {one} (also in {other}), "
    + _ADVICE.format("take out the copies, or hold back whole images or specimens.")
)
_ALIKE = (
    "{n} of {m} validation planes look nearly like one that trains, such as {one} and {other}, "
    + _ADVICE.format("hold back slices that lie farther apart, or other images.")
)
_BORDER = (
    "{n} of {m} validation patches continue a patch that trains, such as {one} beside {other}: they were cut from the "
    "same picture, "
    + _ADVICE.format(
        "split by the picture that they come from (--group in crossval, or --val)."
    )
)


def too_small(
    training: Sequence[Part], validation: Sequence[Part], classes: ClassMap
) -> list[str]:
    """A sentence for each reason why validation holds too little to say anything; empty where there is none."""
    if not validation:
        return []
    counts = counts_of(validation, classes).sum(axis=0)
    total, out = int(counts.sum()), []
    if total < PIXELS:
        out.append(
            f"validation has {total} labelled pixels in all, too few to say much (below {PIXELS}, a score moves by "
            "hundredths by chance alone): label more, or hold back more (training.validation)."
        )
    few = [
        f"{name!r} ({n})"
        for name, n in zip(classes.names, counts.tolist(), strict=True)
        if 0 < n < CLASS_PIXELS
    ]
    if few and total >= PIXELS:
        out.append(
            f"validation has fewer than {CLASS_PIXELS} labelled pixels of {shown(few)}: read the score of "
            f"{'that class' if len(few) == 1 else 'those classes'} as a guess."
        )
    if len(validation) == 1 and len(training) >= MANY:
        noun = "plane" if validation[0].axes == "YX" else "volume"
        out.append(
            f"one {noun} of {len(training) + 1} validates, so the score hangs on which one it is; hold back more "
            "(training.validation), or cross-validate (napari-strata crossval)."
        )
    return out


def _trace(part: Part) -> _Trace:
    height, width = part.shape
    top, left = (max(0, (length - SIDE) // 2) for length in (height, width))
    inner = slice(top, top + min(height, SIDE)), slice(left, left + min(width, SIDE))
    image = part.block(inner).read_image()
    grey = np.nan_to_num(image.astype(np.float32).mean(axis=0), posinf=0.0, neginf=0.0)
    edges = {
        "top": grey[:2],
        "bottom": grey[::-1][:2],
        "left": grey.T[:2],
        "right": grey.T[::-1][:2],
    }
    turned = np.rot90(image, axes=(1, 2))
    # Of a plane one pixel high the second line is the first.
    kept = {side: lines[[0, -1]].copy() for side, lines in edges.items()}
    return _Trace(part, _lines(image), _lines(turned), kept, _detail(grey))


def _lines(image: Array) -> Array:
    """A number for each row of (C, H, W) that has detail, uint64; equal rows have equal numbers."""
    image = np.ascontiguousarray(image)
    detailed = (np.diff(image, axis=2) != 0).any(axis=0).sum(axis=1) >= DETAILED
    whole = image.view(f"u{image.dtype.itemsize}") if image.dtype.kind == "f" else image
    random = np.random.default_rng(0)
    numbers = np.zeros(image.shape[1], np.uint64)
    for channel in whole:
        weights = random.integers(1, 2**64, channel.shape[1], np.uint64, endpoint=False)
        numbers += channel.astype(np.uint64) @ weights  # modulo 2**64
    return np.unique(numbers[detailed])


def _profile(line: Array) -> Array:
    """The detail of an edge: less its local mean, of length 1; zeros where there is too little."""
    if np.count_nonzero(np.diff(line)) < DETAILED:
        return np.zeros_like(line)
    detail = line - uniform_filter1d(line, 9)
    length = float(np.linalg.norm(detail))
    scaled: Array = detail / length if length else detail
    return scaled


def _detail(grey: Array) -> Array:
    """Signs of the detail (less the local mean) in four blocks, int8: a hot pixel weighs no more than any other."""
    signs = []
    for y in (0.25, 0.75):
        for x in (0.25, 0.75):
            corner = [
                int(np.clip(share * length - DETAIL / 2, 0, max(length - DETAIL, 0)))
                for share, length in zip((y, x), grey.shape, strict=True)
            ]
            block = grey[corner[0] : corner[0] + DETAIL, corner[1] : corner[1] + DETAIL]
            spread = float(np.ptp(block)) or 1.0
            signs.append(
                np.sign(np.round((block - uniform_filter(block, 9)) / spread, 4))
                .astype(np.int8)
                .ravel()
            )
    return np.concatenate(signs)


_Pairs = list[tuple[_Trace, _Trace]]


def _overlapping(learn: Sequence[_Trace], check: Sequence[_Trace]) -> _Pairs:
    """Validation planes of whose rows or columns at least `SHARED` also stand in training, with one where they do."""
    found = {}
    for name, axis in (("rows", 0), ("columns", 1)):
        known = np.unique(np.concatenate([getattr(trace, name) for trace in learn]))
        for trace in check:
            lines = getattr(trace, name)
            common = lines[_among(lines, known)]
            if len(common) >= max(SHARED * min(trace.part.shape[axis], SIDE), 1):
                shared = [
                    int(_among(common, getattr(other, name)).sum()) for other in learn
                ]
                found[id(trace)] = trace, learn[int(np.argmax(shared))]
    return list(found.values())


def _among(numbers: Array, known: Array) -> Array:
    """Which of `numbers` stand in `known`, both rising."""
    if not len(known):
        return np.zeros(len(numbers), bool)
    inside: Array = (
        known[np.searchsorted(known, numbers).clip(max=len(known) - 1)] == numbers
    )
    return inside


def _alike(learn: Sequence[_Trace], check: Sequence[_Trace]) -> _Pairs:
    """Validation planes whose detail correlates with that of a training plane of the same shape, with that one."""
    found = []
    for ones, others in _by_shape(learn, check):
        first, second = (
            np.stack([t.detail for t in traces]).astype(np.float32)
            for traces in (ones, others)
        )
        sizes = np.sqrt(np.outer(np.abs(second).sum(axis=1), np.abs(first).sum(axis=1)))
        # Less than a quarter of one block with detail is too little to compare.
        scores = np.where(
            sizes > DETAIL**2 / 4, second @ first.T / np.maximum(sizes, 1), 0
        )
        best = scores.argmax(axis=1)
        found += [
            (others[i], ones[j]) for i, j in enumerate(best) if scores[i, j] > ALIKE
        ]
    return found


def _bordering(learn: Sequence[_Trace], check: Sequence[_Trace]) -> _Pairs:
    """Validation patches with an edge that goes on in a training patch, if that is far from what chance gives."""
    real = chance = 0
    found: list[tuple[float, _Trace, _Trace]] = []
    for ones, others in _by_shape(learn, check):
        traces = [*ones, *others]
        for first, second in (("right", "left"), ("bottom", "top")):
            a, b = (
                np.stack([t.edges[side] for t in traces]) for side in (first, second)
            )
            chance += len(_continuing(a, b[:, :, ::-1]))
            matched = _continuing(a, b)
            real += len(matched)
            pairs = [(score, max(i, j), min(i, j)) for score, i, j in matched]
            found += [
                (score, traces[held], traces[other])
                for score, held, other in pairs
                if held >= len(ones) > other
            ]
    if real < CHANCE * (chance + 1):
        return []
    surest: dict[int, tuple[_Trace, _Trace]] = {}
    for _, held, other in sorted(found, key=lambda one: -one[0]):
        surest.setdefault(id(held), (held, other))
    return list(surest.values())


def _continuing(edges: Array, others: Array) -> list[tuple[float, int, int]]:
    """Edges (N, 2, length) that continue each other and no other one: correlation of their detail, and their numbers.

    Each has the other's detail more than any other edge by a margin, and from one to the other grey values change no
    more than `STEP` times as much as from an edge to the line beside it.
    """
    if len(edges) < 3:
        return []
    scores = (
        np.stack([_profile(line) for line in edges[:, 0]])
        @ np.stack([_profile(line) for line in others[:, 0]]).T
    )
    np.fill_diagonal(scores, -1)
    best, back = scores.argmax(axis=1), scores.argmax(axis=0)
    second, first = np.partition(scores, -2, axis=1)[:, -2:].T
    good = (
        (first > CONTINUES)
        & (first - second > MARGIN)
        & (back[best] == np.arange(len(best)))
    )
    pairs = [(int(i), int(best[i])) for i in np.flatnonzero(good)]
    return [
        (float(scores[i, j]), i, j)
        for i, j in pairs
        if _rms(edges[i, 0], others[j, 0])
        <= STEP * max(_rms(*edges[i]), _rms(*others[j]))
    ]


def _rms(line: Array, other: Array) -> float:
    return float(np.sqrt(np.mean((line - other) ** 2)))


def _by_shape(
    learn: Sequence[_Trace], check: Sequence[_Trace]
) -> Iterator[tuple[list[_Trace], list[_Trace]]]:
    """Traces of parts that have one shape, for each shape that is on both sides."""
    for shape in {trace.part.shape for trace in check}:
        sides = [
            [trace for trace in side if trace.part.shape == shape]
            for side in (learn, check)
        ]
        if all(sides):
            yield sides[0], sides[1]
