"""Which section of a recipe is built by which module."""

from __future__ import annotations

import torch
from torch import nn

from napari_strata.core.recipe import AtrousUNet, UNet, UNet3d
from napari_strata.core.spec import ModelSpec


def build_network(spec: ModelSpec) -> nn.Module:
    """The network that `spec` describes, with random weights, on the current default device.

    Its forward takes float images (N, C, H, W), C = ``spec.in_channels``, of any height and width from 1, and returns
    logits (N, K, H, W), K = ``len(spec.classes)``; that of a 3D model takes volumes (N, C, D, H, W) of any size, and
    returns (N, K, D, H, W). Nothing is downloaded; see `weights.load_encoder_weights`.

    Raises
    ------
    RecipeError
        when architecture, encoder and options do not go together, naming what does.
    """
    # Also for prediction, whose callers may have gradients off: weights made in inference mode could never be trained.
    with torch.inference_mode(False), torch.enable_grad():
        return _build(spec)


def _build(spec: ModelSpec) -> nn.Module:
    # segmentation-models-pytorch takes seconds to import: only who needs it waits for it.
    if isinstance(spec.network, UNet):
        from napari_strata.networks.unet import build_unet

        return build_unet(spec, spec.network)
    if isinstance(spec.network, UNet3d):
        from napari_strata.networks.unet3d import build_unet3d

        return build_unet3d(spec, spec.network)
    if isinstance(spec.network, AtrousUNet):
        from napari_strata.networks.atrous import build_atrous_unet

        return build_atrous_unet(spec, spec.network)
    from napari_strata.networks.smp import build_smp

    return build_smp(spec, spec.network)
