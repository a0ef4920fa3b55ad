"""Finish: planes that are all there become files, by one process, and their folder goes."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from napari_strata.core.errors import RunError
from napari_strata.core.events import Message
from napari_strata.core.image import Image, LabelImage
from napari_strata.inference.build import PredictOptions
from napari_strata.inference.ledger import PartialOutput
from napari_strata.inference.output import Output
from napari_strata.inference.stack import label_stack, probability_stack
from napari_strata.inference.target import probabilities_path
from napari_strata.inference.task import Subject, Told
from napari_strata.io import read_image, read_labels, write_labels, write_probabilities

Array = np.ndarray[Any, Any]
Results: TypeAlias = tuple[LabelImage, Image | None, Array]
"""Labels, probabilities, and pixels of each class."""


def finish(
    output: Output, subject: Subject, out: Path | None, options: PredictOptions
) -> Results:
    """What a job gives; with `out`, the planes become files and their folder goes."""
    image, classes = subject.image, subject.classes
    planes, *rest = output.arrays()
    labels = label_stack(planes, image, classes=classes)
    probabilities = probability_stack(rest[0], image, classes.names) if rest else None
    pixels = np.sum([output.pixels[i] for i in range(len(planes))], axis=0)
    if out is None:
        return labels, probabilities, pixels
    if (
        probabilities is not None
    ):  # whether they may be replaced was asked before the first plane
        beside = write_probabilities(
            probabilities_path(out), probabilities, overwrite=True
        )
        probabilities = read_image(beside)
    write_labels(out, labels, overwrite=options.overwrite)
    output.remove()
    written = read_labels(out)
    return replace(written, classes=written.classes or classes), probabilities, pixels


def assemble(
    output: PartialOutput,
    subject: Subject,
    options: PredictOptions,
    *,
    told: Told | None = None,
) -> Generator[Message, None, Results | None]:
    """`finish`, of a folder that several processes fill: by one of them, when every plane is there; for the others a
    message says how things stand.

    Parameters
    ----------
    told
        what is said of the part that this process was; None for one that has seen all parts done.

    Raises
    ------
    RunError
        when a plane is no longer what its ledger says.
    """
    try:
        return (yield from _assembled(output, subject, options, told=told))
    except FileNotFoundError:
        if output.folder.exists() or not output.path.exists():
            raise
    # Another process has put the file together meanwhile.
    yield Message(
        f"{told or 'every plane is predicted'}; so is every other, and {output.path} is written"
    )
    return None


def _assembled(
    output: PartialOutput,
    subject: Subject,
    options: PredictOptions,
    *,
    told: Told | None,
) -> Generator[Message, None, Results | None]:
    every, done = range(output.form.planes), told or "every plane is predicted"
    if not output.folder.exists():
        raise FileNotFoundError(output.folder)
    if told and (missing := set(every) - output.named()):
        yield Message(f"{done}; {told.to_come(missing)}")
        return None
    with output.assembling() as other:
        if other:
            yield Message(f"{done}; {output.busy(other)}")
            return None
        output.take_up(every)
        if damaged := [plane for plane in every if plane not in output.pixels]:
            raise RunError(
                f"{output.place}: found {len(damaged)} planes that are not as they were written, the first of them "
                f"{damaged[0] + 1}; run the same without --part or --scheduler to predict them anew."
            )
        return finish(output, subject, output.path, options)
