"""Checks that every network passes. A test class inherits them and sets its section of a recipe."""

from __future__ import annotations

from functools import lru_cache
from math import prod
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from napari_strata.core import normalization
from napari_strata.core.classes import ClassMap
from napari_strata.core.geometry import depth_strides
from napari_strata.core.network_sections import AtrousUNet, Smp, UNet, UNet3d
from napari_strata.core.spec import Depth, ModelSpec
from napari_strata.models.device import memory_order
from napari_strata.networks import build_network

CLASSES = 3
ODD = (33, 47)


Network = UNet | AtrousUNet | Smp | UNet3d


def make_spec(
    section: Network, *, channels: int = 2, classes: int = CLASSES
) -> ModelSpec:
    """Build a spec for `section`, as `resolve` does."""
    scale = normalization.fixed("dtype", "uint8", channels)
    depth = None
    if isinstance(section, UNet3d):
        strides = depth_strides(len(section.widths), section.anisotropy or 1.0)
        depth = Depth(patch=32, tile=64, halo=16, strides=strides)
    return ModelSpec(
        network=section,
        in_channels=channels,
        axes="ZYX" if depth else "YX",
        depth=depth,
        classes=ClassMap.from_values(range(classes)),
        dtype="uint8",
        normalization=normalization.ResolvedNormalization(kind="dtype", scale=scale),
        patch=64,
        stride=section.geometry().stride,
        tile=512,
        halo=64,
        blend=False,
    )


def build(section: Network, *, channels: int = 2, seed: int = 0) -> nn.Module:
    """Build a network whose random weights depend on `seed` only."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_network(make_spec(section, channels=channels))


@lru_cache(maxsize=1)
def shared(section: Network) -> nn.Module:
    return build(section)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class NetworkChecks:
    """Checks to inherit. Set `section`, and the number of planes for a 3D network."""

    section: ClassVar[Network]
    planes: ClassVar[tuple[int, ...]] = ()

    @pytest.fixture
    def network(self) -> nn.Module:
        """A network for all tests of a class that do not change it."""
        return shared(self.section)

    @pytest.mark.parametrize("size", [(1, 1), (5, 80), ODD, (64, 64)], ids=str)
    def test_output_has_the_size_of_the_input(
        self, network: nn.Module, size: tuple[int, int]
    ) -> None:
        with torch.no_grad():
            logits = network.eval()(noise(2, 2, *self.planes, *size))
        assert logits.shape == (2, CLASSES, *self.planes, *size)
        assert logits.isfinite().all()

    @pytest.mark.parametrize("channels", [1, 2, 3, 5])
    def test_every_channel_matters(self, channels: int) -> None:
        network = build(self.section, channels=channels).double().eval()
        image = noise(1, channels, *self.planes, *ODD).double()
        changed = torch.cat([image] * channels)
        for channel in range(channels):
            changed[channel, channel] += 3
        with torch.no_grad():
            before, after = network(image), network(changed)
        assert after.shape == (channels, CLASSES, *self.planes, *ODD)
        assert ((after - before).abs().flatten(1).amax(dim=1) > 0).all()

    def test_gradients_reach_every_parameter(self) -> None:
        network = build(self.section).train()
        shape = (2, *self.planes, *ODD)
        logits = network(noise(2, 2, *shape[1:]))
        nn.functional.cross_entropy(
            logits, torch.arange(prod(shape)).view(shape) % CLASSES
        ).backward()
        trained = {
            name: p.grad for name, p in network.named_parameters() if p.requires_grad
        }
        assert [
            n
            for n, gradient in trained.items()
            if gradient is None or not gradient.isfinite().all()
        ] == []
        assert (
            next(g for g in trained.values() if g is not None and g.ndim >= 4)
            .abs()
            .max()
            > 0
        )

    def test_weights_saved_and_loaded_give_the_same_network(
        self, tmp_path: Path
    ) -> None:
        first, second = build(self.section).eval(), build(self.section, seed=1).eval()
        image = noise(1, 2, *self.planes, *ODD)
        save_file(first.state_dict(), tmp_path / "weights.safetensors")
        with torch.no_grad():
            expected = first(image)
            assert not torch.equal(second(image), expected)
            second.load_state_dict(load_file(tmp_path / "weights.safetensors"))
            assert torch.equal(second(image), expected)

    @pytest.mark.parametrize("size", [(16, 16), ODD], ids=str)
    def test_batch_of_one_trains(self, size: tuple[int, int]) -> None:
        network = build(self.section).train()
        logits = network(noise(1, 2, *self.planes, *size))
        logits.mean().backward()
        assert logits.shape == (1, CLASSES, *self.planes, *size)
        assert logits.isfinite().all()

    def test_prediction_repeats_and_does_not_depend_on_the_batch(
        self, network: nn.Module
    ) -> None:
        images = noise(3, 2, *self.planes, *ODD)
        network.eval()
        with torch.no_grad():
            together, again = network(images), network(images)
            alone = network(images[1:2])
        assert torch.equal(together, again)
        assert (together[1:2] - alone).abs().max() < 1e-3 * alone.std()

    def test_channels_last_gives_the_same(self, network: nn.Module) -> None:
        image = noise(1, 2, *self.planes, *ODD)
        network.eval()
        with torch.no_grad():
            plain = network(image)
            last = network(
                image.to(memory_format=memory_order(image.ndim, image.device))
            )
        assert (last - plain).abs().max() < 1e-3 * plain.std()
