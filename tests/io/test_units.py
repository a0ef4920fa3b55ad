from __future__ import annotations

from pathlib import Path

import pytest

from napari_strata.io.paths import natural, stem
from napari_strata.io.units import ome_symbol, unit_name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("µm", "micrometer"),
        ("\u03bcm", "micrometer"),
        ("um", "micrometer"),
        ("Microns", "micrometer"),
        ("\\u00B5m", "micrometer"),
        ("micrometres", "micrometer"),
        ("nm", "nanometer"),
        ("Å", "angstrom"),
        ("\u212b", "angstrom"),
        ("mm", "millimeter"),
        ("inches", "inch"),
        ("sec", "second"),
        ("px", "pixel"),
        ("pixels", "pixel"),
        ("", "pixel"),
        (None, "pixel"),
        (" m ", "meter"),
        ("reference frame", "reference frame"),
    ],
)
def test_names(text: str | None, name: str) -> None:
    assert unit_name(text) == name


def test_ome_symbols_of_length_and_time() -> None:
    assert ome_symbol("micrometer") == "µm"
    assert ome_symbol("second", time=True) == "s"
    assert ome_symbol("second") is None
    assert ome_symbol("micrometer", time=True) is None
    assert ome_symbol("furlong") is None


def test_natural_order_and_stems() -> None:
    names = ["s10.tif", "s2.tif", "S1.tif", "a.tif", "10.tif", "9.tif"]
    assert [p.name for p in sorted(map(Path, names), key=natural)] == [
        "9.tif",
        "10.tif",
        "a.tif",
        "S1.tif",
        "s2.tif",
        "s10.tif",
    ]
    assert [
        stem(Path(p)) for p in ("a.ome.tif", "b.c.tif", "d.ome.zarr", "e.tiff")
    ] == ["a", "b.c", "d", "e"]
