"""Time to write labels and read stacks, compared with tifffile and numpy.

    python benchmarks/io.py [NAME]... [--labels FILE] [--json FILE]

Writes 64 label planes of 1024 x 1024 (of the generated sandstone, or those of FILE,
repeated) as each of the contenders does, on the disk of the temporary folder, and reads
them back. Sizes are told as a ratio to zlib's at its usual level 6.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from contest import Facts, arguments, contender, run, table, timed

import napari_strata as ns
from napari_strata.io import read_image, read_labels, write_labels
from napari_strata.io.samples import sandstone

Array = np.ndarray[Any, Any]
PLANES = 64


def stack(options: argparse.Namespace) -> Array:
    """Label planes uint8 (64, H, W)."""
    if options.labels:
        planes = np.asarray(read_labels(options.labels, axes=options.axes).data)
        planes = planes.reshape(-1, *planes.shape[-2:])
    else:
        planes = np.asarray(sandstone((4, 1024, 1024), seed=1).labels.data)
    return np.ascontiguousarray(
        np.resize(planes, (PLANES, *planes.shape[1:])).astype(np.uint8)
    )


def written(
    write: Callable[[Path, Array], Any], suffix: str, read: Callable[[Path], Any]
) -> Any:
    """A contender that writes a stack, and reads it back."""

    def contest(options: argparse.Namespace) -> Facts:
        labels = stack(options)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"labels{suffix}"

            def anew() -> None:
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
                write(path, labels)

            facts = timed(anew, repeats=options.repeats)
            reading = timed(lambda: read(path), repeats=options.repeats)
            assert np.array_equal(reading["answer"], labels)
            files = (
                [path]
                if path.is_file()
                else [f for f in path.rglob("*") if f.is_file()]
            )
            size = sum(f.stat().st_size for f in files)
        return facts | {
            "voxels": labels.size,
            "bits": 8 * size / labels.size,
            "read": reading["median"],
        }

    return contest


def ours(path: Path, labels: Array) -> None:
    write_labels(path, ns.LabelImage(labels, "ZYX"))


def tiled(
    compression: str | None, level: int | None = None, *, tile: int = 512
) -> Callable[[Path, Array], None]:
    def write(path: Path, labels: Array) -> None:
        options: dict[str, Any] = (
            {} if level is None else {"compressionargs": {"level": level}}
        )
        tifffile.imwrite(
            path, labels, tile=(tile, tile), compression=compression, **options
        )

    return write


def plane_by_plane(path: Path, labels: Array) -> None:
    with tifffile.TiffWriter(path) as tif:
        for plane in labels:
            tif.write(plane, tile=(512, 512), compression="zlib", contiguous=False)


def our_read(path: Path) -> Array:
    return np.asarray(read_labels(path, axes="ZYX").data)


contender("ours, TIFF")(written(ours, ".tif", our_read))
contender("ours, OME-Zarr")(written(ours, ".zarr", our_read))
contender("tifffile, zlib 6, tiles of 512")(
    written(tiled("zlib", 6), ".tif", tifffile.imread)
)
contender("tifffile, zlib 6, tiles of 256")(
    written(tiled("zlib", 6, tile=256), ".tif", tifffile.imread)
)
contender("tifffile, zlib 1")(written(tiled("zlib", 1), ".tif", tifffile.imread))
contender("tifffile, zstd 1")(written(tiled("zstd", 1), ".tif", tifffile.imread))
contender("tifffile, LZW")(written(tiled("lzw"), ".tif", tifffile.imread))
contender("tifffile, not compressed")(written(tiled(None), ".tif", tifffile.imread))


@contender("reading a plain TIFF")
def plain(options: argparse.Namespace) -> Facts:
    """Read one stack in turns with numpy (bare bytes) and with our TIFF reader."""
    labels = stack(options)
    with tempfile.TemporaryDirectory() as folder:
        bare, tiff = Path(folder) / "stack.raw", Path(folder) / "stack.tif"
        labels.tofile(bare)
        tifffile.imwrite(tiff, labels, metadata={"axes": "ZYX"})

        def numpys() -> Array:
            return np.fromfile(bare, np.uint8)

        def through_us() -> Array:
            return np.asarray(read_image(tiff).data[...])

        numpys(), through_us()
        first, second = timed(numpys, repeats=9), timed(through_us, repeats=9)
    return {"numpy": first["median"], "median": second["median"], "voxels": labels.size}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument(
        "--labels", type=Path, help="a label file to take the planes from"
    )
    parser.add_argument("--axes", help="its axes, where it does not say")
    results = run(parser.parse_args())
    if not results:
        return
    usual = results.get("tifffile, zlib 6, tiles of 256", {}).get("bits")
    rows = []
    for name, facts in results.items():
        if "bits" in facts:
            speeds = [facts["voxels"] / facts[key] / 1e6 for key in ("median", "read")]
            ratio = facts["bits"] / usual if usual else "-"
            bits = f"{facts['bits']:.3f}"
            rows.append([name, f"{speeds[0]:.0f}", bits, ratio, f"{speeds[1]:.0f}"])
    print(
        table(["", "written, Mvox/s", "bits a voxel", "x zlib 6", "read, Mvox/s"], rows)
    )
    if "reading a plain TIFF" in results:
        facts = results["reading a plain TIFF"]
        print(
            f"\nreading a plain TIFF: {facts['median'] / facts['numpy']:.2f} of "
            "np.fromfile's time"
        )


if __name__ == "__main__":
    main()
