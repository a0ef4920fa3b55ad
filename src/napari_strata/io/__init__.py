"""Reading of images and labels, and writing of labels.

No other package knows file formats.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from napari_strata.io.labels import write_image, write_labels, write_probabilities
from napari_strata.io.open import (
    describe,
    label_groups,
    read_classes,
    read_image,
    read_images,
    read_labels,
    read_pyramid,
)

if TYPE_CHECKING:
    from napari_strata.io.dataset import read_pairs

__all__ = [
    "describe",
    "label_groups",
    "read_classes",
    "read_image",
    "read_images",
    "read_labels",
    "read_pairs",
    "read_pyramid",
    "write_image",
    "write_labels",
    "write_probabilities",
]


def __getattr__(name: str) -> Any:
    if name == "read_pairs":
        # `dataset` imports the names above, so it is imported later.
        from napari_strata.io.dataset import read_pairs

        return read_pairs
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
