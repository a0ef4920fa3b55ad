"""Read files that were damaged at random, and count what goes wrong.

``python benchmarks/fuzz.py --minutes 10 --seed 1``

Small files of every format are written, bytes of them are changed, and the result is
read in a process of its own. A file may be refused by a `StrataError`, or be read; then
the pixels are those that tifffile or Pillow reads. Everything else is a fault: another
exception, a hang over 10 s, more than 1 GB, or other pixels.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import mrcfile
import nibabel
import nrrd
import numpy as np
import PIL.Image
import tifffile
import zarr

from napari_strata.core.errors import StrataError
from napari_strata.core.image import LabelImage
from napari_strata.io import describe, read_image, read_labels, read_pairs, write_labels
from napari_strata.io.tiff import load
from napari_strata.plugin import get_reader

HANG_S = 10
MEMORY_BYTES = 2**30
INTERESTING = (0, 1, 2, 127, 128, 255, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)
WORDS = (b"0", b"-1", b"1e999", b"NaN", b"null", b"[]", b"{}", b'""', b"9" * 30)


def write_seeds(folder: Path) -> list[Path]:
    """Write a small file of each kind; return their paths."""
    rng = np.random.default_rng(0)
    stack = rng.integers(0, 250, (4, 24, 32)).astype("uint8")
    wide = stack.astype("uint16") * 200
    grey: dict[str, Any] = {"photometric": "minisblack"}
    tifffile.imwrite(folder / "shaped.tif", wide, **grey)
    metadata = {"axes": "ZYX", "unit": "um", "spacing": 2.0}
    tifffile.imwrite(folder / "imagej.tif", wide, imagej=True, metadata=metadata)
    sizes = {"axes": "ZYX", "PhysicalSizeX": 0.5, "Channel": {"Name": ["a"]}}
    tifffile.imwrite(folder / "ome.ome.tif", wide, metadata=sizes, **grey)
    for name, options in {
        "tiles": {"tile": (16, 16), "compression": "zlib"},
        "lzw": {"compression": "lzw", "predictor": 2, "rowsperstrip": 5},
        "big": {"bigtiff": True, "compression": "zstd"},
    }.items():
        tifffile.imwrite(folder / f"{name}.tif", wide, metadata=None, **grey, **options)
    tifffile.imwrite(folder / "jpeg.tif", stack[0], compression="jpeg", metadata=None)
    tags = [(42113, "s", 0, "7", True), (274, "H", 1, 6, True)]
    tifffile.imwrite(folder / "tags.tif", stack[0], extratags=tags, metadata=None)
    labels = LabelImage(stack // 100, "ZYX")
    write_labels(folder / "labels.tif", labels)
    write_labels(folder / "labels.zarr", labels)
    for name, array in (("grey", stack[0]), ("rgb", np.dstack([stack[0]] * 3))):
        PIL.Image.fromarray(array).save(folder / f"{name}.png")
        PIL.Image.fromarray(array).save(folder / f"{name}.jpg")
    group = zarr.open_group(folder / "ngff.zarr", mode="w", zarr_format=2)
    group.create_array("0", shape=wide.shape, dtype="u2", chunks=(1, 16, 16))[:] = wide
    axes = [{"name": name, "type": "space", "unit": "micrometer"} for name in "zyx"]
    steps = [{"type": "scale", "scale": [2, 0.5, 0.5]}]
    datasets = [{"path": "0", "coordinateTransformations": steps}]
    group.attrs.update({"multiscales": [{"axes": axes, "datasets": datasets}]})
    with h5py.File(folder / "dataset.h5", "w") as file:
        dataset = file.create_dataset("raw", data=wide, compression="gzip")
        dataset.attrs["element_size_um"] = (2, 0.5, 0.5)
    for encoding in ("raw", "gzip"):
        header = {"encoding": encoding, "spacings": [0.5, 0.5, 2]}
        nrrd.write(str(folder / f"{encoding}.nrrd"), wide.T, header)
    image = nibabel.Nifti1Image(wide.T, np.eye(4))
    for name in ("image.nii", "image.nii.gz"):
        nibabel.save(image, folder / name)
    with mrcfile.new(folder / "tomogram.mrc") as mrc:
        mrc.set_data(wide)
    (folder / "pairs.csv").write_text("image,label\ngrey.png,rgb.png\n")
    return sorted(path for path in folder.iterdir())


def mutate(content: bytes, rng: random.Random) -> bytes:
    """Change some bytes of a file."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        if not data:
            break
        # Headers are more interesting than pixels.
        end = len(data) if rng.random() < 0.5 else min(len(data), 400)
        place = rng.randrange(end)
        match rng.choice((0, 0, 0, 0, 1, 1, 1, 2, 3, 4, 5)):
            case 0:
                data[place] ^= 1 << rng.randrange(8)
            case 1:
                width = rng.choice((1, 2, 4))
                value = rng.choice(INTERESTING) & (256**width - 1)
                data[place : place + width] = value.to_bytes(
                    width, rng.choice(("little", "big"))
                )
            case 2:
                del data[place:]
            case 3:
                del data[place : place + rng.randrange(1, 9)]
            case 4:
                data[place:place] = rng.choice(WORDS)
            case _:
                start = rng.randrange(len(data))
                data[place : place + 8] = data[start : start + 8]
    return bytes(data)


def damaged(seed: Path, target: Path, rng: random.Random) -> Path:
    """Write a damaged copy of a file or of a store."""
    if seed.is_dir():
        shutil.copytree(seed, target)
        files = sorted(path for path in target.rglob("*") if path.is_file())
        metadata = [path for path in files if path.name.startswith((".z", "zarr"))]
        file = rng.choice(metadata if rng.random() < 0.8 else files)
        file.write_bytes(mutate(file.read_bytes(), rng))
        return target
    target.write_bytes(mutate(seed.read_bytes(), rng))
    return target


def check(path: Path) -> str:
    """Read a file in every way; return "read" or "refused".

    Raises
    ------
    AssertionError
        When pixels differ from those of tifffile or Pillow.
    """
    get_reader(str(path))
    outcome = "read"
    functions: list[Callable[[Path], Any]] = [describe, read_labels]
    if path.suffix == ".csv":
        functions = [read_pairs]
    for function in functions:
        try:
            function(path)
        except StrataError:
            outcome = "refused"
    if path.suffix == ".csv":
        return outcome
    try:
        image = read_image(path)
        pixels = np.asarray(image.data)
    except StrataError:
        return "refused"
    if path.suffix == ".tif":
        lazy = np.asarray(load(path, lazy_above=0)[0].data)
        np.testing.assert_array_equal(pixels, lazy)
    notes = " ".join(image.notes)
    if "no data" in notes or "upright" in notes or "alpha" in notes:
        return outcome
    if path.suffix == ".tif":
        expected = tifffile.imread(path)
    elif path.suffix in (".png", ".jpg"):
        with PIL.Image.open(path) as picture:
            expected = np.asarray(picture)
    else:
        return outcome
    if expected.size == pixels.size:
        np.testing.assert_array_equal(pixels.ravel(), expected.ravel())
    return outcome


def inputs(folder: Path, seed: int) -> Iterator[Path]:
    """Write damaged files one after another, always the same for a seed."""
    originals = folder / "seeds"
    originals.mkdir()
    seeds = write_seeds(originals)
    rng = random.Random(seed)
    number = 0
    while True:
        original = seeds[number % len(seeds)]
        name = f"{number}{''.join(original.suffixes)}"
        yield damaged(original, folder / name, rng)
        number += 1


def _work(connection: Any) -> None:
    import resource

    connection.send("ready")
    while True:
        path = connection.recv()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            outcome = check(Path(path))
        except BaseException as error:  # every one is a fault
            outcome = f"{type(error).__name__}: {str(error)[:200]}"
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        connection.send((outcome, (after - before) * 1024))


class _Child:
    """Process that reads files; it is started again after a hang or a crash."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process = context.Process(target=_work, args=(other,), daemon=True)
        self.process.start()
        self.connection.recv()  # when everything is imported

    def check(self, path: Path) -> str:
        self.connection.send(str(path))
        end = time.monotonic() + HANG_S
        while not self.connection.poll(0.2):
            if not self.process.is_alive():
                return f"crash {self.process.exitcode}"
            if time.monotonic() > end:
                self.process.kill()
                return "hang"
        try:
            outcome, growth = self.connection.recv()
        except EOFError:
            self.process.join()
            return f"crash {self.process.exitcode}"
        return "memory" if growth > MEMORY_BYTES else str(outcome)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for the inputs with faults")
    options = parser.parse_args()
    end = time.monotonic() + 60 * options.minutes
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        child = _Child()
        for path in inputs(Path(name), options.seed):
            outcome = child.check(path)
            kind = outcome.split(":")[0]
            counts[kind] += 1
            if kind not in ("read", "refused"):
                print(f"{path.name}: {outcome}", flush=True)
                if options.keep:
                    options.keep.mkdir(parents=True, exist_ok=True)
                    os.replace(path, options.keep / path.name)
                if kind in ("hang", "memory") or kind.startswith("crash"):
                    child.process.kill()
                    child = _Child()
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
            if time.monotonic() > end:
                break
        child.process.kill()
    print(json.dumps({"inputs": counts.total(), **counts}))


if __name__ == "__main__":
    main()
