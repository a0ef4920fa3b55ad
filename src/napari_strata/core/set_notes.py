"""Sentences about files of one set that are not like the others."""

from __future__ import annotations

from collections.abc import Sequence

from napari_strata.core.image import AnnotatedImage, Image

_NAMED = 6
"""Names that a sentence lists."""


def set_notes(pairs: Sequence[AnnotatedImage]) -> list[str]:
    """Describe notes on label files, and images or labels that differ from the others.

    Compared are the notes of the readers (on photometric interpretation, orientation,
    pixels without data), dtypes and units.
    """
    images = [pair.image for pair in pairs]
    labels = [pair.labels for pair in pairs]
    sentences = []
    for note, names in _by_note(images).items():
        if len(names) < len(images):
            sentences.append(f"images differ: {note} ({_listed(names, len(images))})")
    for note, names in _by_note(labels).items():
        where = names[0] if len(labels) == 1 else _listed(names, len(labels))
        sentences.append(f"labels: {note} ({where})")
    for role, group in (("images", images), ("labels", labels)):
        sentences += _differences(role, group)
    return sentences


def _by_note(images: Sequence[Image]) -> dict[str, list[str]]:
    notes: dict[str, list[str]] = {}
    for image in images:
        for note in image.notes:
            if (
                "as one stack along" in note
            ):  # of a folder of slices: all have their own
                continue
            notes.setdefault(note, []).append(image.name)
    return notes


def _differences(role: str, images: Sequence[Image]) -> list[str]:
    """Describe the dtypes and units of a set if there are several of them."""
    sentences = []
    dtypes = [str(image.dtype) for image in images]
    units = [image.pixel_unit for image in images]
    for what, values in (("dtypes", dtypes), ("units", units)):
        groups: dict[str, list[str]] = {}
        for value, image in zip(values, images, strict=True):
            groups.setdefault(value, []).append(image.name)
        if len(groups) > 1:
            parts = [f"{value}: {_listed(n, None)}" for value, n in groups.items()]
            sentences.append(f"{role} differ: {what} {'; '.join(parts)}")
    return sentences


def _listed(names: Sequence[str], total: int | None) -> str:
    shown = ", ".join(names[:_NAMED])
    if len(names) > _NAMED:
        shown = f"{shown} and {len(names) - _NAMED} more"
    return shown if total is None else f"{len(names)} of {total}: {shown}"
