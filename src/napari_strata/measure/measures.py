"""Measures of a label image: fractions with intervals, profiles, measures of shape.

Labels are read plane by plane, so that memory does not grow with the number of planes.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeAlias

from napari_strata.core import files
from napari_strata.core.classes import IGNORE, ClassMap
from napari_strata.core.errors import ImageError, LabelError, RunError, nearest
from napari_strata.core.events import RegionEnd
from napari_strata.core.image import AnnotatedImage, Image, LabelImage
from napari_strata.core.runs import MEASURES_FILE
from napari_strata.io import read_image, read_labels
from napari_strata.measure.connected import Connection
from napari_strata.measure.fractions import NO_MODEL, ClassCounter, Estimator, Fraction
from napari_strata.measure.objects import infer_classes
from napari_strata.measure.region import ALL, RegionChoice, find_region
from napari_strata.measure.sample import Sample
from napari_strata.measure.shape import Shape, ShapeCounter
from napari_strata.measure.surface import Surface

if TYPE_CHECKING:
    from napari_strata.models.ensemble import AnyModel

MOST_CLASSES = 16
"""Classes whose shape is measured at once; each takes memory."""

AnyLabels: TypeAlias = "LabelImage | str | os.PathLike[str]"
AnyImage: TypeAlias = "Image | str | os.PathLike[str]"


@dataclass(frozen=True)
class Profile:
    """Fractions along an axis.

    Parameters
    ----------
    axis
        T, Z, Y or X.
    positions
        Middle of each plane, row or column, in `unit`; the first is at 0.
    voxels
        Labelled pixels at each position, inside the region.
    fractions
        For each class, its fraction at each position; None where `voxels` is 0.
    """

    axis: str
    unit: str
    positions: tuple[float, ...]
    voxels: tuple[int, ...]
    fractions: Mapping[str, tuple[Fraction | None, ...]]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON: a list for each column of each class."""
        columns: dict[str, Any] = {}
        for name, fractions in self.fractions.items():
            columns[name] = {
                key: [None if one is None else getattr(one, key) for one in fractions]
                for key in ("count", "estimate", "low", "high")
            }
        return {
            "axis": self.axis,
            "unit": self.unit,
            "positions": list(self.positions),
            "voxels": list(self.voxels),
            "fractions": columns,
        }


@dataclass(frozen=True)
class Measures:
    """What `measure` found.

    Parameters
    ----------
    labels
        Name of the label image.
    region
        Name of the region of interest. All figures are those of its labelled pixels.
    voxels
        Number of these pixels.
    fractions
        By class.
    profile
        None if the labels have a single plane and no axis was named.
    shape
        Measures of shape; None if they cannot be measured (see `why_no_shape`).
    rock
        True if the error because the specimen is small was asked for.
    colors
        ``#rrggbb`` by class.
    voxel_size
        Pixel size by axis, in `unit`.
    """

    labels: str
    region: str
    voxels: int
    fractions: Mapping[str, Fraction]
    profile: Profile | None = None
    shape: Shape | None = None
    why_no_shape: str = ""
    rock: bool = False
    colors: Mapping[str, str] = field(default_factory=dict)
    voxel_size: Mapping[str, float] = field(default_factory=dict)
    unit: str = "pixel"

    @property
    def connected(self) -> Mapping[str, Connection]:
        """How each class is connected; empty if that cannot be measured."""
        return {} if self.shape is None else self.shape.connected

    @property
    def surface(self) -> Mapping[str, Surface]:
        """Specific surface of each class; empty if that cannot be measured."""
        return {} if self.shape is None else self.shape.surface

    def to_dict(self) -> dict[str, Any]:
        """Return the content of ``measures.json``."""
        shape: dict[str, Any] = {"connected": {}, "surface": {}}
        if self.shape is not None:
            shape = self.shape.to_dict(rock=self.rock)
        if self.why_no_shape:
            shape["why_no_shape"] = self.why_no_shape
        profile: dict[str, Any] = {}
        if self.profile is not None:
            profile = self.profile.to_dict()
        return {
            "region": self.region,
            "voxels": self.voxels,
            "fractions": {
                name: fraction.to_dict() for name, fraction in self.fractions.items()
            },
            "profile": profile,
            **shape,
            "about": {
                "labels": self.labels,
                "voxel_size": dict(self.voxel_size),
                "unit": self.unit,
                "colors": dict(self.colors),
            },
        }

    def save(self, out: str | os.PathLike[str]) -> Path:
        """Write ``measures.json``, ``fractions.csv`` and ``profile.csv`` to a folder.

        Files of an earlier measurement are replaced. `napari_strata.write_page` makes
        a page of the folder.

        Returns
        -------
        Path
            The folder.

        Raises
        ------
        RunError
            When the folder cannot be written to.
        """
        folder = Path(out).expanduser()
        if folder.exists() and not folder.is_dir():
            raise RunError(f"{folder}: found a file; give the name of a folder.")
        for name, rows in self.tables().items():
            files.write_text(folder / name, _csv(rows))
        text = json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"
        files.write_text(folder / MEASURES_FILE, text)
        return folder

    def describe(self) -> str:
        """Return the fractions as a table for people."""
        width = max(len(name) for name in ("class", *self.fractions))
        lines = [
            f"{self.labels}, region: {self.region}, {self.voxels} labelled pixels",
            f"{'class':{width}}{'counted':>10}{'estimate':>10}   95 % interval",
        ]
        for name, fraction in self.fractions.items():
            text = f"{name:{width}}{100 * fraction.count:8.2f} %"
            if fraction.low is None or fraction.high is None:
                lines.append(f"{text}{'-':>10}   none: {fraction.why}")
                continue
            lines.append(
                f"{text}{100 * fraction.estimate:8.2f} %   "
                f"{100 * fraction.low:.2f} to {100 * fraction.high:.2f} %, "
                f"{fraction.why}"
            )
        return "\n".join(lines)

    def tables(self) -> dict[str, list[dict[str, Any]]]:
        """Return the rows of each CSV file, by its name."""
        tables = {"fractions.csv": self._fraction_rows()}
        if self.profile is not None:
            tables["profile.csv"] = self._profile_rows(self.profile)
        if self.shape is not None:
            tables |= self.shape.tables(self.region, rock=self.rock)
        return tables

    def _fraction_rows(self) -> list[dict[str, Any]]:
        size = 1.0
        for length in self.voxel_size.values():
            size *= length
        power = len(self.voxel_size)
        noun = "volume" if power > 2 else "area"
        rows = []
        for name, fraction in self.fractions.items():
            rows.append(
                {
                    "class": name,
                    "region": self.region,
                    "voxels": fraction.pixels,
                    f"{noun} ({self.unit}^{power})": fraction.pixels * size,
                    **fraction.to_dict(),
                }
            )
        return rows

    def _profile_rows(self, profile: Profile) -> list[dict[str, Any]]:
        rows = []
        for i, position in enumerate(profile.positions):
            row: dict[str, Any] = {
                profile.axis.lower(): i,
                f"position ({profile.unit})": position,
                "region": self.region,
                "voxels": profile.voxels[i],
            }
            for name, fractions in profile.fractions.items():
                fraction = fractions[i]
                for key in ("count", "estimate", "low", "high"):
                    value = None if fraction is None else getattr(fraction, key)
                    row[f"{name} {key}"] = value
            rows.append(row)
        return rows


def measure(
    labels: AnyLabels,
    model: AnyModel | None = None,
    image: AnyImage | None = None,
    region: RegionChoice = ALL,
    along: str | None = None,
    classes: Sequence[str] | None = None,
    rock: bool = False,
) -> Measures:
    """Measure how much of each class there is, and its shape.

    Parameters
    ----------
    labels
        Label values, or a file of them. They are read plane by plane. Pixels that the
        class map calls unlabelled count nowhere.
    model
        Model that predicted the labels: the interval comes from its errors on its
        validation planes. Without it there is no interval.
    image
        Image that the labels were predicted from. If it looks unlike the model's
        training images, there is no interval.
    region
        Pixels that are measured: ``"all"``; ``"specimen"``, the hull of everything
        that is not outside; or a mask, of which pixels other than 0 count: a file, an
        image, a layer of napari, or an array with the dimensions of the labels or the
        last of them.
    along
        Axis of the profile: Z, Y, X or T. When left out, Z if the labels have several
        planes.
    classes
        Names of the classes to report; all when left out. Shares are those of all
        labelled pixels in any case.
    rock
        Estimate also the error because the specimen is small; see `Rock`.

    Returns
    -------
    Measures
        Fractions by class, the profile, and measures of shape.

    Raises
    ------
    LabelError
        When a class is unknown, or no labelled pixel is in the region.
    ImageError
        When the image or the mask does not cover the labels, or `along` is no axis.
    """
    events = iter_measure(labels, model, image, region, along, classes, rock)
    while True:
        try:
            next(events)
        except StopIteration as end:
            measures: Measures = end.value
            return measures


def iter_measure(
    labels: AnyLabels,
    model: AnyModel | None = None,
    image: AnyImage | None = None,
    region: RegionChoice = ALL,
    along: str | None = None,
    classes: Sequence[str] | None = None,
    rock: bool = False,
) -> Generator[RegionEnd, None, Measures]:
    """Measure as `measure` does, with an event after each plane."""
    labels = labels if isinstance(labels, LabelImage) else read_labels(labels)
    grey = None
    if image is not None:
        grey = image if isinstance(image, Image) else read_image(image)
        AnnotatedImage(grey, labels)  # raises if they do not fit each other
    if labels.channels > 1:
        raise LabelError(
            f"{labels.name}: found {labels.channels} channels ({labels.axes}); needed "
            "is one label value a pixel: encode colours with ClassMap.from_rgb and "
            "write the labels first."
        )
    axis = _choose_axis(labels, along)
    class_map = _choose_classes(labels, model)
    names = _choose_names(labels, class_map, classes)
    roi = find_region(region, labels, class_map)
    counter = ClassCounter(len(class_map), axis, labels.size(axis) if axis else 0)
    shape, why_no_shape = _start_shape(labels, class_map, names)
    planes = 0
    all_planes = list(labels.planes())
    started = perf_counter()
    for done, plane in enumerate(all_planes, start=1):
        codes = class_map.encode(labels.read(plane)[0])
        inside = roi.find(plane, codes)
        if inside is not None:
            codes[~inside] = IGNORE
        planes += bool((codes != IGNORE).any())
        index = plane.get(axis, 0)
        assert isinstance(index, int)
        counter.add(codes, index)
        if shape is not None:
            shape.add(codes)
        seconds = perf_counter() - started
        region_index = {a: i for a, i in plane.items() if isinstance(i, int)}
        yield RegionEnd(region_index, done, len(all_planes), seconds)
        started = perf_counter()
    total = int(counter.totals.sum())
    if not total:
        raise LabelError(
            f"{labels.name}: found no labelled pixel in the region {roi.name!r}; choose"
            " another region, or check which values are unlabelled."
        )
    estimator = _choose_estimator(model, grey, kind=roi.kind)
    step = labels.pixel_size.get("Z", 0) / labels.pixel_size["X"]
    fractions = {}
    for name in names:
        pixels = int(counter.totals[class_map.names.index(name)])
        fractions[name] = estimator.estimate(
            name, pixels, total, planes=planes, depth=planes * step
        )
    return Measures(
        labels=labels.name,
        region=roi.name,
        voxels=total,
        fractions=fractions,
        profile=_make_profile(labels, counter, axis, class_map, names, estimator),
        shape=None if shape is None else shape.result(),
        why_no_shape=why_no_shape,
        rock=rock,
        colors=dict(zip(class_map.names, class_map.colors, strict=True)),
        voxel_size=labels.pixel_size,
        unit=labels.pixel_unit,
    )


def _start_shape(
    labels: LabelImage, class_map: ClassMap, names: Sequence[str]
) -> tuple[ShapeCounter | None, str]:
    """Return what measures the shape, or None and the reason against it."""
    if labels.size("T") > 1:
        return None, (
            f"the labels have {labels.size('T')} time points; give the labels of one"
            " time point"
        )
    if len(class_map) > MOST_CLASSES:
        return None, (
            f"the labels have {len(class_map)} classes, and shape is measured for up to"
            f" {MOST_CLASSES}; merge classes that belong together"
        )
    try:
        sample = Sample.from_labels(labels, class_map)
    except ImageError as error:
        return None, str(error).removeprefix(f"{labels.name}: ")
    return ShapeCounter(sample, names=names), ""


def _choose_axis(labels: LabelImage, along: str | None) -> str:
    """Return the axis of the profile, or an empty text."""
    if along is None:
        return "Z" if labels.size("Z") > 1 else ""
    axis = along.upper()
    if axis not in labels.label_axes or not axis:
        raise ImageError(
            f"{labels.name}: found along={along!r}; needed is one of the axes "
            f"{', '.join(labels.label_axes)}."
        )
    return axis


def _choose_classes(labels: LabelImage, model: AnyModel | None) -> ClassMap:
    """Return the class map of the labels, else of the model, else one class a value."""
    if labels.classes is not None:
        return labels.classes
    if model is not None:
        from napari_strata.models.ensemble import load_models

        return load_models(model).spec.classes
    return infer_classes(labels)


def _choose_names(
    labels: LabelImage, class_map: ClassMap, chosen: Sequence[str] | None
) -> tuple[str, ...]:
    """Return the names of the classes to report."""
    for name in chosen or ():
        if name not in class_map.names:
            raise LabelError(
                f"{labels.name}: found no class {name!r}; "
                f"{nearest(name, class_map.names)}"
            )
    return tuple(chosen or class_map.names)


def _choose_estimator(
    model: AnyModel | None, image: Image | None, *, kind: str
) -> Estimator:
    """Return what makes intervals, or says why there are none."""
    if model is None:
        return Estimator(refusal=NO_MODEL)
    from napari_strata.models.ensemble import load_models

    ensemble = load_models(model)
    if len(ensemble) > 1:
        return Estimator(
            refusal=f"{len(ensemble)} models were given, and the errors of their mean "
            "have not been measured: each was validated on its own; measure labels of"
            " one model"
        )
    estimator = Estimator.of(ensemble.models[0].residuals, kind)
    if image is not None:
        estimator = estimator.refuse(_find_objection(ensemble, image))
    return estimator


def _find_objection(model: AnyModel, image: Image) -> str:
    """Return what the drift guard finds unusual; empty if the image looks as usual."""
    from napari_strata.inference.drift import check_drift

    drift = check_drift(model, image)
    if not drift.level:
        return ""
    return (
        "the image is unlike the training images, so that the model's errors on it may"
        f" differ from those of its validation: {drift.describe()}"
    )


def _make_profile(
    labels: LabelImage,
    counter: ClassCounter,
    axis: str,
    class_map: ClassMap,
    names: Sequence[str],
    estimator: Estimator,
) -> Profile | None:
    if not axis:
        return None
    at = labels.axes.index(axis)
    totals = counter.profile.sum(axis=1)
    planes = labels.size("Z") if axis == "T" else 1
    depth = planes * labels.pixel_size.get("Z", 0) / labels.pixel_size["X"]
    if axis in ("Y", "X"):
        estimator = estimator.refuse("rows and columns are narrower than blocks")
    fractions = {}
    for name in names:
        pixels = counter.profile[:, class_map.names.index(name)]
        fractions[name] = tuple(
            estimator.estimate(name, int(part), int(total), planes=planes, depth=depth)
            if total
            else None
            for part, total in zip(pixels, totals, strict=True)
        )
    return Profile(
        axis,
        labels.units[at],
        tuple(float(i * labels.scale[at]) for i in range(labels.size(axis))),
        tuple(totals.tolist()),
        fractions,
    )


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
