"""Measure dock: fractions with intervals, measures of shape, and objects."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from magicgui.widgets import ComboBox
from napari.layers import Image as ImageLayer
from napari.layers import Labels as LabelsLayer
from napari.layers import Shapes
from napari.viewer import Viewer
from qtpy.QtWidgets import QFileDialog, QLabel, QTabWidget

from napari_strata.core.axes import from_canonical
from napari_strata.core.errors import ImageError
from napari_strata.core.events import RegionEnd
from napari_strata.core.image import LabelImage
from napari_strata.io import write_labels
from napari_strata.report.measure_tables import ROCK, short_unit
from napari_strata.widgets.layers import convert
from napari_strata.widgets.layers.live import PREDICTED, add_quietly
from napari_strata.widgets.measure.choices import (
    REGION,
    GreyChoice,
    MeasuredChoice,
    ModelPicker,
    RegionPicker,
)
from napari_strata.widgets.measure.objects import ObjectsPanel
from napari_strata.widgets.measure.state import (
    SPECIMEN,
    MeasureState,
    resolve,
)
from napari_strata.widgets.measure.view import FractionView, ShapeView
from napari_strata.widgets.parts.dock import Dock, Progress, draw
from napari_strata.widgets.parts.report_page import free_folder, page_of
from napari_strata.widgets.work import threads
from napari_strata.widgets.work.client import JobHandle, Outcome
from napari_strata.worker.protocol import Layer, MeasureJob, MeasureResult

REGION_COLOR = (0.9, 0.75, 0.1, 1.0)
MAP = "napari_strata_map"
"""Key in the metadata of layers that are a map of fractions."""
SMALL_BYTES = 2**30
"""Masks of at most this size are read into memory."""


class MeasureDock(Dock):
    """Dock that measures labels."""

    name = "Measure"
    manual_page = "docs/measuring.md"
    steps = (
        "Choose the labels. A prediction brings its model and its image along.",
        "Choose the region: the whole image, the specimen, or an area that you painted"
        " or drew in a layer of its own.",
        "Press Measure. Fractions come with an interval, or with the reason why there"
        " is none; click the profile to move the slider.",
        "Shape has measures of connection, surface and size. Objects numbers and"
        " measures the pieces of one class.",
        "Press Export ... to keep tables and a report.",
    )

    def __init__(self, napari_viewer: Viewer) -> None:
        super().__init__(napari_viewer)
        self.handle: JobHandle | None = None
        self.measures: dict[str, Any] | None = None
        """Content of ``measures.json`` of the last measurement."""
        self._activity = ""
        self._maps = ""
        self._runs = 0
        self._measured: LabelsLayer | None = None
        self._specimen: LabelsLayer | None = None
        self._request: MeasureJob | None = None
        self._build_page()
        self._build_foot()
        for choice in (self.labels, self.image, self.model, self.region):
            choice.changed.connect(self._changed)
        self.viewer.dims.events.current_step.connect(self._slider_moved)
        self._changed()

    # ---- Layout

    def _build_page(self) -> None:
        self.labels = MeasuredChoice(self.viewer)
        self.image = GreyChoice(self.viewer, self.labels)
        self.model = ModelPicker(self.session, self.labels)
        self.region = RegionPicker(self.viewer, self.labels)
        self.along = ComboBox(choices=["Z", "Y", "X"], value="Z")
        for widget in (self.labels, self.image, self.model, self.region):
            self.add(widget)
        self.add(self.row(QLabel("Profile along"), self.along, stretch=1))
        self.fractions, self.shape = FractionView(), ShapeView()
        self.objects = ObjectsPanel(
            self.viewer, lambda: self.session.scratch() / "objects"
        )
        self.tabs = QTabWidget()
        self.tabs.addTab(self.fractions, "Fractions")
        self.tabs.addTab(self.shape, "Shape")
        self.tabs.addTab(self.objects, "Objects")
        self.add(self.tabs)
        self.add(self.copy_buttons(self._copy))
        self.fractions.position_chosen.connect(self._go_to)
        self.shape.map_button.clicked.connect(self.show_maps)
        for table in (self.fractions.table, self.shape.table):
            table.copied.connect(
                lambda table=table: self.copy(table.text(), "The table")
            )

    def _build_foot(self) -> None:
        self.progress = Progress("Measurement")
        self.measure_button = self.button("Measure", self.measure)
        self.stop_button = self.button("Stop", self.stop)
        self.export_button = self.button("Export ...", self._choose_folder)
        self.add_to_foot(self.progress)
        self.add_to_foot(
            self.row(
                self.measure_button, self.stop_button, self.export_button, stretch=0
            )
        )

    # ---- State

    def state(self) -> MeasureState:
        """Read the state of the dock from its layers and choices."""
        labels = self._labels()
        image = self.image.layer
        return MeasureState(
            labels_problem=self.labels.problem,
            labels="" if labels is None else labels.name,
            depth=1 if labels is None else labels.size("Z"),
            times=1 if labels is None else labels.size("T"),
            region=self.region.name,
            is_drawn=isinstance(self.region.region, Shapes),
            region_problem=self.region.problem,
            model=self.model.name,
            image="" if image is None else image.name,
            activity=self._activity,
            is_running=self.handle is not None,
            has_measures=self.measures is not None,
        )

    def _labels(self) -> LabelImage | None:
        if self.labels.layer is None or self.labels.problem:
            return None
        try:
            return self.labels.labels(None)
        except ImageError:
            return None

    def _changed(self, _event: object = None) -> None:
        """Update the dock after a change of its state."""
        labels = self._labels()
        self._offer_axes(labels)
        view = resolve(self.state())
        draw(self.measure_button, view.measure)
        draw(self.stop_button, view.stop)
        draw(self.export_button, view.export)
        draw(self.along, view.along)
        for widget, text in (
            (self.model, view.model_text),
            (self.region, view.region_text),
        ):
            widget.text.setText(text)
            widget.text.setVisible(bool(text))
        image = None
        if labels is not None:
            image = self.image.image()
        self.objects.set_source(
            labels, image, self._object_mask, self._why_no_objects()
        )

    def _object_mask(self, labels: LabelImage) -> LabelImage | None:
        """Return the mask of the region for objects; None for the whole image."""
        if self.region.region == SPECIMEN and self._specimen is not None:
            data = convert.array_of(self._specimen)
            return LabelImage(data, labels.axes, name=self._specimen.name)
        return None if self.region.problem else self.region.mask_of(labels)

    def _why_no_objects(self) -> str:
        """Say why objects cannot be found in the region; empty if they can."""
        if self.region.problem:
            return self.region.problem
        specimen = self._specimen
        if specimen not in self.viewer.layers or self._measured is not (
            self.labels.layer
        ):
            specimen = None
        if self.region.region == SPECIMEN and specimen is None:
            return "Press Measure first, which finds the specimen."
        return ""

    def _offer_axes(self, labels: LabelImage | None) -> None:
        axes = ["Y", "X"]
        if labels is not None:
            axes = [a for a in "ZTYX" if a in labels.axes and labels.size(a) > 1]
        if list(self.along.choices) != axes and axes:
            self.along.choices = axes

    # ---- Actions

    def measure(self) -> None:
        """Write the labels in a thread, then let the worker measure them."""
        if self._activity or resolve(self.state()).problem:
            return
        self._measured = self.labels.layer
        self._run_in_thread(
            "Writing the labels ...", self._write_function("measure"), self._submit
        )

    def stop(self) -> None:
        """Stop the measurement."""
        if self.handle is not None:
            self.notice.show_message("Stopping ...")
            self.handle.stop()

    def export_to(self, folder: Path) -> None:
        """Measure again, and write tables and report to `folder`.

        If the folder is not empty, a new folder in it is used.
        """
        if self._request is None or self._activity:
            return
        out = free_folder(folder, convert.slug(self.state().labels), "measures")
        request = self._request.model_copy(
            update={
                "job": self.session.client.new_id(),
                "out": str(out),
                "mask": "",
                "maps": "",
                "rock": self.shape.topic.currentText() == ROCK,
            }
        )

        def write_report(_result: MeasureResult) -> None:
            self._run_in_thread(
                "Writing ...",
                lambda: page_of(out),
                lambda page: self.notice.show_message(f"Written to {page}."),
            )

        self._run_job(request, write_report)

    # ---- Jobs

    def _write_function(self, folder_name: str) -> Callable[[], MeasureJob]:
        """Return a function that writes the layers and returns the request."""
        labels, layer = self._labels(), self.image.layer
        assert labels is not None
        image, mask = self.image.image(), self.region.mask_of(labels)
        along = str(self.along.value)
        region = "specimen" if self.region.region == SPECIMEN else "all"
        models = self.model.models
        self._runs += 1
        number, session = self._runs, self.session

        def write() -> MeasureJob:
            folder = session.scratch() / folder_name
            slug = convert.slug(labels.name)
            path = write_labels(folder / f"{slug}.ome.tif", labels, overwrite=True)
            region_path = region
            if mask is not None:
                name = f"{convert.slug(mask.name)}-region.ome.tif"
                region_path = str(write_labels(folder / name, mask, overwrite=True))
            source = None
            if layer is not None and image is not None and models:
                source = convert.source_of_image(layer, image, folder)
            return MeasureJob(
                job=session.client.new_id(),
                labels=Layer(path=str(path), name=labels.name),
                model=(models if len(models) > 1 else models[0]) if models else None,
                image=source,
                region=region_path,
                along=along,
                rock=True,
                mask=str(folder / f"specimen-{number}.npy"),
                maps=str(folder / f"maps-{number}.npy"),
            )

        return write

    def _submit(self, request: MeasureJob) -> None:
        self._request = request
        self._run_job(request, self._show_result)

    def _show_result(self, result: MeasureResult) -> None:
        self.measures, self._maps = result.measures, result.maps
        self.fractions.show_measures(result.measures)
        self.shape.show_measures(result.measures)
        self._changed()
        self._slider_moved()
        if result.mask:
            self._add_specimen(Path(result.mask))

    def show_maps(self) -> None:
        """Add the fractions in cubes as an image layer for each class."""
        layer = self._measured
        if not self._maps or self.measures is None or layer not in self.viewer.layers:
            return
        labels, local = convert.labels_of(layer), self.measures["local"]
        sides = dict(zip("ZYX", local["side"], strict=True))
        scale, translate, axes = [], [], []
        for axis, step, first in zip(
            labels.axes, layer.scale, layer.translate, strict=True
        ):
            if axis in sides:
                axes.append(axis)
                scale.append(sides[axis])
                translate.append(first + (sides[axis] - step) / 2)
        for name, cubes in zip(local["curves"], np.load(self._maps), strict=True):
            volume = cubes if "Z" in axes else cubes[0]
            image = ImageLayer(
                from_canonical(volume, "".join(axes)),
                name=f"{name} in cubes of {sides['X']:.4g} {short_unit(local['unit'])}",
                scale=scale,
                translate=translate,
                units=[
                    unit
                    for axis, unit in zip(labels.axes, layer.units, strict=True)
                    if axis in sides
                ],
                axis_labels=[axis.lower() for axis in axes],
                colormap="viridis",
                opacity=0.6,
                contrast_limits=_limits(volume),
                visible=not any(map(_is_map, self.viewer.layers)),
                metadata={MAP: True},
            )
            add_quietly(self.viewer, image)

    def _add_specimen(self, path: Path) -> None:
        """Add the mask of the specimen as a layer, which the user may edit."""
        layer = self._measured
        if layer is None or layer not in self.viewer.layers:
            return
        mapped = np.load(path, mmap_mode="c")
        data = np.array(mapped) if mapped.nbytes <= SMALL_BYTES else mapped
        specimen = LabelsLayer(
            data,
            name=f"specimen of {layer.name}",
            scale=layer.scale,
            translate=layer.translate,
            rotate=layer.rotate,
            shear=layer.shear,
            affine=layer.affine,
            units=layer.units,
            axis_labels=layer.axis_labels,
            opacity=0.3,
            metadata={REGION: True, PREDICTED: True},
        )
        specimen.colormap = {None: (0, 0, 0, 0), 1: REGION_COLOR}
        specimen.selected_label = 1
        before, self._specimen = self._specimen, specimen
        if before in self.viewer.layers:
            self.viewer.layers.remove(before)
        specimen.events.paint.connect(self._specimen_edited)
        add_quietly(self.viewer, specimen)
        self._changed()

    def _specimen_edited(self, _event: object = None) -> None:
        """Measure the layer from now on: it is not the specimen that was found."""
        specimen, self._specimen = self._specimen, None
        if specimen is not None and specimen in self.viewer.layers:
            specimen.events.paint.disconnect(self._specimen_edited)
            specimen.name = f"edited {specimen.name}"
            self.region.choose(specimen)
            self.notice.show_message(
                f"The region is now the layer {specimen.name}: press Measure again."
            )

    def _run_in_thread(
        self, text: str, work: Callable[[], Any], done: Callable[[Any], None]
    ) -> None:
        """Call `work` in a thread while the dock shows `text`."""
        self._begin_activity(text)

        def succeeded(result: Any) -> None:
            self._end_activity()
            done(result)

        def failed(error: Exception) -> None:
            self._end_activity()
            self.notice.show_message(str(error), "error")

        threads.run(work, succeeded, failed, owner=self)

    def _run_job(
        self, request: MeasureJob, done: Callable[[MeasureResult], None]
    ) -> None:
        """Send a request to the worker and show that it runs."""
        self._begin_activity("Measuring ...")
        handle = self.handle = self.session.submit(request)

        def ended(outcome: Outcome) -> None:
            self.handle = None
            self._end_activity()
            if isinstance(outcome.result, MeasureResult):
                done(outcome.result)
            elif outcome.status == "stopped":
                self.notice.show_message("Stopped: nothing was measured.")
            else:
                self.notice.show_message(outcome.text, "error")

        handle.replied.connect(self._progressed)
        handle.ended.connect(ended)
        self._changed()

    def _progressed(self, event: object) -> None:
        if isinstance(event, RegionEnd):
            self.progress.show_step(
                event.done, event.regions, f"Plane {event.done} of {event.regions}"
            )

    def _begin_activity(self, text: str) -> None:
        self._activity = text
        self.notice.clear()
        self.progress.show_step(0, 0, text)
        self._changed()

    def _end_activity(self) -> None:
        self._activity = ""
        self.progress.hide()
        self._changed()

    # ---- The slider

    def _profile_axis(self) -> tuple[int, float] | None:
        """Return the viewer's dimension of the profile, and its first position."""
        layer = self._measured
        profile = (self.measures or {}).get("profile")
        if not profile or layer is None or layer not in self.viewer.layers:
            return None
        labels = convert.labels_of(layer)
        at = labels.axes.index(profile["axis"])
        dimension = self.viewer.dims.ndim - layer.ndim + at
        return dimension, float(layer.translate[at])

    def _go_to(self, position: float) -> None:
        """Show the plane at a position of the profile."""
        found = self._profile_axis()
        if found is not None and found[0] in self.viewer.dims.not_displayed:
            self.viewer.dims.set_point(found[0], position + found[1])

    def _slider_moved(self, _event: object = None) -> None:
        found = self._profile_axis()
        if found is None or found[0] in self.viewer.dims.displayed:
            self.fractions.figure.mark(None)
            return
        self.fractions.figure.mark(self.viewer.dims.point[found[0]] - found[1])

    # ---- Copies

    def _choose_folder(self) -> None:
        if path := QFileDialog.getExistingDirectory(
            self, "A folder for tables and report", str(self.session.settings.runs)
        ):
            self.export_to(Path(path))

    def _copy(self, form: Callable[[Any], str], subject: str) -> None:
        if why := self._activity or resolve(self.state()).problem:
            self.notice.show_message(f"There is nothing to copy. {why}", "warning")
            return

        def copied(request: MeasureJob) -> None:
            self.copy(form(request), subject)
            self.notice.show_message(
                f"{subject} is on the clipboard. It reads copies of the layers, which"
                " are kept until napari closes."
            )

        self._run_in_thread(
            "Writing the labels ...",
            self._write_function(f"measure-copy-{self._runs + 1}"),
            copied,
        )

    def leave(self) -> None:
        """Disconnect from the viewer, when it closes."""
        self.labels.disconnect_viewer()
        self.image.disconnect_viewer()
        self.region.disconnect_viewer()
        self.viewer.dims.events.current_step.disconnect(self._slider_moved)
        self.objects.stop()


def _is_map(layer: Any) -> bool:
    return bool(layer.metadata.get(MAP))


def _limits(values: np.ndarray[Any, Any]) -> tuple[float, float]:
    """Return contrast limits that enclose the values that are not NaN."""
    known = values[np.isfinite(values)]
    low, high = (known.min(), known.max()) if len(known) else (0, 1)
    return float(low), float(max(high, low + 1e-3))


def measure_dock(napari_viewer: Viewer | None = None) -> MeasureDock:
    """Open the Measure dock of a viewer; called by the menu."""
    return MeasureDock.of(napari_viewer)
