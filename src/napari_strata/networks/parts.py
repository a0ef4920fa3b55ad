"""Which part of a network is what: the encoder, and the layer that gives the logits."""

from __future__ import annotations

from typing import Any

from torch import nn

from napari_strata.networks.unet import ClassicUNet
from napari_strata.networks.unet3d import ResidualUNet3d


def encoder_of(network: nn.Module) -> nn.Module:
    """The encoder in a network of `build_network`: smp's, the atrous U-Net's ResNet, a U-Net's contracting path."""
    inner: Any = getattr(network, "network", network)
    encoder: nn.Module = (
        inner.down if isinstance(inner, ClassicUNet | ResidualUNet3d) else inner.encoder
    )
    return encoder


def head_of(network: nn.Module) -> str:
    """Name of the convolution in a network of `build_network` whose outputs are the logits, one a class."""
    heads = {"head", "segmentation_head"}
    names: list[str] = [
        name
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Conv2d | nn.Conv3d)
        and not heads.isdisjoint(name.split("."))
    ]
    return names[-1]
