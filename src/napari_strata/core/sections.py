"""Base of a recipe's sections, and the number ranges that they share."""

from __future__ import annotations

from typing import Annotated, TypeAlias, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.fields import FieldInfo


class Section(BaseModel):
    """Base of a recipe's sections: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def section_of(info: FieldInfo) -> type[Section] | None:
    """Return the section class that a field holds; None for a plain value."""
    for annotation in (info.annotation, *get_args(info.annotation)):
        if isinstance(annotation, type) and issubclass(annotation, Section):
            return annotation
    return None


def _strip(text: object) -> object:
    return text.strip() if isinstance(text, str) else text


Fraction: TypeAlias = Annotated[float, Field(ge=0, le=1)]
Share: TypeAlias = Annotated[float, Field(ge=0, lt=1)]
Positive: TypeAlias = Annotated[int, Field(ge=1)]
Rate: TypeAlias = Annotated[float, Field(gt=0)]
Deviations: TypeAlias = Annotated[float, Field(ge=0, le=2)]
Name: TypeAlias = Annotated[str, BeforeValidator(_strip), Field(min_length=1)]
