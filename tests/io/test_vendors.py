"""Pixel sizes in the words of the programs that wrote the files."""

from __future__ import annotations

import uuid
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile

from napari_strata.core.errors import ImageError
from napari_strata.core.image import Image
from napari_strata.io import read_image
from napari_strata.io.metadata import from_imagej
from napari_strata.io.vendors import vendor_sizes

PLANE = np.zeros((16, 20), "uint8")


def sizes(image: Image) -> dict[str, tuple[float, str]]:
    rows = zip(image.axes, image.scale, image.units, strict=True)
    return {axis: (round(size, 9), unit) for axis, size, unit in rows}


def test_aperio(tmp_path: Path) -> None:
    path = tmp_path / "slide.svs"
    text = "Aperio Image Library v11 \r\n20x16 (256x256) JPEG/RGB Q=70|MPP = 0.2520"
    tifffile.imwrite(path, PLANE, description=text, metadata=None)
    assert sizes(read_image(path))["X"] == (0.252, "micrometer")


@pytest.mark.parametrize(
    ("keys", "unit"), [((1024, 0, 1, 1), "meter"), ((1024, 0, 1, 2), "degree")]
)
def test_geotiff(tmp_path: Path, keys: tuple[int, ...], unit: str) -> None:
    path = tmp_path / "geo.tif"
    tags = [
        (33550, "d", 3, (0.25, 0.5, 0.0), True),
        (34735, "H", 8, (1, 1, 0, 1, *keys), True),
    ]
    tifffile.imwrite(path, PLANE, metadata=None, extratags=tags)
    assert sizes(read_image(path)) == {"Y": (0.5, unit), "X": (0.25, unit)}


def test_scanimage(tmp_path: Path) -> None:
    path = tmp_path / "si.tif"
    software = (
        "SI.VERSION_MAJOR = 2020\nSI.hStackManager.stackZStepSize = -2\n"
        "SI.hRoiManager.imagingFovUm = [-10 -8;10 -8;10 8;-10 8]\n"
    )
    tifffile.imwrite(
        path,
        np.zeros((4, 16, 20), "uint8"),
        metadata=None,
        software=software,
        photometric="minisblack",
    )
    micrometer = "micrometer"
    assert sizes(read_image(path)) == {
        "Z": (2, micrometer),
        "Y": (1, micrometer),
        "X": (1, micrometer),
    }


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("Image Pixel Size = 3.473 nm", (3.473, "nanometer")),
        ("Image Pixel Size = 2 µm", (2, "micrometer")),
        ("Image Pixel Size = unknown", (1, "pixel")),
    ],
)
def test_zeiss_sem(tmp_path: Path, line: str, expected: tuple[float, str]) -> None:
    text = f"1024\r\n0\r\nAP_IMAGE_PIXEL_SIZE\r\n{line}\r\n".encode("cp1252")
    tags = [(34118, "s", 0, text, True)]
    tifffile.imwrite(tmp_path / "sem.tif", PLANE, metadata=None, extratags=tags)
    assert sizes(read_image(tmp_path / "sem.tif")) == {"Y": expected, "X": expected}


def test_fluoview(tmp_path: Path) -> None:
    header = np.zeros((), tifffile.TIFF.MM_HEADER)
    header["ImageName"] = b"cells"
    header["Dimensions"]["Size"] = 1
    for number, row in enumerate(
        [
            (b"x", 20, 0, 0.25, b"\xb5m"),
            (b"y", 16, 0, 0.5, b"\xb5m"),
            (b"z", 4, 0, -1.5, b"um"),
            (b"Time", 3, 0, 5.0, b"sec"),
        ]
    ):
        header["Dimensions"][number] = row
    content = header.tobytes()
    array = np.random.default_rng(0).integers(0, 99, (12, 16, 20)).astype("uint8")
    with tifffile.TiffWriter(tmp_path / "fluo.tif") as writer:
        for plane in array:
            tags = [
                (34361, "B", len(content), content, True),
                (34362, "d", 8, (0.0,) * 8, True),
            ]
            writer.write(plane, metadata=None, contiguous=False, extratags=tags)
    image = read_image(tmp_path / "fluo.tif")
    assert sizes(image) == {
        "T": (5, "second"),
        "Z": (1.5, "micrometer"),
        "Y": (0.5, "micrometer"),
        "X": (0.25, "micrometer"),
    }
    np.testing.assert_array_equal(image.data, array.reshape(3, 4, 16, 20))


@pytest.mark.parametrize(
    ("name", "metadata", "expected"),
    [
        (
            "lsm_metadata",
            {"VoxelSizeX": 2e-7, "VoxelSizeY": 2e-7, "VoxelSizeZ": 1e-6},
            {"X": 0.2, "Y": 0.2, "Z": 1},
        ),
        (
            "micromanager_metadata",
            {"Summary": {"PixelSize_um": 0.65, "z-step_um": -2.0}},
            {"X": 0.65, "Y": 0.65, "Z": 2},
        ),
        (
            "stk_metadata",
            {
                "XCalibration": 0.3,
                "YCalibration": 0.3,
                "CalibrationUnits": "um",
                "ZDistance": [0.0, 0.5],
            },
            {"X": 0.3, "Y": 0.3, "Z": 0.5},
        ),
        (
            "fei_metadata",
            {"Scan": {"PixelWidth": 5e-9, "PixelHeight": 5e-9}},
            {"X": 0.005, "Y": 0.005},
        ),
        ("sis_metadata", {"pixelsizex": 1e-6, "pixelsizey": 1e-6}, {"X": 1, "Y": 1}),
        ("lsm_metadata", {"VoxelSizeX": "?", "VoxelSizeY": 0}, {}),
    ],
)
def test_sizes_of_microscopes(
    name: str, metadata: object, expected: dict[str, float]
) -> None:
    names = ("lsm", "micromanager", "stk", "fluoview", "sis", "fei", "sem", "geotiff")
    empty = {f"{key}_metadata": None for key in names}
    page = SimpleNamespace(tags=tifffile.tifffile.TiffTags(), is_svs=False)
    flags = {
        "is_scanimage": False,
        "pages": SimpleNamespace(first=page),
    }
    tif = SimpleNamespace(**(empty | flags | {name: metadata}))
    found = vendor_sizes(tif)  # type: ignore[arg-type]
    assert {axis: round(size, 9) for axis, (size, _) in found.items()} == expected
    assert {unit for _, unit in found.values()} <= {"micrometer"}


@pytest.mark.parametrize("dpi", [72, 96, 150, 200, 300, 600])
@pytest.mark.parametrize("unit", ["INCH", "CENTIMETER"])
def test_print_resolutions_are_unknown(tmp_path: Path, dpi: int, unit: str) -> None:
    path = tmp_path / "a.tif"
    per = dpi if unit == "INCH" else round(dpi / 2.54, 1)
    tifffile.imwrite(
        path, PLANE, metadata=None, resolution=(per, per), resolutionunit=unit
    )
    image = read_image(path)
    assert set(sizes(image).values()) == {(1, "pixel")}
    assert f"{dpi} dpi" in image.notes[0]


def test_imagej_units_of_each_axis_and_direction() -> None:
    metadata = {"unit": "um", "yunit": "mm", "zunit": "nm", "spacing": -40}
    assert from_imagej(metadata, (4.0, 8.0, 1)).pixel == {
        "X": (0.25, "micrometer"),
        "Y": (0.125, "millimeter"),
        "Z": (40, "nanometer"),
    }
    # ImageJ keeps the resolution of a scan that it opened.
    assert from_imagej({"unit": "inch"}, (300.0, 300.0, 1)).pixel == {}


def test_ome_companion_file(tmp_path: Path) -> None:
    name = uuid.UUID(int=1).urn
    xml = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="I:0">'
        '<Pixels ID="P:0" DimensionOrder="XYZCT" Type="uint8" SizeX="20" SizeY="16"'
        ' SizeZ="2" SizeC="1" SizeT="1" PhysicalSizeX="0.5" PhysicalSizeY="0.5"'
        f' PhysicalSizeZ="2"><TiffData PlaneCount="2"><UUID FileName="a.ome.tif">{name}'
        "</UUID></TiffData></Pixels></Image></OME>"
    )
    binary_only = (
        f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="{name}">'
        f'<BinaryOnly MetadataFile="set.companion.ome" UUID="{name}"/></OME>'
    )
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(
        path,
        np.zeros((2, 16, 20), "uint8"),
        description=binary_only,
        metadata=None,
        photometric="minisblack",
    )
    with pytest.raises(ImageError, match=r"set\.companion\.ome"):
        read_image(path)
    (tmp_path / "set.companion.ome").write_text(xml, encoding="utf-8")
    image = read_image(path)
    assert image.axes == "ZYX"
    assert sizes(image)["Z"] == (2, "micrometer")
