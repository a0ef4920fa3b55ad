"""The network sections of a recipe, and the base and number ranges that all its sections share; see `recipe`."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from napari_strata.core.errors import RecipeError


class Section(BaseModel):
    """Base of the recipe's parts: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


Fraction: TypeAlias = Annotated[float, Field(ge=0, le=1)]
Share: TypeAlias = Annotated[float, Field(ge=0, lt=1)]
Positive: TypeAlias = Annotated[int, Field(ge=1)]
Rate: TypeAlias = Annotated[float, Field(gt=0)]
Deviations: TypeAlias = Annotated[float, Field(ge=0, le=2)]
Name: TypeAlias = Annotated[
    str,
    BeforeValidator(lambda text: text.strip() if isinstance(text, str) else text),
    Field(min_length=1),
]
Norm: TypeAlias = Literal["none", "batch", "instance", "group"]
Architecture: TypeAlias = Literal[
    "unet", "unetplusplus", "manet", "linknet", "fpn", "pspnet",
    "pan", "deeplabv3", "deeplabv3plus", "upernet", "segformer", "dpt",
]  # fmt: skip
EncoderWeights: TypeAlias = Annotated[
    Name,
    Field(
        description="Where the encoder starts: 'auto' takes ImageNet weights when they can be had and says which it "
        "did, 'imagenet' refuses to start without them, 'none' starts from random numbers, anything else is the path "
        "of a weights file.",
    ),
]


class UNet(Section):
    """The classic U-Net (Ronneberger, Fischer and Brox 2015, https://arxiv.org/abs/1505.04597)."""

    kind: Literal["unet"] = "unet"
    widths: tuple[Positive, ...] = Field(
        (32, 64, 128, 256, 512),
        min_length=2,
        max_length=8,
        description="Channels of each level, the deepest last.",
    )
    norm: Norm = Field("batch", description="Normalisation after each convolution.")
    dropout: Share = Field(
        0.0, description="Share of channels dropped in the deepest level."
    )
    upsampling: Literal["transpose", "nearest", "bilinear"] = Field(
        "transpose",
        description="How the decoder doubles the size: a learned transposed convolution or interpolation.",
    )
    transpose_kernel: Literal[2, 3] = Field(
        2, description="Kernel of the transposed convolution."
    )
    head_width: int | None = Field(
        None,
        ge=1,
        description="Channels of one more 3 x 3 convolution before the last one; none when empty.",
    )


class AtrousUNet(Section):
    """U-Net with a ResNet encoder, a bridge and atrous (dilated) blocks; atrous-resnet50 says where it is from."""

    kind: Literal["atrous_unet"] = "atrous_unet"
    encoder: Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"] = (
        Field("resnet50", description="The ResNet that reads the image.")
    )
    encoder_weights: EncoderWeights = "auto"
    atrous_at: Literal["skip", "decoder"] = Field(
        "skip",
        description="Where the atrous blocks sit: on the skip connections or in the decoder.",
    )
    kernels: tuple[Literal[1, 3, 5, 7], ...] = Field(
        (1, 3, 3, 3), description="Kernel of each parallel convolution."
    )
    dilations: tuple[Positive, ...] = Field(
        (1, 6, 12, 18), description="Dilation of each parallel convolution."
    )
    decoder_widths: tuple[Positive, ...] = Field(
        (1024, 512, 256, 128, 64),
        min_length=5,
        max_length=5,
        description="Channels of the decoder, deepest first.",
    )

    @model_validator(mode="after")
    def _same_length(self) -> AtrousUNet:
        if len(self.kernels) != len(self.dilations):
            raise RecipeError(
                f"network.kernels has {len(self.kernels)} entries and network.dilations {len(self.dilations)}; "
                "each parallel convolution needs one of both."
            )
        return self


class Smp(Section):
    """Any architecture and encoder of segmentation-models-pytorch (https://smp.readthedocs.io)."""

    kind: Literal["smp"] = "smp"
    architecture: Architecture = Field(
        "unet", description="The decoder: how features become labels."
    )
    encoder: Name = Field(
        "resnet34",
        description="The encoder: resnet34, resnet101, vgg11, efficientnet-b0 and hundreds more. Transformers: mit_b0 "
        "with segformer, unet or fpn; tu-vit_base_patch16_224 with dpt.",
    )
    encoder_weights: EncoderWeights = "auto"
    decoder_widths: tuple[Positive, ...] | None = Field(
        None,
        description="Channels of the decoder, deepest first; the architecture's own when empty.",
    )
    attention: Literal["scse"] | None = Field(
        None, description="Attention in the decoder of unet, unetplusplus: scSE."
    )
    norm: Norm = Field("batch", description="Normalisation in the decoder.")
    dropout: Share = Field(
        0.0, description="Dropout before the head, where the architecture has one."
    )


class UNet3d(Section):
    """A residual U-Net for volumes: every convolution sees the slices above and below where the data allow it.

    After Lee et al. 2017 (https://arxiv.org/abs/1706.00120), with strides and kernels along Z that follow the pixel
    size as in nnU-Net (Isensee et al. 2021, https://doi.org/10.1038/s41592-020-01008-z).
    """

    kind: Literal["unet3d"] = "unet3d"
    widths: tuple[Positive, ...] = Field(
        (16, 32, 64, 128),
        min_length=2,
        max_length=7,
        description="Channels of each level, the deepest last.",
    )
    norm: Norm = Field("batch", description="Normalisation after each convolution.")
    dropout: Share = Field(
        0.0, description="Share of channels dropped in the deepest level."
    )
    anisotropy: float | None = Field(
        None,
        gt=0,
        le=100,
        description="How many times larger a voxel is along Z than along Y and X; from the data's pixel size when "
        "empty.",
    )


Network: TypeAlias = Annotated[
    UNet | AtrousUNet | Smp | UNet3d, Field(discriminator="kind")
]
