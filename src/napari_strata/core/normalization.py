"""Normalisation of grey values: measured on samples and applied to arrays.

A scale is a centre and a spread per channel, measured between robust percentiles so
that one hot pixel never moves it, and a range to clip to so that the same pixel never
dominates the network's input.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
from pydantic import BaseModel, ConfigDict

Array = np.ndarray[Any, Any]
Kind: TypeAlias = Literal["physical", "relative", "dtype", "imagenet"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_SPREAD = (0.229, 0.224, 0.225)
"""Mean and standard deviation of ImageNet's RGB in [0, 1], as torchvision has them."""

AGREEMENT = 0.15
"""Largest shift between training planes at which grey values count as physical.

It is the shift of the 5th or 95th percentile, as a share of their distance. Tried:
sandstone CT .01, light-sheet nuclei .4, fluorescence nuclei > 1.
"""


SPARSE = 1e-4
"""Smallest share of pixels off the background that is the signal of a sparse image."""


class Scale(BaseModel):
    """``(value - center) / spread`` per channel, after clipping to ``low``..``high``.

    All four are grey values.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    center: tuple[float, ...]
    spread: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    def apply(self, array: Array) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Scale an array (channels first) of any dtype to float32.

        NaN and infinities become the centre.
        """
        shape = (-1,) + (1,) * (array.ndim - 1)
        center, spread, low, high = (
            np.asarray(v, np.float32).reshape(shape)
            for v in (self.center, self.spread, self.low, self.high)
        )
        # A float64 beyond the range of float32 is no grey value of an image.
        with np.errstate(over="ignore"):
            values = array.astype(np.float32)
        if array.dtype.kind == "f":
            values = np.where(np.isfinite(values), values, center)
        np.clip(values, low, high, out=values)
        values -= center
        values /= spread
        return values


class ResolvedNormalization(BaseModel):
    """Kind of normalisation of a model, and the scale measured in training."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind
    percentiles: tuple[float, float] = (0.5, 99.5)
    scale: Scale
    """Measured on the training images. For kind "relative", for comparison only."""

    def scale_for(self, samples: Array, dtype: Any) -> Scale:
        """Return the scale for an image.

        Parameters
        ----------
        samples
            Its grey values, channels x pixels; see `Image.samples`.
        """
        match self.kind:
            case "relative":
                return measure(samples, self.percentiles)
            case "physical":
                return self.scale
            case kind:
                return fixed(kind, dtype, len(self.scale.center))


def measure(samples: Array, percentiles: tuple[float, float] = (0.5, 99.5)) -> Scale:
    """Measure the scale of `samples` (channels x pixels).

    It is the mean and standard deviation of the values inside the percentiles. A
    constant channel gets spread 1, so that it becomes 0. Values are clipped one
    percentile range beyond the percentiles on either side.
    """
    rows = [_measure_channel(channel, percentiles) for channel in samples]
    center, spread, low, high = zip(*rows, strict=True)
    return Scale(center=center, spread=spread, low=low, high=high)


def _measure_channel(
    values: Array, percentiles: tuple[float, float]
) -> tuple[float, float, float, float]:
    values = values.astype(np.float64)
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.0, 1.0, 0.0, 0.0
    # Values that occur, because between those of few pixels there may be none.
    low, high = (float(v) for v in np.percentile(values, percentiles, method="nearest"))
    if low == high:
        low, high = _sparse(values, low, percentiles)
    inside = values[(values >= low) & (values <= high)]
    spread = float(inside.std())
    # A difference below float32's resolution of the value is rounding, not contrast.
    flat = spread <= 1e-6 * max(abs(low), abs(high), 1e-30)
    width = high - low
    return float(inside.mean()), 1.0 if flat else spread, low - width, high + width


def _sparse(
    values: Array, ground: float, percentiles: tuple[float, float]
) -> tuple[float, float]:
    """Range of an image that is `ground` nearly everywhere, such as few spots on 0.

    A single hot pixel is no signal.
    """
    signal = values[values != ground]
    if signal.size <= max(SPARSE * values.size, 10):
        return ground, ground
    low, high = (float(v) for v in np.percentile(signal, percentiles))
    return min(low, ground), max(high, ground)


def stored_dtype(dtype: Any) -> np.dtype[Any]:
    """Return the dtype in the file of an image with this dtype.

    Integers with pixels without data are read as floats.
    """
    metadata: dict[str, Any] = dict(np.dtype(dtype).metadata or {})
    stored: np.dtype[Any] = np.dtype(metadata.get("stored", dtype))
    return stored


def fixed(kind: Kind, dtype: Any, channels: int) -> Scale:
    """Return the scale of the kinds "dtype" and "imagenet".

    The dtype's largest value becomes 1; floats stay as they are.
    """
    stored = stored_dtype(dtype)
    full = float(np.iinfo(stored).max) if stored.kind in "ui" else 1.0
    if kind == "imagenet":
        mean, spread = list(IMAGENET_MEAN), list(IMAGENET_SPREAD)
        if channels != 3:
            mean = [float(np.mean(IMAGENET_MEAN))] * channels
            spread = [float(np.mean(IMAGENET_SPREAD))] * channels
    else:
        mean, spread = [0.0] * channels, [1.0] * channels
    # Integers cannot leave their range. Floats that should lie in 0..1 may leave it a
    # little, but a hot pixel may not.
    return Scale(
        center=tuple(m * full for m in mean),
        spread=tuple(s * full for s in spread),
        low=(-full,) * channels,
        high=(2 * full,) * channels,
    )


def shift(groups: Sequence[Array]) -> float:
    """Measure how far grey values of planes or images (channels x pixels) disagree.

    The shift is the largest distance of a group's 5th or 95th percentile from the
    median group's, as a share of the median distance between the two. 0 is perfect
    agreement; NaN when there is one group only, or no contrast. NaN and infinities in
    the groups do not count.
    """
    finite = []
    for group in groups:
        values = group[np.isfinite(group)].astype(np.float64)
        if values.size:
            finite.append(values)
    if len(finite) < 2:
        return float("nan")
    ends = np.array([np.percentile(values, (5, 95)) for values in finite])
    middle = np.median(ends, axis=0)
    width = float(middle[1] - middle[0])
    return float(np.abs(ends - middle).max() / width) if width > 0 else float("nan")
