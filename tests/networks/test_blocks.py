from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from napari_strata.networks.blocks import (
    AnySize,
    BatchNorm,
    BatchNorm3d,
    GroupNorm,
    extend,
    norm_layer,
    replace_batch_norms,
)


class Recorder(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        self.seen = images
        return images


@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    stride=st.sampled_from([1, 4, 16]),
    smallest=st.integers(1, 40),
)
@settings(deadline=None, max_examples=60)
def test_any_size_pads_to_the_stride_and_crops_back(
    height: int, width: int, stride: int, smallest: int
) -> None:
    inner = Recorder()
    images = torch.arange(2.0 * height * width).view(1, 2, height, width)
    out = AnySize(inner, stride, smallest=smallest)(images)
    assert torch.equal(out, images)
    for length, given_length in zip(inner.seen.shape[2:], (height, width), strict=True):
        assert length % stride == 0
        assert length >= max(given_length, smallest)
        assert length < max(given_length, smallest) + stride
    # Padding sits at the bottom and the right: the grid of strides does not move.
    assert torch.equal(inner.seen[..., :height, :width], images)


@given(
    shape=st.tuples(st.integers(1, 20), st.integers(1, 30), st.integers(1, 30)),
    stride=st.tuples(
        st.sampled_from([1, 2, 8]), st.sampled_from([2, 8]), st.sampled_from([2, 8])
    ),
    smallest=st.none()
    | st.tuples(st.integers(1, 20), st.integers(1, 20), st.integers(1, 20)),
)
@settings(deadline=None, max_examples=60)
def test_any_volume_pads_each_axis_to_its_stride_and_crops_back(
    shape: tuple[int, int, int],
    stride: tuple[int, int, int],
    smallest: tuple[int, int, int] | None,
) -> None:
    inner = Recorder()
    volume = torch.randn(1, 2, *shape)
    assert torch.equal(AnySize(inner, stride, smallest=smallest)(volume), volume)
    least = smallest or tuple(2 * step for step in stride)
    for seen, length, step, low in zip(
        inner.seen.shape[2:], shape, stride, least, strict=True
    ):
        assert seen % step == 0
        assert max(length, low) <= seen < max(length, low) + step
    planes, rows, columns = shape
    assert torch.equal(inner.seen[..., :planes, :rows, :columns], volume)


def test_any_size_pads_to_at_least_two_strides() -> None:
    inner = Recorder()
    AnySize(inner, 16)(torch.zeros(1, 1, 1, 40))
    assert inner.seen.shape == (1, 1, 32, 48)


def test_extend_mirrors_where_it_can_and_repeats_where_it_cannot() -> None:
    image = torch.tensor([[[[1.0, 2.0, 3.0, 4.0]]]])
    assert extend(image, 2, 3)[0, 0].tolist() == [[1, 2, 3, 4, 3, 2, 1]] * 3
    assert extend(image, 0, 4)[0, 0].tolist() == [[1, 2, 3, 4, 4, 4, 4, 4]]
    assert extend(image, 0, 0) is image
    assert torch.equal(
        extend(image[:, :, None], 2, 2, 3),
        extend(image, 2, 3)[:, :, None].expand(1, 1, 3, 3, 7),
    )
    upright = torch.tensor([1.0, 2.0, 3.0]).view(1, 1, 3, 1, 1)
    assert extend(upright, 2, 0, 0).flatten().tolist() == [1, 2, 3, 2, 1]
    assert extend(upright, 3, 0, 0).flatten().tolist() == [1, 2, 3, 3, 3, 3]


def test_padding_carries_gradients() -> None:
    image = torch.ones(1, 1, 3, 5, requires_grad=True)
    extend(image, 5, 2).sum().backward()
    assert image.grad is not None
    assert image.grad.sum() == 8 * 7


def test_batch_norm_of_one_value_uses_running_statistics() -> None:
    norm = BatchNorm(2).train()
    with torch.no_grad():
        norm.running_mean.copy_(torch.tensor([1.0, 2.0]))  # type: ignore[union-attr]
        norm.running_var.copy_(torch.tensor([4.0, 9.0]))  # type: ignore[union-attr]
    out = norm(torch.tensor([5.0, 5.0]).view(1, 2, 1, 1))
    assert out.flatten().tolist() == pytest.approx([2.0, 1.0], abs=1e-5)
    assert norm.running_mean.tolist() == [1.0, 2.0]  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="more than 1 value"):
        nn.BatchNorm2d(2).train()(torch.zeros(1, 2, 1, 1))


def test_batch_norm_of_volumes_handles_one_value_and_otherwise_equals_torch() -> None:
    ours, theirs = norm_layer("batch", 3, dims=3).train(), nn.BatchNorm3d(3).train()
    assert type(ours) is BatchNorm3d
    single = torch.randn(1, 3, 1, 1, 1)
    torch.testing.assert_close(ours(single), single / (1 + 1e-5) ** 0.5)
    volumes = torch.randn(2, 3, 2, 1, 1)
    assert torch.equal(ours(volumes), theirs(volumes))
    assert torch.equal(ours.running_var, theirs.running_var)


def test_batch_norm_of_more_values_equals_torch() -> None:
    ours, theirs = BatchNorm(3).train(), nn.BatchNorm2d(3).train()
    images = torch.randn(2, 3, 1, 1)
    assert torch.equal(ours(images), theirs(images))
    assert torch.equal(ours.running_var, theirs.running_var)  # type: ignore[arg-type]
    assert torch.equal(ours.eval()(images), theirs.eval()(images))


def test_instance_norm_equals_torch_and_keeps_a_single_value() -> None:
    ours, theirs = norm_layer("instance", 4), nn.InstanceNorm2d(4, affine=True)
    images = torch.randn(2, 4, 5, 6)
    torch.testing.assert_close(ours(images), theirs(images))
    single = torch.randn(1, 4, 1, 1)
    assert torch.equal(ours(single), single)
    volumes = torch.randn(2, 4, 3, 5, 6)
    torch.testing.assert_close(
        ours(volumes), nn.InstanceNorm3d(4, affine=True)(volumes)
    )
    assert torch.equal(ours(single[..., None]), single[..., None])


def test_group_norm_has_groups_of_sixteen() -> None:
    groups = {
        width: norm_layer("group", width).num_groups
        for width in (1, 6, 16, 24, 32, 40, 64, 100, 512)
    }
    assert groups == {1: 1, 6: 1, 16: 1, 24: 1, 32: 2, 40: 2, 64: 4, 100: 2, 512: 32}


def test_replaced_batch_norms_keep_weights_and_settings() -> None:
    old = nn.Sequential(
        nn.Conv2d(1, 2, 1), nn.Sequential(nn.BatchNorm2d(2, eps=1e-3, momentum=0.2))
    )
    old[1][0].running_mean += 7
    nn.init.constant_(old[1][0].weight, 3.0)
    new = nn.Sequential(
        nn.Conv2d(1, 2, 1), nn.Sequential(nn.BatchNorm2d(2, eps=1e-3, momentum=0.2))
    )
    new.load_state_dict(old.state_dict())
    replace_batch_norms(new)
    assert type(new[1][0]) is BatchNorm
    assert (new[1][0].eps, new[1][0].momentum) == (1e-3, 0.2)
    image = torch.randn(1, 1, 3, 3)
    assert torch.equal(new.eval()(image), old.eval()(image))
    replace_batch_norms(old, "group")
    assert isinstance(old[1][0], GroupNorm)
