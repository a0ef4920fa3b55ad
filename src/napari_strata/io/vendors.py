"""Pixel sizes of TIFF files that programs of microscopes and satellites wrote.

tifffile parses their metadata. Here the sizes are picked from them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from tifffile import TiffFile, matlabstr2py

from napari_strata.io.units import size_of, unit_name

Size = tuple[float, str]

_LINEAR_UNITS = {9001: "meter", 9002: "foot", 9003: "US_survey_foot"}
"""Names of GeoTIFF's codes for units of length."""

_GEOGRAPHIC = 2
"""GTModelTypeGeoKey of coordinates in degrees."""


def vendor_sizes(tif: TiffFile) -> dict[str, Size]:
    """Read pixel sizes in the words of the program that wrote the file.

    The result is empty if there are none, or if they are damaged.
    """
    for read in _READERS:
        sizes: dict[str, Any] = {}
        with suppress(Exception):  # metadata of other programs, which may be anything
            sizes = read(tif)
        known = {}
        for axis, (size, unit) in sizes.items():
            number = size_of(size)
            if number is not None:
                known[axis] = (number, unit_name(unit))
        if known:
            return known
    return {}


def _lsm(tif: TiffFile) -> dict[str, Any]:
    metadata = tif.lsm_metadata or {}
    # In metres; micrometres are what people compare.
    sizes = {
        axis: (float(metadata[f"VoxelSize{axis}"]) * 1e6, "micrometer")
        for axis in "XYZ"
        if f"VoxelSize{axis}" in metadata
    }
    return sizes | {"T": (metadata.get("TimeIntervall"), "second")}


def _micro_manager(tif: TiffFile) -> dict[str, Any]:
    summary = (tif.micromanager_metadata or {}).get("Summary", {})
    pixel = summary.get("PixelSize_um")
    if not pixel:
        frame = tif.pages.first.tags.valueof(51123, {})
        pixel = frame.get("PixelSizeUm")
    interval = float(summary.get("Interval_ms") or 0) / 1000
    return {
        "X": (pixel, "micrometer"),
        "Y": (pixel, "micrometer"),
        "Z": (summary.get("z-step_um"), "micrometer"),
        "T": (interval, "second"),
    }


def _aperio(tif: TiffFile) -> dict[str, Any]:
    page = tif.pages.first
    if not page.is_svs:  # that of the file also asks for tiles, in tifffile 2026.11
        return {}
    entries = dict(
        entry.split("=", 1) for entry in page.description.split("|")[1:] if "=" in entry
    )
    values = {key.strip(): value for key, value in entries.items()}
    return dict.fromkeys("XY", (values["MPP"], "micrometer"))


def _geotiff(tif: TiffFile) -> dict[str, Any]:
    page = tif.pages.first
    scale = page.tags.valueof(33550)
    if scale is None:
        matrix = page.tags.valueof(34264)
        scale = [math.hypot(matrix[k], matrix[4 + k], matrix[8 + k]) for k in (0, 1)]
    keys: Mapping[str, Any] = tif.geotiff_metadata or {}
    code = int(keys.get("ProjLinearUnitsGeoKey", 9001))
    unit = _LINEAR_UNITS.get(code, "meter")
    if int(keys.get("GTModelTypeGeoKey", 1)) == _GEOGRAPHIC:
        unit = "degree"
    return {"X": (scale[0], unit), "Y": (scale[1], unit)}


def _metamorph(tif: TiffFile) -> dict[str, Any]:
    metadata = tif.stk_metadata or {}
    unit = metadata.get("CalibrationUnits") or "um"
    sizes: dict[str, Any] = {}
    if metadata.get("SpatialCalibration", 1):
        sizes = {axis: (metadata[f"{axis}Calibration"], unit) for axis in "XY"}
    distances = [float(distance) for distance in metadata.get("ZDistance", ())]
    steps = [distance for distance in distances if distance]
    if steps:
        sizes["Z"] = (steps[0], unit)
    return sizes


def _scanimage(tif: TiffFile) -> dict[str, Any]:
    if not tif.is_scanimage:
        return {}
    page = tif.pages.first
    values = (tif.scanimage_metadata or {}).get("FrameData")
    if not values:
        values = matlabstr2py(page.software or page.description)
    sizes = {"Z": (values.get("SI.hStackManager.stackZStepSize"), "micrometer")}
    corners = values.get("SI.hRoiManager.imagingFovUm")
    if corners:
        for k, axis, count in ((0, "X", page.imagewidth), (1, "Y", page.imagelength)):
            span = [float(corner[k]) for corner in corners]
            sizes[axis] = ((max(span) - min(span)) / count, "micrometer")
    return sizes


def _fluoview(tif: TiffFile) -> dict[str, Any]:
    letters = {"x": "X", "y": "Y", "z": "Z", "t": "T", "time": "T"}
    sizes = {}
    for name, _, _, step, unit in (tif.fluoview_metadata or {}).get("Dimensions", ()):
        axis = letters.get(str(name).strip().lower())
        if axis:
            sizes[axis] = (step, str(unit))
    return sizes


def _olympus(tif: TiffFile) -> dict[str, Any]:
    metadata = tif.sis_metadata or {}
    return {
        axis: (float(metadata[f"pixelsize{axis.lower()}"]) * 1e6, "micrometer")
        for axis in "XY"
    }


def _thermo_fisher(tif: TiffFile) -> dict[str, Any]:
    scan = (tif.fei_metadata or {})["Scan"]
    return {
        "X": (float(scan["PixelWidth"]) * 1e6, "micrometer"),
        "Y": (float(scan["PixelHeight"]) * 1e6, "micrometer"),
    }


def _zeiss_sem(tif: TiffFile) -> dict[str, Any]:
    metadata = tif.sem_metadata or {}
    entry = metadata.get("ap_image_pixel_size") or metadata["ap_pixel_size"]
    return dict.fromkeys("XY", (entry[1], str(entry[2])))


_READERS: tuple[Callable[[TiffFile], dict[str, Any]], ...] = (
    _lsm,
    _micro_manager,
    _aperio,
    _metamorph,
    _scanimage,
    _fluoview,
    _olympus,
    _thermo_fisher,
    _zeiss_sem,
    _geotiff,
)
