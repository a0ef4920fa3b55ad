"""Network sections of a recipe, one class per network kind, and their registry.

A section holds the options of a network kind and the facts that do not need torch:
its geometry, its halo and the name of its builder.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from math import prod
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    Protocol,
    TypeAlias,
    TypeVar,
    runtime_checkable,
)

from pydantic import BeforeValidator, Field, SerializeAsAny, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError, ValidationError

from napari_strata.core.errors import RecipeError
from napari_strata.core.geometry import (
    Geometry,
    depth_kernels,
    depth_strides,
    octave_reach,
    reach_3d,
)
from napari_strata.core.sections import Fraction, Name, Positive, Section, Share

Norm: TypeAlias = Literal["none", "batch", "instance", "group"]
Architecture: TypeAlias = Literal[
    "unet", "unetplusplus", "manet", "linknet", "fpn", "pspnet",
    "pan", "deeplabv3", "deeplabv3plus", "upernet", "segformer", "dpt",
]  # fmt: skip
EncoderWeights: TypeAlias = Annotated[
    Name,
    Field(
        description=(
            "Where the encoder starts: 'auto' takes ImageNet weights when they can be"
            " had and says which it did, 'imagenet' refuses to start without them,"
            " 'none' starts from random numbers, anything else is the path of a weights"
            " file."
        ),
    ),
]


class NetworkSection(Section, ABC):
    """Base of the network sections.

    A new network kind derives from it, names its `kind` and `builder`, and is
    registered with `register_network`.
    """

    kind: str
    builder: ClassVar[str]
    """Function that builds the network, as ``package.module:function``.

    It is called with the `ModelSpec` and the section, and returns a torch module with
    random weights. The module has an attribute `encoder`, which can be frozen, and the
    convolution that gives the logits lies in its `head`.
    """
    widest_halo: ClassVar[int]
    """Largest halo of a prediction tile along Y and X, in pixels."""
    axes: ClassVar[Literal["YX", "ZYX"]] = "YX"
    """Axes of what the network sees at a time: a plane or a volume."""
    is_fitted: ClassVar[bool] = False
    """True for a kind that is fitted at once instead of trained in epochs.

    It has a fit in `training.fit` and a predictor, but no builder.
    """

    @abstractmethod
    def geometry(self, strides: Sequence[int] = ()) -> Geometry:
        """Return the sizes that the network needs and how far it sees.

        Parameters
        ----------
        strides
            Strides of a 3D network along Z, one for each halving of Y and X. When
            empty, Z is halved together with Y and X.
        """

    @abstractmethod
    def describe(self) -> str:
        """Return the network in words, such as ``a U-Net of widths 16, 32``."""

    def stated_anisotropy(self) -> float | None:
        """Return the anisotropy of voxels that the section states, or None.

        For 3D networks only.
        """
        return None

    def depth_strides(self, anisotropy: float) -> tuple[int, ...]:
        """Return the strides along Z for voxels of this anisotropy; only for 3D."""
        raise NotImplementedError


@runtime_checkable
class EncoderSection(Protocol):
    """Network section whose encoder can start from pretrained weights."""

    @property
    def encoder(self) -> str: ...
    @property
    def encoder_weights(self) -> str: ...


_NETWORKS: dict[str, type[NetworkSection]] = {}

NetworkKind = TypeVar("NetworkKind", bound=NetworkSection)


def register_network(section: type[NetworkKind]) -> type[NetworkKind]:
    """Make a network kind known to recipes and models. Use it as a class decorator."""
    _NETWORKS[section.model_fields["kind"].default] = section
    return section


def network_kinds() -> Mapping[str, type[NetworkSection]]:
    """Registered network sections by kind, in the order of their registration."""
    return _NETWORKS


@register_network
class UNet(NetworkSection):
    """The classic U-Net.

    Ronneberger, Fischer and Brox 2015, https://arxiv.org/abs/1505.04597.
    """

    builder: ClassVar[str] = "napari_strata.networks.unet:build_unet"
    widest_halo: ClassVar[int] = 64
    # Measured on trained networks (docs/performance.md): with 32 pixels the labels
    # differ from those of the whole picture in .0005 %, with 64 in none.

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
        description=(
            "How the decoder doubles the size: a learned transposed "
            "convolution or interpolation."
        ),
    )
    transpose_kernel: Literal[2, 3] = Field(
        2, description="Kernel of the transposed convolution."
    )
    head_width: int | None = Field(
        None,
        ge=1,
        description=(
            "Channels of one more 3 x 3 convolution before the last one; none "
            "when empty."
        ),
    )

    def geometry(self, strides: Sequence[int] = ()) -> Geometry:
        deepest_stride = 2 ** (len(self.widths) - 1)
        encoder = 2 * (2 * deepest_stride - 1)
        decoder = 2 * (deepest_stride - 1)
        head = 1 if self.head_width is not None else 0
        # Measured on float64 gradients: pooling reaches a pixel of each level, so does
        # a kernel of 3 or an interpolation's convolution on the way up, and bilinear
        # interpolation itself does once more.
        resamplings = 2
        if self.upsampling == "bilinear":
            resamplings = 3
        elif self.upsampling == "transpose" and self.transpose_kernel == 2:
            resamplings = 1
        resampling = resamplings * (deepest_stride - 1)
        return Geometry(
            stride=deepest_stride,
            reach=encoder + decoder + head + resampling,
            whole_tile=self.norm in ("instance", "group"),
        )

    def describe(self) -> str:
        return f"a U-Net of widths {', '.join(map(str, self.widths))}"


# Measured on trained networks (docs/performance.md), for encoders that shrink the
# picture 32 times: with 32 pixels labels differ from those of the whole picture in up
# to .7 %, with 160 in .02 to .04 %.
ENCODER_HALO = 160


@register_network
class AtrousUNet(NetworkSection):
    """U-Net with a ResNet encoder, a bridge and atrous (dilated) blocks.

    The recipe atrous-resnet50 says where it is from.
    """

    builder: ClassVar[str] = "napari_strata.networks.atrous:build_atrous_unet"
    widest_halo: ClassVar[int] = ENCODER_HALO

    kind: Literal["atrous_unet"] = "atrous_unet"
    encoder: Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"] = (
        Field("resnet50", description="The ResNet that reads the image.")
    )
    encoder_weights: EncoderWeights = "auto"
    atrous_at: Literal["skip", "decoder"] = Field(
        "skip",
        description=(
            "Where the atrous blocks sit: on the skip connections or in the decoder."
        ),
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
    def _check_lengths(self) -> AtrousUNet:
        if len(self.kernels) != len(self.dilations):
            raise RecipeError(
                f"network.kernels has {len(self.kernels)} entries and "
                f"network.dilations {len(self.dilations)}; each parallel convolution "
                "needs one of both."
            )
        return self

    def geometry(self, strides: Sequence[int] = ()) -> Geometry:
        return Geometry(stride=32, reach=512, whole_tile=False)

    def describe(self) -> str:
        return f"an atrous U-Net on {self.encoder}"


@register_network
class Smp(NetworkSection):
    """Any architecture and encoder of segmentation-models-pytorch.

    See https://smp.readthedocs.io.
    """

    builder: ClassVar[str] = "napari_strata.networks.smp:build_smp"
    widest_halo: ClassVar[int] = ENCODER_HALO

    kind: Literal["smp"] = "smp"
    architecture: Architecture = Field(
        "unet", description="The decoder: how features become labels."
    )
    encoder: Name = Field(
        "resnet34",
        description=(
            "The encoder: resnet34, resnet101, vgg11, efficientnet-b0 and "
            "hundreds more. Transformers: mit_b0 with segformer, unet or fpn; "
            "tu-vit_base_patch16_224 with dpt."
        ),
    )
    encoder_weights: EncoderWeights = "auto"
    decoder_widths: tuple[Positive, ...] | None = Field(
        None,
        description=(
            "Channels of the decoder, deepest first; the architecture's own when empty."
        ),
    )
    attention: Literal["scse"] | None = Field(
        None, description="Attention in the decoder of unet, unetplusplus: scSE."
    )
    norm: Norm = Field("batch", description="Normalisation in the decoder.")
    dropout: Share = Field(
        0.0, description="Dropout before the head, where the architecture has one."
    )

    def geometry(self, strides: Sequence[int] = ()) -> Geometry:
        # Measured by moving a far pixel: global pooling, manet's attention and fpn's
        # group norm see everything. So do encoders that squeeze and excite or attend;
        # timm's (tu-) may, and are assumed to.
        whole_tile = (
            self.architecture in _WHOLE_TILE_ARCHITECTURES
            or self.attention == "scse"
            or self.norm in ("instance", "group")
            or self.encoder.startswith(_WHOLE_TILE_ENCODERS)
        )
        return Geometry(stride=32, reach=256, whole_tile=whole_tile)

    def describe(self) -> str:
        return (
            f"a network of architecture {self.architecture} on encoder {self.encoder}"
        )


_WHOLE_TILE_ARCHITECTURES = (
    "deeplabv3",
    "deeplabv3plus",
    "pspnet",
    "pan",
    "upernet",
    "dpt",
    "manet",
    "fpn",
)
_WHOLE_TILE_ENCODERS = (
    "efficientnet",
    "timm-efficientnet",
    "timm-sk",
    "se",
    "mit_",
    "tu-",
    "mobileone_s4",
)
"""Beginnings of the names of encoders."""


@register_network
class UNet3d(NetworkSection):
    """A residual U-Net for volumes.

    Every convolution sees the slices above and below where the data allow it. After
    Lee et al. 2017 (https://arxiv.org/abs/1706.00120), with strides and kernels along Z
    that follow the pixel size as in nnU-Net (Isensee et al. 2021,
    https://doi.org/10.1038/s41592-020-01008-z).
    """

    builder: ClassVar[str] = "napari_strata.networks.unet3d:build_unet3d"
    widest_halo: ClassVar[int] = 24
    # Measured on networks trained on light-sheet nuclei (100 x 100 x 100, and every
    # fourth plane of it) in tiles that keep 56 voxels: labels differ from those of the
    # whole volume in 1.4 and 1.7 % without a halo, .14 % with 16, .02 % with 24 and
    # .001 % with 32.
    axes: ClassVar[Literal["YX", "ZYX"]] = "ZYX"

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
        description=(
            "How many times larger a voxel is along Z than along Y and X; from "
            "the data's pixel size when empty."
        ),
    )

    def geometry(self, strides: Sequence[int] = ()) -> Geometry:
        levels = len(self.widths)
        plane_strides = (2,) * (levels - 1)
        strides = tuple(strides) or plane_strides
        return Geometry(
            stride=prod(plane_strides),
            reach=reach_3d(plane_strides, (3,) * levels),
            whole_tile=self.norm in ("instance", "group"),
            depth_stride=prod(strides),
            depth_reach=reach_3d(strides, depth_kernels(strides)),
        )

    def describe(self) -> str:
        return f"a 3D U-Net of widths {', '.join(map(str, self.widths))}"

    def stated_anisotropy(self) -> float | None:
        return self.anisotropy

    def depth_strides(self, anisotropy: float) -> tuple[int, ...]:
        return depth_strides(len(self.widths), anisotropy)


@register_network
class Pixels(NetworkSection):
    """A classifier of single pixels: trees on fixed features of the image.

    The features and the trees are those of `models.pixels`. It takes seconds to fit, on
    a CPU, and is made for strokes.
    """

    builder: ClassVar[str] = ""
    widest_halo: ClassVar[int] = 512  # as far as it sees, at most
    is_fitted: ClassVar[bool] = True

    kind: Literal["pixels"] = "pixels"
    levels: int | None = Field(
        None,
        ge=1,
        le=6,
        description="Octave levels of the features, from fine to coarse; when empty,"
        " 2, 3 or 5, whichever tells held-out strokes best.",
    )
    method: Literal["extra_trees", "boosting"] = Field(
        "extra_trees",
        description="extra_trees: the mean of random trees, for strokes. boosting: each"
        " tree corrects those before it; more accurate for dense labels, and slower.",
    )
    learning_rate: Fraction = Field(
        0.15, description="Share of a tree's correction that is added, for boosting."
    )
    trees: Positive = Field(100, description="Number of trees.")
    depth: int = Field(
        10, ge=1, le=14, description="Splits on the way to a leaf of a tree."
    )
    tests: Positive = Field(
        32, description="Random splits among which each split is chosen."
    )
    pixels: Positive = Field(
        50_000,
        description="Labelled pixels that it is fitted on at most, evenly drawn.",
    )
    filter_radius: int | None = Field(
        None,
        ge=0,
        le=32,
        description="Radius of the guided filter that moves probabilities to the"
        " edges of the image, in pixels; 0: none. When empty, 4, or 2 where the strokes"
        " include small windows that are painted up to their edges.",
    )

    @property
    def resolved_levels(self) -> int:
        """The levels, or the most that are tried where they are not chosen yet."""
        return self.levels or max(LEVELS)

    def resolve_filter_radius(self, windows: int = 0) -> int:
        """The radius; where it is open, that for so many painted windows."""
        if self.filter_radius is not None:
            return self.filter_radius
        return WINDOW_FILTER_RADIUS if windows else FILTER_RADIUS

    def geometry(self, strides: Sequence[int] = ()) -> Geometry:
        levels = self.resolved_levels
        return Geometry(
            stride=2 ** (levels - 1),
            reach=octave_reach(levels) + 2 * self.resolve_filter_radius(),
            whole_tile=False,
        )

    def describe(self) -> str:
        return f"a pixel classifier of {self.trees} trees of depth {self.depth}"


LEVELS = (2, 3, 5)
"""Numbers of octave levels among which the pixel classifier chooses."""

FILTER_RADIUS, WINDOW_FILTER_RADIUS = 4, 2
"""Radii of the guided filter: for strokes alone, and with windows up to the edges."""

DEFAULT_KIND = "smp"
"""Network kind of a recipe that does not name one."""


def _parse_network(value: Any) -> NetworkSection:
    """Validate plain data with the section that its ``kind`` names."""
    if isinstance(value, NetworkSection):
        return value
    if value is None:
        value = {}
    if not isinstance(value, Mapping):
        raise PydanticCustomError(
            "network_type", "Input should be a mapping, such as kind: unet"
        )
    kind = value.get("kind", DEFAULT_KIND)
    if not isinstance(kind, str) or kind not in _NETWORKS:
        names = [repr(name) for name in _NETWORKS]
        expected = f"{', '.join(names[:-1])} or {names[-1]}"
        details = InitErrorDetails(
            type="literal_error",
            loc=("kind",),
            input=kind,
            ctx={"expected": expected},
        )
        raise ValidationError.from_exception_data("network", [details])
    return _NETWORKS[kind].model_validate(dict(value))


Network: TypeAlias = Annotated[
    SerializeAsAny[NetworkSection], BeforeValidator(_parse_network)
]
"""Section of any registered network kind."""
