"""Sentences about files that are not like the others of their set."""

from __future__ import annotations

import numpy as np

from napari_strata.core.image import AnnotatedImage, Image, LabelImage
from napari_strata.core.set_notes import set_notes

WHITE = "the file has 0 as white"


def pair(
    name: str, *, notes: tuple[str, ...] = (), dtype: str = "uint8"
) -> AnnotatedImage:
    image = Image(np.zeros((4, 4), dtype), name=name)
    labels = LabelImage(np.zeros((4, 4), "uint8"), name=f"{name} mask", notes=notes)
    return AnnotatedImage(image, labels)


def test_label_files_that_differ_are_named() -> None:
    pairs = [pair("a", notes=(WHITE,)), pair("b"), pair("c", notes=(WHITE,))]
    assert set_notes(pairs) == [f"labels: {WHITE} (2 of 3: a mask, c mask)"]
    assert set_notes([pair("b"), pair("d")]) == []


def test_images_of_another_depth_are_named() -> None:
    (sentence,) = set_notes([pair("a"), pair("b", dtype="uint16"), pair("c")])
    assert sentence == "images differ: dtypes uint8: a, c; uint16: b"
