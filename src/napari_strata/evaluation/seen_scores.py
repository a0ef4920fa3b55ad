"""Scores of planes that a model was trained on, apart from those of other planes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from napari_strata.core.classes import ClassMap
from napari_strata.core.metrics import ConfusionMatrix, none_if_nan
from napari_strata.core.text import format_percent
from napari_strata.data.trained_on import Kind, Seen

REMEMBERS = (
    "the score says how well the network remembers, not how well it segments new images"
)
TRAINED_ON = f"These labels were trained on: {REMEMBERS}."


@dataclass
class SeenScores:
    """Counts of planes by how the model knows them.

    Parameters
    ----------
    why_unknown
        Reason why it is not known what trained, or not all of it; else empty.
    planes
        Count of the planes of each kind.
    matrices
        Their confusion matrices.
    pixels
        Count of the labelled pixels that were trained on.
    """

    classes: ClassMap
    why_unknown: str = ""
    planes: dict[Kind, int] = field(default_factory=dict)
    matrices: dict[Kind, ConfusionMatrix] = field(default_factory=dict)
    pixels: int = 0

    def add(self, seen: Seen, confusion: ConfusionMatrix) -> None:
        """Count a plane."""
        known = self.matrices.get(seen.kind, ConfusionMatrix(self.classes))
        self.matrices[seen.kind] = known + confusion
        self.planes[seen.kind] = self.planes.get(seen.kind, 0) + 1
        self.pixels += seen.pixels

    @property
    def has_trained(self) -> bool:
        """True if planes were trained on."""
        return "trained" in self.planes

    @property
    def level(self) -> str:
        """Level of a message with `text`."""
        return "warning" if self.has_trained else "info"

    @property
    def text(self) -> str:
        """What is known of the planes, in one or two sentences."""
        total = sum(self.planes.values())
        trained, held_back = (
            self.planes.get(kind, 0) for kind in ("trained", "held back")
        )
        if trained and trained == total:
            return self._describe_all()
        if trained:
            return self._describe_some(trained, total, held_back)
        if self.why_unknown:
            return (
                "It is not known whether these labels were trained on:"
                f" {self.why_unknown}."
            )
        if held_back:
            return (
                "No plane was trained on. Held back in training, to choose the best"
                f" epoch: {held_back} of {total} planes."
            )
        return "None of these planes was trained on."

    @property
    def _is_remembered(self) -> bool:
        """True if half of the labelled pixels of trained planes were trained on."""
        return 2 * self.pixels >= int(self.matrices["trained"].counts.sum())

    @property
    def _share(self) -> str:
        labelled = int(self.matrices["trained"].counts.sum())
        return f"at {self.pixels:,} of their {labelled:,} labelled pixels"

    def _describe_all(self) -> str:
        if self._is_remembered:
            return TRAINED_ON
        return (
            f"These planes were trained on, {self._share}: new images may well be"
            " segmented less well."
        )

    def _describe_some(self, trained: int, total: int, held_back: int) -> str:
        known = _describe(self.matrices["trained"])
        count = total - trained
        others = "the other one" if count == 1 else f"the {count} others"
        if held_back == count:
            others += ", held back in training"
        verb = "was" if trained == 1 else "were"
        meaning = f": there, {REMEMBERS}" if self._is_remembered else f", {self._share}"
        return (
            f"{trained} of {total} planes {verb} trained on{meaning}"
            f" ({known}). On {others}: {_describe(self.other)}."
        )

    @property
    def other(self) -> ConfusionMatrix:
        """Counts of the planes that were not trained on."""
        matrices = [
            matrix for kind, matrix in self.matrices.items() if kind != "trained"
        ]
        return sum(matrices, ConfusionMatrix(self.classes))

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for ``metrics.json``."""
        return {
            "text": self.text,
            "level": self.level,
            "planes": dict(self.planes),
            "pixels": self.pixels,
            "scores": {
                kind: {
                    "mean_iou": none_if_nan(matrix.mean_iou),
                    "mean_iou_in_truth": none_if_nan(matrix.mean_iou_in_truth),
                    "pixel_accuracy": none_if_nan(matrix.pixel_accuracy),
                }
                for kind, matrix in self.matrices.items()
            },
        }


def _describe(confusion: ConfusionMatrix) -> str:
    accuracy = format_percent(confusion.pixel_accuracy)
    return f"{confusion.describe_mean_iou()}, pixel accuracy {accuracy}"
