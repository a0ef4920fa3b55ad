"""Pictures of the worst and the best planes of a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from napari.components import ViewerModel
from qtpy.QtCore import Signal
from qtpy.QtGui import QImage
from qtpy.QtWidgets import QWidget

from napari_strata.core.image import Image
from napari_strata.core.metrics import ConfusionMatrix
from napari_strata.evaluation.compare import Written, describe_plane
from napari_strata.evaluation.pictures import Example, draw_example
from napari_strata.io import read_labels
from napari_strata.widgets.layers.convert import image_below
from napari_strata.widgets.parts.preview import PANELS, Preview, arrow
from napari_strata.widgets.work import threads
from napari_strata.worker.protocol import Case


class Cases(Preview):
    """Pictures of the worst and the best planes, in this order."""

    nothing = "Drawing the worst and the best planes ..."
    title, others = "Worst and best planes", "other planes"
    ends = ("This is the worst plane.", "This is the best plane.")
    arrows = ("Show a worse plane.", "Show a better plane.")
    plane_requested = Signal(object)
    """Emitted with indices by axis of a plane that the viewer should show."""

    def __init__(self, parent: QWidget | None = None) -> None:
        self._cases: tuple[Mapping[str, Any], ...] = ()
        self._number = 0
        self._with_image = True
        super().__init__(parent)
        self.go = arrow("Go to")
        self.go.setToolTip("Show this plane in the viewer.")
        self.go.clicked.connect(self._go)
        self.add_button(self.go)

    def draw(
        self, written: Written, cases: Sequence[Case], viewer: ViewerModel
    ) -> None:
        """Draw planes of a comparison in a thread, with their image in the viewer.

        Parameters
        ----------
        cases
            The planes, the worst first.
        """
        self._number += 1
        image = image_below(viewer, written.comparison.prediction)
        number, self._with_image, only = (
            self._number,
            image is not None,
            written.comparison.plane,
        )
        # If a single plane was compared, its position is that in the prediction.
        self._cases = tuple(
            {
                **case.model_dump(),
                "at": {
                    axis: only.get(axis, index) for axis, index in case.index.items()
                },
            }
            for case in cases
        )
        drawn_cases, out = self._cases, written.truth.parent / f"cases-{number}"
        self.set_folder(None)

        def drawn(_nothing: None) -> None:
            if number == self._number:
                self._selected = out / _name(0)
                self._folder = out
                self.refresh()

        def failed(error: Exception) -> None:
            if number == self._number:
                self.text.setText(f"The planes cannot be shown: {error}")

        threads.run(
            lambda: draw_cases(written, drawn_cases, image, out),
            drawn,
            failed,
            owner=self,
        )

    def files(self, folder: Path) -> tuple[Path, ...]:
        """Return the pictures of a folder, the worst first."""
        return tuple(sorted(folder.glob("case_*.png")))

    def panels(
        self, images: tuple[QImage, ...]
    ) -> tuple[tuple[QImage, ...], tuple[str, ...]]:
        """Return the panels; without an image only truth and prediction."""
        if len(images) != len(PANELS) or self._with_image:
            return super().panels(images)
        return images[1:], PANELS[1:]

    def heading(self) -> str:
        """Describe the plane that is shown, and its score."""
        index = self.index
        if index is None or index >= len(self._cases):
            return ""
        case, last = self._cases[index], len(self._cases) - 1
        if not last:
            rank = ""
        elif index == 0:
            rank = "Worst: "
        elif index == last:
            rank = "Best: "
        else:
            rank = f"{index + 1} of {last + 1}: "
        position = (
            describe_plane(case["at"]).removeprefix("plane ")
            if case["at"]
            else "the plane"
        )
        return f"{rank}{position}, IoU {case['mean_iou']:.2f}"

    def describe(self) -> str:
        """Describe the picture that is shown."""
        return self.heading()

    def _go(self) -> None:
        if self.index is not None and self.index < len(self._cases):
            self.plane_requested.emit(dict(self._cases[self.index]["at"]))


def draw_cases(
    written: Written,
    cases: Sequence[Mapping[str, Any]],
    image: Image | None,
    folder: Path,
) -> None:
    """Write a picture of each plane to a folder.

    Parameters
    ----------
    cases
        ``index`` of each plane in the files, and ``at``, its index in the prediction.

    Raises
    ------
    StrataError, OSError
        When the labels or the image cannot be read, or the folder cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    predicted, true = read_labels(written.prediction), read_labels(written.truth)
    for number, case in enumerate(cases):
        region = {axis: case["index"].get(axis, 0) for axis in "TZ"}
        labels = [
            written.classes.encode(
                image.read(_within(image, region))[0].reshape(_shape(image))
            )
            for image in (true, predicted)
        ]
        confusion = ConfusionMatrix(written.classes)
        confusion.update(*labels)
        grey = np.zeros((1, *_shape(true)), np.uint8)
        if image is not None:
            grey = image.read(_within(image, region | case["at"])).reshape(
                -1, *_shape(image)
            )
        name = (
            describe_plane(case["at"]) if case["at"] else written.comparison.truth.name
        )
        example = Example.of(
            name, grey, labels[0], prediction=labels[1], confusion=confusion
        )
        draw_example(example).save(folder / _name(number))


def _within(image: Image, region: Mapping[str, int]) -> dict[str, Any]:
    """Return the region without axes that an image does not have."""
    return {axis: index for axis, index in region.items() if axis in image.axes}


def _shape(image: Image) -> tuple[int, int]:
    return image.size("Y"), image.size("X")


def _name(number: int) -> str:
    return f"case_{number:02d}.png"
