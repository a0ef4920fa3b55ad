"""Result of a comparison in the Evaluate dock."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from qtpy.QtWidgets import QLabel, QVBoxLayout, QWidget

from napari_strata.core.classes import ClassMap
from napari_strata.core.metrics import describe_scores
from napari_strata.core.text import MEAN_IOU_HELP
from napari_strata.widgets.evaluate.cases import Cases
from napari_strata.widgets.evaluate.confusion import ConfusionPicture
from napari_strata.widgets.evaluate.scores import ABSENT, ScoreTable


class ScoreView(QWidget):
    """Result of a comparison: headline, score table and pictures."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.headline, self.caption = QLabel(self), QLabel(self)
        self.table, self.picture, self.cases = (
            ScoreTable(self),
            ConfusionPicture(self),
            Cases(self),
        )
        font = self.headline.font()
        font.setPointSizeF(1.25 * font.pointSizeF())
        font.setBold(True)
        self.headline.setFont(font)
        self.headline.setToolTip(
            f"{MEAN_IOU_HELP}\nPixel accuracy: the fraction of labelled pixels with the"
            " correct class."
        )
        rows = QVBoxLayout(self)
        rows.setContentsMargins(0, 4, 0, 0)
        rows.setSpacing(5)
        for label in (self.headline, self.caption):
            label.setWordWrap(True)
        for widget in (
            self.headline,
            self.caption,
            self.table,
            self.picture,
            self.cases,
        ):
            rows.addWidget(widget)

    def show_result(
        self, result: Mapping[str, Any], classes: ClassMap, description: str
    ) -> None:
        """Show the result of `ConfusionMatrix.as_dict` with a description."""
        counts = np.array(result["confusion"], np.int64)
        accuracy = result["pixel_accuracy"]
        accuracy_text = ABSENT
        if accuracy is not None:
            accuracy_text = f"{100 * accuracy:.1f}\N{NO-BREAK SPACE}%"
        mean_iou = describe_scores(result)
        self.headline.setText(
            f"{mean_iou[0].upper()}{mean_iou[1:]}, pixel accuracy {accuracy_text}"
        )
        caption = f"{description}: {counts.sum():,} labelled pixels"
        seen = result.get("trained_on")
        if seen is not None:
            mark = "⚠ " if seen["level"] == "warning" else ""
            caption += f"\n{mark}{seen['text']}"
        self.caption.setText(caption)
        self.table.show_scores(result["per_class"], classes)
        self.picture.show_counts(counts, classes.names, classes.colors)
