"""Networks that need no padding as ONNX graphs, and networks that cannot be graphs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from napari_strata.core.errors import RunError
from napari_strata.networks.blocks import AnySize
from napari_strata.networks.onnx_graph import without_padding, write_onnx_graph

pytest.importorskip("onnxscript")


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (nn.Conv2d(2, 3, 3, padding=1), (1, 2, 7, 5)),
        (nn.Conv3d(2, 3, 3, padding=1), (3, 2, 3, 7, 5)),
    ],
    ids=["2D", "3D"],
)
def test_a_graph_takes_any_size(
    network: nn.Module, shape: tuple[int, ...], tmp_path: Path
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    graph, multiples = without_padding(network, "ZYX"[-(len(shape) - 2) :])
    assert graph is network
    assert multiples == (1,) * (len(shape) - 2)
    path = tmp_path / "a.onnx"
    write_onnx_graph(
        graph, path, channels=2, multiples=multiples, properties={"about": "a test"}
    )
    session = onnxruntime.InferenceSession(str(path))
    assert session.get_modelmeta().custom_metadata_map == {"about": "a test"}
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    (logits,) = session.run(["logits"], {"images": images.numpy()})
    with torch.inference_mode():
        torch.testing.assert_close(torch.from_numpy(logits), network(images))


def test_padding_is_taken_off() -> None:
    inner = nn.Identity()
    assert without_padding(AnySize(inner, 4), "YX") == (inner, (4, 4))
    assert without_padding(AnySize(inner, (2, 4, 4)), "ZYX") == (inner, (2, 4, 4))


def test_a_network_that_cannot_be_a_graph_is_one_line(tmp_path: Path) -> None:
    class Broken(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            raise ValueError("two\nlines")

    with pytest.raises(
        RunError, match=r"cannot be written as an ONNX graph \("
    ) as error:
        write_onnx_graph(Broken(), tmp_path / "a.onnx", channels=1, multiples=(1, 1))
    assert len(str(error.value).splitlines()) == 1
    assert not list(tmp_path.iterdir())
