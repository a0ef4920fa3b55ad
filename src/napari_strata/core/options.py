"""Options of a prediction, declared once: fields, defaults, descriptions.

The Python API, the command line, requests to the worker, estimates, Dask tasks and
batches use this class. The model says what is predicted; the options say how.
"""

from __future__ import annotations

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from napari_strata.core.errors import RunError


class PredictOptions(BaseModel):
    """Options of a prediction, each with a default and a description."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps.")
    probabilities: bool = Field(
        False, description="Also write the probability of each class."
    )
    overwrite: bool = Field(False, description="Replace files that exist.")
    batch: int | None = Field(
        None,
        description="Tiles at a time; as many as make a modest batch when empty.",
    )
    precision: str = Field("auto", description="auto, fp32, bf16, fp16.")
    tile: int | None = Field(
        None,
        description="Side of the tiles in pixels, where the model's own do not fit "
        "into memory.",
    )
    tta: bool = Field(
        False, description="Average over flips and turns (8 times the work)."
    )
    ortho: bool = Field(
        False,
        description="Average over XY, XZ and YZ planes of a volume (3 times the work).",
    )
    backend: str = Field(
        "torch",
        description="torch; or onnx, openvino: CPU, extras of these names.",
    )
    compile: bool = Field(
        False,
        description="Let torch.compile make kernels first; pays for large stacks on a "
        "GPU.",
    )

    strict: bool = Field(
        False,
        description="Refuse images whose grey values hardly occur in the training "
        "images.",
    )

    @field_validator("batch", "tile")
    @classmethod
    def _check_positive(cls, value: int | None, info: Any) -> int | None:
        if value is not None and value < 1:
            raise RunError(
                f"found {info.field_name}={value}; needed is 1 or more, or nothing to "
                "have it chosen."
            )
        return value

    @model_validator(mode="after")
    def _check_compile(self) -> Self:
        if self.compile and self.backend != "torch":
            raise RunError(
                f"found backend {self.backend!r} with compile; torch.compile is for "
                "backend torch only."
            )
        return self

    def updated(self, **changes: Any) -> PredictOptions:
        """Options in which some fields are changed.

        Raises
        ------
        TypeError
            when there is no option of that name.
        """
        for name in changes:
            if name not in PredictOptions.model_fields:
                raise TypeError(f"unexpected keyword argument {name!r}")
        values = {name: getattr(self, name) for name in PredictOptions.model_fields}
        return PredictOptions(**(values | changes))

    def identity(self) -> dict[str, Any]:
        """Options that change labels or files, named as messages name them.

        Planes of an interrupted prediction count only where these are the same. An
        option that is added here appears only when it is not at its default, so that
        predictions that an earlier version started can continue.
        """
        values: dict[str, Any] = {
            "backend": self.backend,
            "choice of torch.compile": self.compile,
            "request for probabilities": self.probabilities,
            "choice of flips and turns": self.tta,
        }
        if self.ortho:
            values["choice of three views"] = True
        return values
