"""Export of images and labels as a data set of nnU-Net, version 2.

Every volume (or single plane) is a case. docs/export.md describes the folder.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from napari_strata.core import files
from napari_strata.core.classes import IGNORE, ClassMap
from napari_strata.core.errors import ImageError, RunError
from napari_strata.core.image import AnnotatedImage, Image, as_pairs
from napari_strata.core.spec import resolve_classes
from napari_strata.data.regions import LabelledRegion
from napari_strata.export.registry import Exported

Array = np.ndarray[Any, Any]

FOLDS = 5
"""Number of folds that nnU-Net trains."""

PLANE_SPACING = 999.0
"""Distance of planes that nnU-Net gives to single planes."""

WRITTEN_DTYPES = ("uint8", "int16", "uint16", "int32", "float32")

_NAME = re.compile(r"Dataset\d{3}_[A-Za-z0-9_-]+")


def export_nnunet(
    pairs: AnnotatedImage | Sequence[AnnotatedImage],
    out: str | Path,
    *,
    classes: ClassMap | None = None,
    unlabelled: Sequence[int] = (),
) -> Exported:
    """Write images and labels as a data set of nnU-Net, version 2.

    The folder appears when it is complete. One volume at a time is in memory.

    Parameters
    ----------
    pairs
        Images and labels, see `read_pairs`.
    out
        Folder to make, ``DatasetNNN_NAME`` as nnU-Net needs it.
    classes
        Meaning of label values. When left out, the labels' own class map, or one class
        per value found.
    unlabelled
        Label values that mean "not labelled". They become nnU-Net's ignore label.

    Raises
    ------
    ImageError, LabelError
        When the images do not have the same channels, cannot be read, or there is no
        label.
    RunError
        When the folder exists, has another name, or cannot be written, or a package is
        missing.
    """
    folder = Path(out).expanduser()
    if not _NAME.fullmatch(folder.name):
        raise RunError(
            f"{folder}: nnU-Net needs a folder name such as Dataset001_Rock "
            "(Dataset, three digits, _ and a name): choose one like it."
        )
    if folder.exists():
        raise RunError(f"{folder}: exists already; choose another name or remove it.")
    if find_spec("nibabel") is None:
        raise RunError(
            f"{folder}: cannot be written without the package nibabel; run pip install "
            '"napari-strata[formats]".'
        )
    import nibabel

    pairs = as_pairs(pairs)
    channels = _channel_names(pairs)
    classes = resolve_classes(pairs, classes, unlabelled)
    groups: list[list[str]] = []
    labels_missing = False
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=f".{folder.name}-", dir=folder.parent
        ) as parent:
            temporary = Path(parent) / folder.name
            for name in ("imagesTr", "labelsTr"):
                (temporary / name).mkdir(parents=True)
            for number, pair in enumerate(pairs, 1):
                cases = []
                for region in _whole_regions(pair):
                    case = f"image_{number:04d}"
                    if "T" in region.index:
                        case += f"_t{region.index['T']:04d}"
                    indices = _write_case(nibabel, temporary, case, region, classes)
                    labels_missing |= bool((indices == len(classes)).any())
                    cases.append(case)
                groups.append(cases)
            count = sum(map(len, groups))
            description = {
                "channel_names": channels,
                "labels": _labels(classes, ignore=labels_missing),
                "numTraining": count,
                "file_ending": ".nii.gz",
                "napari_strata": {
                    "classes": classes.table(),
                    "pixel_unit": pairs[0].image.pixel_unit,
                    "images": [pair.name for pair in pairs],
                },
            }
            _write_json(temporary / "dataset.json", description)
            splits = make_splits(groups)
            if splits:
                _write_json(temporary / "splits_final.json", splits)
            os.replace(temporary, folder)
    except OSError as error:
        raise files.explain(error, folder) from error
    return Exported(folder, tuple(_notes(count, classes, labels_missing, splits)))


def make_splits(groups: Sequence[Sequence[str]]) -> list[dict[str, list[str]]]:
    """Distribute images over folds, so that the cases of one stay together.

    Parameters
    ----------
    groups
        Cases of each image.

    Returns
    -------
    list of dict
        Cases to train and to validate on, by ``train`` and ``val``; empty for a single
        image.
    """
    if len(groups) < 2:
        return []
    folds = min(FOLDS, len(groups))
    splits = []
    for fold in range(folds):
        split: dict[str, list[str]] = {"train": [], "val": []}
        for number, cases in enumerate(groups):
            split["val" if number % folds == fold else "train"].extend(cases)
        splits.append(split)
    return splits


def _channel_names(pairs: Sequence[AnnotatedImage]) -> dict[str, str]:
    """Name the channels by their number; all images must have as many."""
    counts = sorted({pair.image.channels for pair in pairs})
    if len(counts) != 1:
        raise ImageError(
            f"found images of {', '.join(map(str, counts))} channels; nnU-Net needs "
            "the same channels in all images: leave the others out."
        )
    names = pairs[0].image.channel_names
    if len(names) != counts[0]:
        names = tuple(f"channel {number}" for number in range(counts[0]))
    return {str(number): name for number, name in enumerate(names)}


def _whole_regions(pair: AnnotatedImage) -> list[LabelledRegion]:
    """List the volumes of a pair, or its single planes, one for each time point."""
    axes = "ZYX" if pair.image.size("Z") > 1 else "YX"
    box = (slice(None),) * len(axes)
    return [
        LabelledRegion(pair, index, box, pair.name)
        for index in pair.image.regions(axes)
    ]


def _write_case(
    nibabel: Any, folder: Path, case: str, region: LabelledRegion, classes: ClassMap
) -> Array:
    """Write an image and its labels; return the values of the labels.

    Unlabelled pixels have the value after the last class, which nnU-Net needs for its
    ignore label.
    """
    image, indices = region.read(classes)
    labels = np.where(indices == IGNORE, len(classes), indices).astype(np.uint8)
    spacing = _spacing(region.pair.image)
    for number, values in enumerate(image):
        path = folder / "imagesTr" / f"{case}_{number:04d}.nii.gz"
        _write_nifti(nibabel, path, _writable(values), spacing)
    _write_nifti(nibabel, folder / "labelsTr" / f"{case}.nii.gz", labels, spacing)
    return labels


def _writable(values: Array) -> Array:
    """Convert to a dtype that nnU-Net reads; values that are not finite become 0."""
    if values.dtype.kind == "f":
        return np.nan_to_num(values, posinf=0, neginf=0).astype(np.float32)
    if values.dtype.kind == "b":
        return values.astype(np.uint8)
    for name in WRITTEN_DTYPES:
        if np.can_cast(values.dtype, name):
            return values.astype(name)
    return values.astype(np.float32)


def _spacing(image: Image) -> tuple[float, float, float]:
    """Return the pixel size along X, Y and Z."""
    size = image.pixel_size
    depth = size.get("Z", 1.0) if image.size("Z") > 1 else PLANE_SPACING
    return size["X"], size["Y"], depth


def _write_nifti(
    nibabel: Any, path: Path, values: Array, spacing: tuple[float, float, float]
) -> None:
    """Write a plane (Y, X) or volume (Z, Y, X); NIfTI's order is X, Y, Z."""
    volume = values if values.ndim == 3 else values[None]
    affine = np.diag([*spacing, 1.0])
    nibabel.save(nibabel.Nifti1Image(volume.T, affine), path)


def _labels(classes: ClassMap, *, ignore: bool) -> dict[str, int]:
    """Return label values by name; nnU-Net needs one called background, which is 0."""
    labels = {"background": 0}
    for index, name in enumerate(classes.names[1:], 1):
        taken = name in labels or name == "ignore"
        labels[f"{name} ({index})" if taken else name] = index
    if ignore:
        labels["ignore"] = len(classes)
    return labels


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")


def _notes(
    count: int, classes: ClassMap, ignore: bool, splits: Sequence[Any]
) -> list[str]:
    notes = [f"{count} case{'s' * (count > 1)}, {len(classes)} classes"]
    if classes.names[0] != "background":
        notes.append(
            f"class {classes.names[0]!r} is called background there, as nnU-Net needs "
            "one; its scores leave it out"
        )
    if ignore:
        notes.append(f"unlabelled pixels have nnU-Net's ignore label, {len(classes)}")
    if splits:
        notes.append(
            f"{len(splits)} folds that keep images together: copy splits_final.json "
            "to the folder of this data set in nnUNet_preprocessed after planning"
        )
    else:
        notes.append("found a single image, which has no folds: train fold all")
    return notes
