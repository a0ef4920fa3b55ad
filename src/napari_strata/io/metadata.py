"""Pixel sizes, units and channel names of TIFF files.

They come from OME-XML, ImageJ's or tifffile's metadata, or plain tags.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from xml.etree import ElementTree

from tifffile import TiffFile, TiffPageSeries

from napari_strata.core.image import ArrayLike, Image
from napari_strata.io.layout import Layout
from napari_strata.io.paths import PathLike
from napari_strata.io.record import KEY, NAMESPACE, Record
from napari_strata.io.units import PIXEL, size_of, unit_name
from napari_strata.io.vendors import Size, vendor_sizes

_PRINT_DPI = {72, 75, 96, 100, 120, 150, 180, 200, 240, 300, 350, 400, 600}
"""Resolutions of screens and printers; programs write one of them if they know none."""

_TAG_UNITS = {2: 25400.0, 3: 10000.0}
"""Micrometres for each value of the tag ResolutionUnit: inch and centimetre."""

_CENTIMETER = 3


@dataclass(frozen=True)
class Calibration:
    """Metadata of a TIFF series.

    Parameters
    ----------
    pixel
        Pixel size and unit of each axis for which they are known.
    channel_names
        Names of the channels, or empty.
    record
        Record of files that this project wrote.
    """

    pixel: dict[str, Size] = field(default_factory=dict)
    channel_names: tuple[str, ...] = ()
    record: Record | None = None
    notes: tuple[str, ...] = ()
    nodata: float | None = None
    """Value of pixels without data, or None."""
    orientation: int = 1
    """Orientation of the stored rows and columns, as in the TIFF tag."""


def calibrated(
    data: ArrayLike,
    layout: Layout,
    calibration: Calibration,
    *,
    name: str,
    source: PathLike,
) -> Image:
    """Build an image with the pixel sizes, channel names and notes of its file."""
    letters = layout.axes.replace("S", "C")
    sizes = [calibration.pixel.get(axis, (1.0, PIXEL)) for axis in letters]
    channels = layout.shape[letters.index("C")] if "C" in letters else 0
    return Image(
        data,
        letters,
        scale=tuple(size for size, _ in sizes),
        units=tuple(unit for _, unit in sizes),
        name=name,
        channel_names=(
            calibration.channel_names
            if len(calibration.channel_names) == channels
            else ()
        ),
        source=str(source),
        notes=layout.notes + calibration.notes,
    )


def of_series(tif: TiffFile, series: TiffPageSeries, index: int) -> Calibration:
    """Read the metadata of one series."""
    tags = series.keyframe.tags
    orientation = tags.valueof(274, 1)
    return replace(
        _calibration(tif, series, index),
        nodata=_number(tags.valueof(42113)),
        orientation=int(orientation) if orientation in range(1, 9) else 1,
    )


def _calibration(tif: TiffFile, series: TiffPageSeries, index: int) -> Calibration:
    if series.kind == "ome" and tif.ome_metadata:
        return from_ome(
            tif.ome_metadata, index, count=len(tif.series), name=series.name
        )
    tags = _resolution(series)
    if series.kind == "imagej":
        return from_imagej(tif.imagej_metadata or {}, tags)
    if series.kind == "shaped":
        metadata = tif.shaped_metadata or ()
        calibration = from_shaped(
            metadata[index] if index < len(metadata) else {}, tags
        )
    else:
        calibration = Calibration(_from_tags(tags), notes=_print_notes(tags))
    sizes = vendor_sizes(tif)
    if not sizes:
        return calibration
    notes = () if "X" in sizes else calibration.notes
    return replace(calibration, pixel=calibration.pixel | sizes, notes=notes)


def from_ome(xml: str, index: int, *, count: int = 1, name: str = "") -> Calibration:
    """Read the metadata of an image in OME-XML.

    Parameters
    ----------
    index, count
        Number of the image, and the number of images in the file.
    name
        Name of the image. It is used if the XML has another number of images than the
        file.
    """
    root = ElementTree.fromstring(xml)
    images = [e for e in root if _tag(e) == "Image"]
    image = (
        images[index]
        if len(images) == count
        else next((e for e in images if e.get("Name") == name), None)
    )
    pixels = (
        next((e for e in image if _tag(e) == "Pixels"), None)
        if image is not None
        else None
    )
    if image is None or pixels is None:
        return Calibration()
    sizes = {a: _ome_size(pixels, f"PhysicalSize{a}", "µm") for a in "XYZ"}
    sizes["T"] = _ome_size(pixels, "TimeIncrement", "s")
    names = _names(e.get("Name") for e in pixels if _tag(e) == "Channel")
    return Calibration({a: s for a, s in sizes.items() if s}, names, _ome_record(root))


def from_imagej(
    metadata: Mapping[str, Any], tags: tuple[float, float, int]
) -> Calibration:
    """Read pixel sizes by ImageJ's rules.

    The resolution is in pixels per `unit`, or `yunit` along Y; the depth is 1 `unit`
    (or `zunit`) without `spacing`, whose sign is a direction.
    """
    unit = unit_name(str(metadata.get("unit", "")))
    spacing = size_of(metadata.get("spacing"))
    notes: tuple[str, ...] = ()
    if unit == "inch" and _is_print(tags):  # ImageJ keeps it from the file it opened
        unit = PIXEL
    if unit != PIXEL:
        units = {
            axis: unit_name(str(metadata.get(f"{axis.lower()}unit") or unit))
            for axis in "YZ"
        }
        pixel = _per_unit(tags, unit) | {"Z": (spacing or 1.0, units["Z"])}
        if "Y" in pixel:
            pixel["Y"] = (pixel["Y"][0], units["Y"])
    else:
        pixel, notes = _from_tags(tags), _print_notes(tags)
        if spacing:
            pixel["Z"] = (
                (spacing * _TAG_UNITS[tags[2]], "micrometer")
                if pixel
                else (spacing, PIXEL)
            )
    if interval := size_of(metadata.get("finterval")):
        pixel["T"] = (interval, unit_name(str(metadata.get("tunit", "sec"))))
    labels = metadata.get("Labels")
    names: tuple[str, ...] = ()
    if isinstance(labels, (list, tuple)):
        if len(labels) == metadata.get("channels", 1):
            names = tuple(map(str, labels))
    return Calibration(pixel, names, notes=notes)


def from_shaped(
    metadata: Mapping[str, Any], tags: tuple[float, float, int]
) -> Calibration:
    """Read the metadata of tifffile's shaped files.

    They have keys of ImageJ or OME, and the record if this project wrote them.
    """
    calibration = from_imagej(
        {k: v for k, v in metadata.items() if k != "Labels"}, tags
    )
    pixel = dict(calibration.pixel)
    for axis in "XYZ":
        if size := size_of(metadata.get(f"PhysicalSize{axis}")):
            unit = str(metadata.get(f"PhysicalSize{axis}Unit", "µm"))
            pixel[axis] = (size, unit_name(unit))
    channel = metadata.get("Channel")
    names = (
        channel.get("Name", ())
        if isinstance(channel, dict)
        else metadata.get("channel_names", ())
    )
    names = tuple(map(str, names)) if isinstance(names, (list, tuple)) else ()
    notes = calibration.notes if "X" not in pixel else ()
    return Calibration(pixel, names, Record.read(metadata.get(KEY)), notes)


def _ome_size(pixels: ElementTree.Element, key: str, unit: str) -> Size | None:
    size = size_of(pixels.get(key))
    return (size, unit_name(pixels.get(f"{key}Unit", unit))) if size else None


def _ome_record(root: ElementTree.Element) -> Record | None:
    for element in root.iter():
        if _tag(element) == "MapAnnotation" and element.get("Namespace") == NAMESPACE:
            return next(
                (Record.read(m.text) for m in element.iter() if m.get("K") == KEY), None
            )
    return None


def _names(values: Any) -> tuple[str, ...]:
    names = list(values)
    if not any(names):
        return ()
    return tuple(name or f"channel {i}" for i, name in enumerate(names))


def _tag(element: ElementTree.Element) -> str:
    return element.tag.rsplit("}", 1)[-1]


def _resolution(series: TiffPageSeries) -> tuple[float, float, int]:
    """Read the resolution tags of a series.

    Returns
    -------
    tuple[float, float, int]
        Pixels per unit along X and Y (0 if unknown), and the tag ResolutionUnit (2 for
        inch, 3 for centimetre).
    """
    tags = series.keyframe.tags
    per_x, per_y = [_ratio(tags.valueof(code)) for code in (282, 283)]
    return per_x, per_y, int(tags.valueof(296, 2))


def _ratio(value: Any) -> float:
    try:
        numerator, denominator = value
        return float(numerator) / float(denominator)
    except (TypeError, ValueError, ZeroDivisionError):
        return 0.0


def _per_unit(tags: tuple[float, float, int], unit: str) -> dict[str, Size]:
    return {a: (1 / per, unit) for a, per in zip("XY", tags, strict=False) if per > 0}


def _from_tags(tags: tuple[float, float, int]) -> dict[str, Size]:
    """Return the pixel size from the resolution tags, in micrometres.

    The result is empty if the tags have the default values of a program.
    """
    x, y, unit = tags
    if unit not in _TAG_UNITS or min(x, y) <= 0 or {x, y} == {1.0} or _is_print(tags):
        return {}
    micrometers = _TAG_UNITS[unit]
    return {"X": (micrometers / x, "micrometer"), "Y": (micrometers / y, "micrometer")}


def _is_print(tags: tuple[float, float, int]) -> bool:
    """Return True for the resolution of a screen or a printer, not of a detector."""
    per_inch = 25400 / _TAG_UNITS.get(tags[2], 25400)
    # Programs round 300 dpi to 118.1 or 118 pixels per centimetre.
    tolerance = 0.2 if tags[2] == _CENTIMETER else 0.01
    return all(
        any(abs(per * per_inch - dpi) <= tolerance * per_inch for dpi in _PRINT_DPI)
        for per in tags[:2]
    )


def _print_notes(tags: tuple[float, float, int]) -> tuple[str, ...]:
    if tags[2] not in _TAG_UNITS or not _is_print(tags):
        return ()
    dpi = round(tags[0] * 25400 / _TAG_UNITS[tags[2]])
    return (
        f"the file states {dpi} dpi, the resolution of a screen or a print; the pixel"
        " size is taken as unknown",
    )


def _number(value: Any) -> float | None:
    """Return a number that a tag states as text, or None."""
    try:
        return float(str(value).strip(" \0"))
    except ValueError:
        return None
