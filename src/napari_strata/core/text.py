"""Numbers as text for people."""

from __future__ import annotations

import math
import re

_CONTROL = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]"
)
"""Characters that control a terminal or the direction of writing."""


def printable(text: str) -> str:
    """Replace the control characters in a text, such as a name from a file, by "?"."""
    return _CONTROL.sub("?", text)


def format_duration(seconds: float, *, tenths_below: float = 10) -> str:
    """Format a duration: ``1 h 4 min``, ``3 min 20 s``, ``12 s`` or ``0.4 s``.

    Shorter durations than `tenths_below`, in seconds, have one digit after the point.
    """
    if seconds < tenths_below:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    if minutes:
        return f"{minutes} min {rest} s"
    return f"{rest} s"


def format_count(count: int, noun: str) -> str:
    """Format a count: ``1 epoch``, ``3 epochs``."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def format_score(value: float | None, *, missing: str = "-") -> str:
    """Format a score: ``0.742``, or `missing` for None and NaN."""
    if value is None or math.isnan(value):
        return missing
    return f"{value:.3f}"


MEAN_IOU_HELP = (
    "Mean IoU: the mean of the IoU over the classes that occur in the truth. A class "
    "that is only predicted has an IoU of 0; the mean with such classes stands in "
    "brackets. A class that neither occurs nor is predicted has no IoU."
)
"""Meaning of the text of `describe_mean_iou`."""


def describe_mean_iou(
    mean_iou: float | None,
    mean_iou_in_truth: float | None,
    *,
    in_truth: int,
    scored: int,
    classes: int,
) -> str:
    """Describe a mean IoU, and over which classes it is taken.

    With all classes in the truth, ``mean IoU 0.812``. Else the mean over those that are
    there comes first: one stray pixel of another class changes the other mean, as in
    ``mean IoU 0.636 over the 4 of 5 classes in the truth (0.509 with those only
    predicted)``.

    Parameters
    ----------
    mean_iou
        Mean over the classes that are in the truth or predicted.
    mean_iou_in_truth
        Mean over the classes that are in the truth.
    in_truth, scored, classes
        Count of the classes in the truth, of those in truth or prediction, and of all;
        0 for `in_truth` if it is not known.
    """
    if in_truth in (0, classes):
        return f"mean IoU {format_score(mean_iou)}"
    text = (
        f"mean IoU {format_score(mean_iou_in_truth)} over the {in_truth} of {classes}"
        " classes in the truth"
    )
    if scored > in_truth:
        text += f" ({format_score(mean_iou)} with those only predicted)"
    return text


def describe_calibration(ece: float, classwise_ece: float) -> str:
    """Describe errors: ``calibration error (ECE) 1.2 %, class-wise 0.8 %``."""
    return (
        f"calibration error (ECE) {format_percent(ece)}, class-wise"
        f" {format_percent(classwise_ece)}"
    )


def format_mean_std(
    mean: float, std: float, *, sign: str = "+-", missing: str = "-"
) -> str:
    """Format a mean with its standard deviation: ``0.742 +- 0.031``.

    A NaN deviation is left out; a NaN mean is `missing`.
    """
    text = format_score(mean, missing=missing)
    if math.isnan(mean) or math.isnan(std):
        return text
    return f"{text} {sign} {std:.3f}"


def format_percent(share: float) -> str:
    """Format a share: ``12.3 %``; a share above 0 is never shown as ``0 %``."""
    if share == 0:
        return "0 %"
    if share < 0.001:
        return "<0.1 %"
    return f"{100 * share:.1f} %"


def format_bytes(count: int) -> str:
    """Format a number of bytes: ``12 MB``."""
    value = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"
