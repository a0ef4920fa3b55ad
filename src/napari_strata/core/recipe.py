"""Recipe: the user's intent in one frozen value.

It makes the form of the dock, the options of the command line, the argument of
`train()` and the YAML file. Every default of a training is written here and nowhere
else. A recipe knows neither data nor device. Field descriptions are the tooltips and
the help.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import PureWindowsPath
from typing import Annotated, Any, Literal, TypeAlias, get_args

from pydantic import (
    AfterValidator,
    Field,
    ValidationError,
    model_validator,
)

from napari_strata.core.errors import RecipeError, nearest
from napari_strata.core.network_sections import Network, Smp
from napari_strata.core.recipe_errors import describe_mistakes, section_keys
from napari_strata.core.sections import (
    Deviations,
    Fraction,
    Name,
    Positive,
    Rate,
    Section,
    Share,
)


class Patches(Section):
    """Patches that the network sees in training."""

    size: int = Field(
        256, ge=16, le=4096, description="Side of the square patches in pixels."
    )
    depth: int | None = Field(
        None,
        ge=1,
        le=4096,
        description="Planes of a 3D patch; when empty, about as much of the specimen "
        "as size, from the pixel size. "
        "For network.kind unet3d only.",
    )
    per_epoch: int | None = Field(
        None,
        ge=1,
        description="Patches drawn in an epoch; when empty, enough to cover the "
        "labelled planes once, at least 200.",
    )
    balance: Fraction = Field(
        0.5,
        description="Share of patches drawn around a pixel of a class chosen evenly; "
        "the rest anywhere labelled.",
    )
    neighbours: int = Field(
        0,
        ge=0,
        le=8,
        description="Slices above and below that the network sees as more channels "
        "(2.5D); at its ends the stack is "
        "mirrored.",
    )
    resize: int | None = Field(
        None,
        ge=16,
        le=4096,
        description="Resize every plane to this square first, instead of cutting "
        "patches of it.",
    )


class Augmentation(Section):
    """Variation of patches in training. 0 or false switches an item off."""

    flip_horizontal: bool = Field(
        True, description="Mirror left-right in half of the patches (HorizontalFlip)."
    )
    flip_vertical: bool = Field(
        True, description="Mirror top-bottom in half of the patches (VerticalFlip)."
    )
    flip_depth: bool = Field(
        True, description="Mirror front to back in half of the patches; 3D only."
    )
    quarter_turns: bool = Field(True, description="Turn by 0, 90, 180 or 270 degrees.")
    rotation: float = Field(
        0.0, ge=0, le=180, description="Turn by up to this many degrees either way."
    )
    scale: Share = Field(0.0, description="Enlarge or shrink by up to this share.")
    shear: float = Field(
        0.0, ge=0, le=45, description="Shear by up to this many degrees."
    )
    elastic: float = Field(
        0.0, ge=0, le=100, description="Bend smoothly by up to about this many pixels."
    )
    brightness: Deviations = Field(
        0.2,
        description="Shift grey values by up to this many standard deviations. Not for "
        "physical values. "
        "Albumentations' brightness_limit is the same number where grey values go by "
        "dtype; with imagenet take 4.4 "
        "times it.",
    )
    contrast: Share = Field(
        0.2,
        description="Stretch grey values about the patch's mean by up to this share. "
        "Not for physical values. "
        "Albumentations' contrast_limit is the same number, but stretches about black, "
        "which also brightens.",
    )
    gamma: Share = Field(
        0.0,
        description="Bend the grey curve by up to this share. Not for physical values.",
    )
    noise: Deviations = Field(
        0.0, description="Add noise of up to this many standard deviations."
    )
    blur: float = Field(
        0.0, ge=0, le=10, description="Blur with a Gaussian of up to this many pixels."
    )
    probability: Fraction = Field(
        0.5,
        description="Share of patches that each of the above (bar flips and turns) "
        "alters.",
    )


class Normalization(Section):
    """Meaning and scale of grey values."""

    grey_values: Literal["auto", "physical", "relative", "dtype", "imagenet"] = Field(
        "auto",
        description="physical: the number means something (CT), so one scale from the "
        "training images serves all and "
        "grey values are never augmented. relative: exposure varies (fluorescence, EM, "
        "photographs), so each image is "
        "scaled by its own percentiles. dtype: divide by the largest value of the "
        "file's type. imagenet: dtype, then "
        "ImageNet's mean and spread. auto: physical when single-channel training "
        "images agree in grey values, "
        "relative otherwise.",
    )
    percentiles: tuple[float, float] = Field(
        (0.5, 99.5),
        description="Grey values outside these percentiles do not influence the scale.",
    )

    @model_validator(mode="after")
    def _ordered(self) -> Normalization:
        low, high = self.percentiles
        if not 0 <= low < high <= 100:
            raise RecipeError(
                f"normalization.percentiles is ({low:g}, {high:g}); needed are two "
                "rising numbers from 0 to 100."
            )
        return self


class Plateau(Section):
    """Lower the learning rate when validation stops improving."""

    factor: float = Field(
        0.5, gt=0, lt=1, description="Multiply the learning rate by this."
    )
    patience: int = Field(5, ge=0, description="Epochs to wait before that.")
    min_rate: float = Field(1e-6, ge=0, description="Never below this learning rate.")


class EarlyStopping(Section):
    """Stop when validation has not improved for a while; the best weights are kept."""

    monitor: Literal["loss", "iou"] = Field(
        "loss", description="What must improve: validation loss or mean IoU."
    )
    patience: Positive = Field(10, description="Epochs to wait.")


LossName: TypeAlias = Literal["ce", "bce", "dice", "focal", "tversky", "lovasz"]


def _absolute(path: str) -> str:
    """Make a path absolute; a path from Windows stays as it is elsewhere."""
    if PureWindowsPath(path).is_absolute():
        return path
    return os.path.abspath(os.path.expanduser(path))


ModelPath: TypeAlias = Annotated[Name, AfterValidator(_absolute)]


def _share_or_number(value: float) -> float:
    if value >= 1 and value != int(value):
        raise RecipeError(
            f"training.validation is {value:g}; needed is a share below 1, or a whole "
            "number of images."
        )
    return value


Held: TypeAlias = Annotated[float, Field(ge=0), AfterValidator(_share_or_number)]


class Training(Section):
    """Optimisation of the network."""

    epochs: Positive = Field(30, description="Passes over the training patches.")
    batch_size: Positive = Field(8, description="Patches per step.")
    learning_rate: Rate = Field(1e-3, description="Size of the optimiser's steps.")
    optimizer: Literal["adam", "adamw", "sgd"] = Field(
        "adamw", description="The optimiser."
    )
    weight_decay: float = Field(1e-4, ge=0, description="Pull weights towards zero.")
    momentum: Share = Field(0.9, description="Momentum, for sgd.")
    schedule: Literal["constant", "plateau", "cosine", "one_cycle"] = Field(
        "one_cycle", description="How the learning rate changes over the epochs."
    )
    plateau: Plateau = Plateau()
    loss: dict[LossName, Rate] = Field(
        {"ce": 1.0, "dice": 1.0},
        min_length=1,
        description="Losses and their weights; the products are added. There are "
        + ", ".join(get_args(LossName))
        + ".",
    )
    class_weights: Literal["none", "balanced"] | tuple[Rate, ...] = Field(
        "none",
        description="Weight of each class in ce, bce and focal: none, balanced by "
        "frequency, or one number each.",
    )
    focal_gamma: float = Field(
        2.0, ge=0, description="Focus of the focal loss on hard pixels."
    )
    tversky_alpha: Fraction = Field(
        0.3,
        description="Weight of false positives in the Tversky loss; false negatives "
        "get the rest.",
    )
    clip_norm: float | None = Field(
        1.0, gt=0, description="Longest gradient; no limit when empty."
    )
    averaging: float | None = Field(
        0.99,
        gt=0,
        lt=1,
        description="Decay of the averaged weights (EMA) kept beside the raw ones; "
        "none when empty.",
    )
    recalibration: int = Field(
        64,
        ge=0,
        description="Plain patches that batch normalisation is measured on before "
        "validation; 0: never.",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description="Number format of the network's arithmetic; auto takes bf16 where "
        "the device is fast at it.",
    )
    early_stopping: EarlyStopping | None = Field(
        None, description="Stop early; never when empty."
    )
    validation: Held = Field(
        0.2,
        description="Share of images (or slices, or a block) held back for validation "
        "when none are given; from 1 on "
        "their number, such as 250.",
    )
    seed: int = Field(0, ge=0, lt=2**32, description="Start of all random numbers.")
    start: ModelPath | None = Field(
        None,
        title="Start from",
        description="Model or run folder of ours to start from instead of random "
        "numbers or ImageNet; empty for none. "
        "It must have the same network; classes and channels may differ.",
    )
    freeze_encoder: int = Field(
        0,
        ge=0,
        description="Epochs in which the encoder is left as it was, its normalisation "
        "too; 0: none.",
    )


class Recipe(Section):
    """Everything needed to train, except the data."""

    version: Literal[1] = 1
    name: str = "custom"
    description: str = ""
    network: Network = Smp()
    patches: Patches = Patches()
    augmentation: Augmentation = Augmentation()
    normalization: Normalization = Normalization()
    training: Training = Training()

    @model_validator(mode="after")
    def _check_dimensions(self) -> Recipe:
        patches, kind = self.patches, self.network.kind
        if self.network.axes == "YX":
            if patches.depth is not None:
                raise RecipeError(
                    f"patches.depth is {patches.depth}, but network.kind {kind} sees "
                    "single planes; leave it empty (patches.depth=null), or set "
                    "network.kind=unet3d."
                )
            if self.network.is_fitted:
                self._check_fitted()
            return self
        if patches.neighbours:
            raise RecipeError(
                f"patches.neighbours is {patches.neighbours}, but network.kind {kind} "
                "sees whole volumes; set patches.neighbours=0, or take a 2D network."
            )
        if patches.resize is not None:
            raise RecipeError(
                f"patches.resize is {patches.resize}, but network.kind {kind} cuts its "
                "patches of the volume as it is; leave it empty (patches.resize=null), "
                "or take a 2D network."
            )
        return self

    def _check_fitted(self) -> None:
        """Refuse keys that have no meaning where nothing is trained step by step."""
        kind = self.network.kind
        if self.patches.resize is not None:
            raise RecipeError(
                f"patches.resize is {self.patches.resize}, but network.kind {kind} "
                "takes images as they are; leave it empty (patches.resize=null)."
            )
        if self.training.start is not None:
            raise RecipeError(
                f"training.start is {self.training.start}, but network.kind {kind} is "
                "fitted anew in seconds; leave it empty (train without --start)."
            )

    @classmethod
    def parse(cls, raw: Any, *, source: str = "recipe") -> Recipe:
        """Make a recipe from plain data, as read from YAML or JSON.

        Raises
        ------
        RecipeError
            Each wrong key with the nearest right one, and each wrong value with what is
            needed.
        """
        if not isinstance(raw, Mapping):
            raise RecipeError(
                f"{source}: found {type(raw).__name__}; a recipe is a mapping of "
                "sections such as training."
            )
        try:
            return cls.model_validate(raw)
        except ValidationError as error:
            lines = describe_mistakes(error, raw, cls)
            raise RecipeError(
                "\n".join(f"{source}: {line}" for line in lines)
            ) from None

    def with_overrides(self, overrides: Mapping[str, Any] | None) -> Recipe:
        """Return a recipe with dotted keys replaced: ``{"training.epochs": 5}``.

        Another ``network.kind`` starts that network from its defaults.

        Raises
        ------
        RecipeError
            As `parse` does.
        """
        raw = self.model_dump(mode="json")
        remaining = dict(overrides or {})
        if "network.kind" in remaining:
            kind = remaining.pop("network.kind")
            if kind != raw["network"]["kind"]:
                raw["network"] = {}
            raw["network"]["kind"] = kind
        for dotted, value in remaining.items():
            *parents, last = dotted.split(".")
            node = raw
            for part in parents:
                if node.get(part, 0) is None:
                    node[part] = {}
                if not isinstance(node.get(part), dict):
                    raise RecipeError(
                        f"{dotted}: there is no section {part!r} in the recipe; "
                        f"{nearest(part, section_keys(node))}"
                    )
                node = node[part]
            node[last] = value
        return Recipe.parse(raw, source="recipe")


def differences(old: Recipe, new: Recipe) -> list[str]:
    """List the dotted keys, to the second level, at which two recipes differ."""
    before, after = old.model_dump(mode="json"), new.model_dump(mode="json")
    changed_keys = []
    for section, value in after.items():
        if not isinstance(value, dict):
            changed_keys += [section] if value != before[section] else []
            continue
        keys = sorted(value.keys() | before[section].keys())
        changed_keys += [
            f"{section}.{key}"
            for key in keys
            if value.get(key) != before[section].get(key)
        ]
    return changed_keys
