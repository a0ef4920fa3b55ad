"""PNG and JPEG files, which contain a single plane.

A PNG file with a palette is read as indices for labels and as colours for images.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import PIL.ExifTags
import PIL.Image
from PIL.PngImagePlugin import PngInfo

from napari_strata.core.axes import is_transposed
from napari_strata.core.errors import ImageError, LabelError
from napari_strata.core.image import Array, Image
from napari_strata.io.blocks import planes, read_block
from napari_strata.io.budget import check_expansion, check_memory
from napari_strata.io.corrections import upright
from napari_strata.io.layout import resolve
from napari_strata.io.lazy import LAZY_BYTES, reading
from napari_strata.io.paths import PathLike, content_of, existing, stem
from napari_strata.io.record import KEY, Loaded, Record

_FORMATS = ("PNG", "JPEG")
_DEFLATE = 1100 * 8
"""Largest ratio of pixels (of one bit) to bytes that PNG's compression reaches."""

_ALPHA = {
    "RGBA": "RGB",
    "LA": "L",
    "PA": "RGB",
    "La": "L",
    "RGBa": "RGB",
    "RGBX": "RGB",
}


def load(
    path: PathLike,
    *,
    series: int | None = None,
    axes: str | None = None,
    lazy_above: int = LAZY_BYTES,
    labels: bool = False,
) -> Loaded:
    """Read a PNG or JPEG file as an image with axes YX or YXC.

    Parameters
    ----------
    path
        The file.
    series
        0, because these formats have a single image.
    axes
        Axes from the user.
    lazy_above
        Not used; the pixels are always read.
    labels
        Read palette indices instead of colours. JPEG is then refused, because its
        compression changes values.

    Raises
    ------
    ImageError
        When the file is missing or truncated, or is not PNG or JPEG.
    LabelError
        When labels are in a JPEG file.
    """
    file_path = existing(path)
    with _opened(file_path, labels=labels) as picture, reading(file_path):
        record = Record.read(getattr(picture, "text", {}).get(KEY, ""))
        orientation = _orientation(picture)
        array, notes = _pixels(picture, file_path, labels=labels)
    if record and not axes and record.fits(array.shape):
        return (
            record.image(array.reshape(record.shape), source=str(file_path)),
            record.classes,
        )
    layout = resolve("YXS"[: array.ndim], array.shape, axes=axes, source=str(file_path))
    image = Image(
        array, layout.axes, name=stem(file_path), source=str(file_path), notes=notes
    )
    return upright(image, orientation), record.classes if record else None


def storage(path: PathLike, *, series: int | None = None) -> str:
    """Describe the storage, for example ``PNG, mode L``."""
    with _opened(existing(path)) as picture:
        return f"{picture.format}, mode {picture.mode}"


def header(
    path: PathLike, *, labels: bool = False
) -> tuple[str, tuple[int, ...], np.dtype[Any]]:
    """Read axes, shape and dtype without decoding the pixels."""
    with _opened(existing(path), labels=labels) as picture:
        mode = _mode(picture, labels=labels)
        dtype: np.dtype[Any]
        if mode == "1":
            dtype = np.dtype(bool)
        elif picture.format == "PNG" and _bits(Path(path)) == 16:
            dtype = np.dtype(np.uint16)
        else:
            dtype = np.dtype(np.uint8)
        plane = (picture.height, picture.width)
        if is_transposed(_orientation(picture)):
            plane = plane[::-1]
        return ("YXC", (*plane, 3), dtype) if mode == "RGB" else ("YX", plane, dtype)


def write(path: Path, image: Image, record: Record, *, dtype: np.dtype[Any]) -> None:
    """Write a plane of labels as a grey PNG with 8 or 16 bits.

    The record is stored in a text chunk.

    Raises
    ------
    LabelError
        For more than one plane, or values above 65535.
    """
    all_planes = list(planes(image))
    if len(all_planes) != 1 or dtype not in (np.uint8, np.uint16):
        raise LabelError(
            f"{image.name}: found {len(all_planes)} planes of {dtype}; PNG holds one"
            " plane of uint8 or uint16: use .tif."
        )
    array = read_block(image, all_planes[0], slice(None), slice(None)).astype(dtype)
    text = PngInfo()
    text.add_text(KEY, record.text(), zip=True)
    PIL.Image.fromarray(array).save(path, format="PNG", pnginfo=text)


@contextmanager
def _opened(path: Path, *, labels: bool = False) -> Iterator[PIL.Image.Image]:
    # Pillow refuses large images to protect web servers; here they are the user's.
    limit, PIL.Image.MAX_IMAGE_PIXELS = PIL.Image.MAX_IMAGE_PIXELS, None
    try:
        try:
            picture = PIL.Image.open(path, formats=_FORMATS)
        except (OSError, SyntaxError, ValueError) as error:
            content = content_of(path)
            if content and "PNG" not in content and "JPEG" not in content:
                raise ImageError(
                    f"{path}: not a PNG or JPEG image: it is {content}."
                ) from error
            raise ImageError(
                f"{path}: not a PNG or JPEG image, or damaged; copy it again from its"
                " source."
            ) from error
        with picture:
            _check_size(picture, path)
            if labels and picture.format == "JPEG":
                raise LabelError(
                    f"{path}: JPEG changes label values; save the labels as PNG or"
                    " TIFF."
                )
            yield picture
    finally:
        PIL.Image.MAX_IMAGE_PIXELS = limit


def _check_size(picture: PIL.Image.Image, path: Path) -> None:
    """Refuse more pixels than the file can hold, or the memory."""
    pixels = picture.width * picture.height * len(picture.getbands())
    limit = _DEFLATE if picture.format == "PNG" else 0
    # 16 bits a sample need twice as much, and the converted array is a second one.
    check_expansion(path, pixels, path.stat().st_size, limit=limit)
    check_memory(path, 4 * pixels, "its image")


def _pixels(
    picture: PIL.Image.Image, path: Path, *, labels: bool
) -> tuple[Array, tuple[str, ...]]:
    mode = _mode(picture, labels=labels)
    notes = (
        ("the alpha (transparency) channel is left out",) if _has_alpha(picture) else ()
    )
    if picture.mode == "P" and not labels:
        notes = (*notes, "palette colours are taken as RGB")
    if mode == "RGB" and picture.format == "PNG" and _bits(path) == 16:
        # Pillow would reduce them to 8 bits.
        import imagecodecs

        return np.asarray(imagecodecs.png_decode(path.read_bytes()))[..., :3], notes
    array = np.asarray(picture if picture.mode == mode else picture.convert(mode))
    return array.astype(array.dtype.newbyteorder("=")), notes


def _mode(picture: PIL.Image.Image, *, labels: bool) -> str:
    """Return the Pillow mode in which the pixels are read."""
    if picture.mode == "P" and not labels:
        return "RGB"
    if picture.mode in ("CMYK", "YCbCr"):
        return "RGB"
    return _ALPHA.get(picture.mode, picture.mode)


def _has_alpha(picture: PIL.Image.Image) -> bool:
    return picture.mode in _ALPHA


def _orientation(picture: PIL.Image.Image) -> int:
    """Return the orientation in the EXIF metadata; 1 is upright."""
    with suppress(Exception):  # EXIF that is damaged does not matter for the pixels
        orientation = picture.getexif().get(PIL.ExifTags.Base.Orientation, 1)
        return int(orientation) if orientation in range(1, 9) else 1
    return 1


def _bits(path: Path) -> int:
    """Return the bits per sample from the header of a PNG file."""
    with path.open("rb") as file:
        return file.read(25)[24]
