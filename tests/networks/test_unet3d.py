"""The residual 3D U-Net: sizes, receptive field along each axis, independent slices."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from napari_strata.core.geometry import depth_kernels, depth_strides
from napari_strata.core.network_sections import UNet3d
from napari_strata.networks.blocks import AnySize, BatchNorm3d, without_weights
from napari_strata.networks.build import encoder_of, head_of
from napari_strata.networks.unet3d import ResidualUNet3d
from napari_strata.networks.weights import load_encoder_weights
from networks.network_checks import CLASSES, NetworkChecks, build, make_spec, noise

SMALL = (4, 6, 8)


class TestDefault(NetworkChecks):
    section = UNet3d()
    planes = (3,)


class TestLongVoxels(NetworkChecks):
    section = UNet3d(widths=SMALL, anisotropy=3, dropout=0.2)
    planes = (7,)


class TestUnnormalised(NetworkChecks):
    section = UNet3d(widths=SMALL, norm="none")
    planes = (1,)


class TestInstanceNorm(NetworkChecks):
    section = UNet3d(widths=SMALL, norm="instance", anisotropy=10)
    planes = (2,)


class TestGroupNorm(NetworkChecks):
    section = UNet3d(widths=(2, 4), norm="group")
    planes = (5,)


@pytest.mark.parametrize("ratio", [1, 2, 3, 5, 10])
def test_any_number_of_planes(ratio: float) -> None:
    network = build(UNet3d(widths=(2, 4, 4, 4), anisotropy=ratio)).eval()
    with torch.no_grad():
        for shape in (
            (1, 17, 31),
            (2, 16, 5),
            (3, 9, 9),
            (7, 1, 1),
            (8, 16, 24),
            (33, 3, 18),
        ):
            logits = network(noise(1, 2, *shape))
            assert logits.shape == (1, CLASSES, *shape)
            assert logits.isfinite().all()


def test_a_thin_stack_is_not_padded_further_than_needed() -> None:
    network = build(UNet3d(widths=(2, 4, 4, 4), anisotropy=3))
    seen: list[tuple[int, ...]] = []
    network.network.register_forward_pre_hook(
        lambda _, given: seen.append(tuple(given[0].shape[2:]))
    )
    network(noise(1, 2, 1, 20, 3))
    network(noise(1, 2, 5, 16, 17))
    assert seen == [(4, 24, 16), (8, 16, 24)]


def test_strides_and_kernels_along_z_are_those_of_the_spec() -> None:
    network = build(UNet3d(widths=(2, 2, 2, 2), anisotropy=3)).network
    assert [pool.kernel_size for pool in network.pools] == [
        (1, 2, 2),
        (2, 2, 2),
        (2, 2, 2),
    ]
    assert [block.first[0].kernel_size for block in network.down] == [
        (1, 3, 3),
        *[(3, 3, 3)] * 3,
    ]
    assert [block.second[0].kernel_size for block in network.merge] == [
        *[(3, 3, 3)] * 2,
        (1, 3, 3),
    ]
    assert all(
        isinstance(block.first[1], BatchNorm3d)
        for block in (*network.down, *network.merge)
    )


@pytest.mark.parametrize("norm", ["none", "batch", "group"])
def test_signal_keeps_its_magnitude_through_the_network(norm: Any) -> None:
    network = build(UNet3d(widths=(8, 16, 32, 64, 128), norm=norm)).train()
    assert 0.05 < network(noise(2, 2, 16, 32, 32)).std() < 30


# How far it sees


@pytest.mark.parametrize("ratio", [1, 2, 3, 10])
@pytest.mark.parametrize("levels", [2, 3])
def test_reach_is_the_radius_of_the_receptive_field_along_each_axis(
    levels: int, ratio: float
) -> None:
    section = UNet3d(widths=(2,) * levels, norm="none", anisotropy=ratio)
    shape = section.geometry(depth_strides(levels, ratio))
    assert [measured_reach(section, axis) for axis in range(3)] == [
        shape.depth_reach,
        shape.reach,
        shape.reach,
    ]


def measured_reach(section: UNet3d, axis: int) -> int:
    """Return the largest distance at which an input voxel changes an output voxel, over all positions in a stride."""
    network = build(section).double().eval()
    strides = make_spec(section).stride_shape
    # A maximum lets one voxel of eight through; all of them may be it.
    network.network.pools = nn.ModuleList(
        nn.AvgPool3d(pool.kernel_size) for pool in network.network.pools
    )
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.abs_().add_(0.01)  # no ReLU closes, nothing cancels
    middle = 32
    shape = [middle * 2 if i == axis else stride for i, stride in enumerate(strides)]
    distances = []
    for position in range(middle, middle + strides[axis]):
        volume = torch.rand(1, 2, *shape, dtype=torch.float64, requires_grad=True)
        network(volume)[0].select(1 + axis, position).sum().backward()
        assert volume.grad is not None
        others = tuple(i for i in range(5) if i != 2 + axis)
        seen = volume.grad.abs().sum(dim=others).nonzero().flatten()
        distances += [position - int(seen.min()), int(seen.max()) - position]
    return max(distances)


@given(
    axis=st.integers(0, 2),
    ratio=st.sampled_from([1, 2, 3, 5]),
    levels=st.integers(2, 3),
    position=st.integers(28, 34),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=15)
def test_voxels_beyond_the_reach_have_no_influence(
    axis: int, ratio: float, levels: int, position: int, seed: int
) -> None:
    section = UNet3d(widths=(3,) * levels, anisotropy=ratio)
    shape = section.geometry(depth_strides(levels, ratio))
    reach = (shape.depth_reach, shape.reach, shape.reach)[axis]
    network = build(section, seed=seed).double().eval()
    sizes = [64 if i == axis else 9 for i in range(3)]
    volume = noise(1, 2, *sizes, seed=seed).double()
    before, after = volume.clone(), volume.clone()
    before.narrow(2 + axis, 0, position - reach).add_(10)
    after.narrow(2 + axis, position + reach + 1, 63 - position - reach).add_(10)
    with torch.no_grad():
        wanted, first, second = network(volume), network(before), network(after)
    assert torch.equal(
        first.narrow(2 + axis, position, 64 - position),
        wanted.narrow(2 + axis, position, 64 - position),
    )
    assert torch.equal(
        second.narrow(2 + axis, 0, position + 1),
        wanted.narrow(2 + axis, 0, position + 1),
    )
    assert not torch.equal(first, wanted)


@pytest.mark.parametrize("norm", ["instance", "group"])
def test_norms_of_the_whole_volume_depend_on_all_voxels(norm: Any) -> None:
    section = UNet3d(widths=(4, 8), norm=norm)
    network = build(section).double().eval()
    volume = noise(1, 2, 60, 8, 8).double()
    far = volume.clone()
    far[:, :, :4] += 10
    with torch.no_grad():
        assert not torch.equal(network(far)[:, :, 50:], network(volume)[:, :, 50:])
    assert section.geometry().whole_tile
    assert not UNet3d().geometry().whole_tile


# A single slice is its 2D


def flat_network(kernels: tuple[int, ...]) -> AnySize:
    """Build a network without strides along Z."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        inner = ResidualUNet3d(
            UNet3d(widths=SMALL),
            inputs=2,
            outputs=CLASSES,
            strides=(1, 1),
            kernels=kernels,
        )
    return AnySize(inner, (1, 4, 4), smallest=(1, 8, 8)).double().eval()


@given(
    planes=st.integers(1, 6),
    rows=st.integers(1, 21),
    columns=st.integers(1, 21),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=20)
def test_without_kernels_along_z_slices_are_independent(
    planes: int, rows: int, columns: int, seed: int
) -> None:
    network, volume = (
        flat_network((1, 1, 1)),
        noise(1, 2, planes, rows, columns, seed=seed).double(),
    )
    with torch.no_grad():
        together = network(volume)
        alone = torch.cat(
            [network(volume[:, :, z : z + 1]) for z in range(planes)], dim=2
        )
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-9)


def test_without_kernels_along_z_it_equals_a_2d_network_with_the_same_weights() -> None:
    network, image = flat_network((1, 1, 1)), noise(1, 2, 16, 24).double()
    with torch.no_grad():
        torch.testing.assert_close(
            network(image[:, :, None])[:, :, 0], in_2d(network.network, image)
        )


def in_2d(network: Any, image: Tensor) -> Tensor:
    """Compute the logits of `network` with each layer replaced by its 2D counterpart."""

    def convolve(layer: nn.Conv3d, features: Tensor) -> Tensor:
        return nn.functional.conv2d(
            features, layer.weight[:, :, 0], layer.bias, padding=layer.padding[1:]
        )

    def normed(pair: nn.Sequential, features: Tensor) -> Tensor:
        flat: Tensor = pair[1](convolve(pair[0], features)[:, :, None])[:, :, 0]  # type: ignore[arg-type]
        return flat

    def block(layer: Any, features: Tensor) -> Tensor:
        shortcut = (
            features
            if isinstance(layer.shortcut, nn.Identity)
            else normed(layer.shortcut, features)
        )
        return torch.relu(
            normed(layer.second, torch.relu(normed(layer.first, features))) + shortcut
        )

    features, skips = block(network.down[0], image), []
    for level in network.down[1:]:
        skips.append(features)
        features = block(level, nn.functional.max_pool2d(features, 2))
    for narrow, merge, skip in zip(
        network.narrow, network.merge, reversed(skips), strict=True
    ):
        features = block(
            merge,
            skip
            + nn.functional.interpolate(convolve(narrow, features), scale_factor=2),
        )
    return convolve(network.head, features)


def test_with_kernels_along_z_slices_depend_on_others() -> None:
    network, volume = flat_network(depth_kernels((1, 1))), noise(1, 2, 3, 8, 8).double()
    with torch.no_grad():
        assert not torch.allclose(
            network(volume)[:, :, 1:2], network(volume[:, :, 1:2])
        )


# What others ask of a network


def test_encoder_and_head_are_found() -> None:
    spec = make_spec(UNet3d(widths=SMALL))
    network = build(UNet3d(widths=SMALL))
    assert encoder_of(network) is network.network.down
    assert head_of(network) == "network.head"
    note = load_encoder_weights(network, spec).text
    assert note.startswith("a 3D U-Net of widths")
    assert note.endswith("has no pretrained encoder: it starts from random weights")


def test_it_runs_without_weights() -> None:
    bare = without_weights(build(UNet3d(widths=SMALL, norm="instance")))
    assert bare(torch.zeros(1, 2, 9, 10, 11, device="meta")).shape == (
        1,
        CLASSES,
        9,
        10,
        11,
    )
    assert {parameter.device.type for parameter in bare.parameters()} == {"meta"}
