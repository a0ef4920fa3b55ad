"""A format from outside the package is read, described and written."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from napari_strata.core.errors import ImageError, RunError
from napari_strata.core.image import Image, LabelImage
from napari_strata.io import describe, formats, read_image, read_labels, write_labels


def count(path: Path) -> int:
    return 1


def load(path: Path, **options: Any) -> tuple[Image, None]:
    return Image(np.loadtxt(path, dtype=np.uint8, ndmin=2), "YX", name="toy"), None


def storage(path: Path, *, series: int = 0) -> str:
    return "toy numbers"


def write(path: Path, image: Image, record: object, *, dtype: Any) -> None:
    with path.open("w") as file:  # the temporary name has the suffix too
        np.savetxt(file, np.asarray(image.data).astype(dtype), fmt="%d")


@pytest.fixture
def toy_format(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("toy_format")
    for function in (count, load, storage, write):
        setattr(module, function.__name__, function)
    monkeypatch.setitem(sys.modules, "toy_format", module)
    monkeypatch.setattr(formats, "FORMATS", list(formats.FORMATS))
    formats.register_format(
        formats.FileFormat("toy", (".toy",), "toy_format", (".toy",))
    )


@pytest.mark.usefixtures("toy_format")
def test_a_registered_format_is_written_read_and_described(tmp_path: Path) -> None:
    array = np.arange(12, dtype=np.uint8).reshape(3, 4)
    path = write_labels(tmp_path / "a.toy", LabelImage(array, "YX"))
    np.testing.assert_array_equal(read_image(path).data, array)
    np.testing.assert_array_equal(read_labels(path).data, array)
    assert any("toy numbers" in line for line in describe(path))
    (tmp_path / "a.xyz").touch()
    with pytest.raises(
        ImageError, match=r"toy, TIFF, PNG, JPEG, OME-Zarr, .* ND2 can be"
    ):
        read_image(tmp_path / "a.xyz")


def test_an_unregistered_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.toy").touch()
    with pytest.raises(ImageError, match=r"found the suffix '\.toy'"):
        read_image(tmp_path / "a.toy")
    labels = LabelImage(np.zeros((3, 4), np.uint8), "YX")
    with pytest.raises(RunError, match=r"found the suffix '\.toy'"):
        write_labels(tmp_path / "b.toy", labels)
