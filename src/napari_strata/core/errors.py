"""Errors that a user can correct.

Every message says what was found, what is needed and what to do next. The command line
prints the message alone and exits with status 2; the docks show it. Any other exception
is a fault of the program and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class StrataError(Exception):
    """Base of the errors that a user can correct.

    Not a ValueError: pydantic would wrap that in an error that hides the message.
    """


class ImageError(StrataError):
    """An image cannot be read, or its axes are not known."""


class LabelError(StrataError):
    """Labels do not fit their image or the class map."""


class RecipeError(StrataError):
    """A recipe, a key of it or a value cannot be used."""


class ModelError(StrataError):
    """A model file is missing, damaged, not ours, or does not fit the image."""


class RunError(StrataError):
    """A run folder or an output exists already, is missing, or cannot be written."""


class TrainingError(StrataError):
    """Training cannot start or cannot go on."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Return a hint: the known word closest to `word`, or all when none is close."""
    choices = sorted(known)
    close = get_close_matches(word, choices, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known: {', '.join(choices)}"
