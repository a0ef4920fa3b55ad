from __future__ import annotations

import pytest
import torch

from napari_strata.core.errors import TrainingError
from napari_strata.models import device as dev


def test_auto_is_the_first_available() -> None:
    assert str(dev.choose_device("auto")) == dev.available_devices()[0]
    assert dev.available_devices()[-1] == "cpu"


@pytest.mark.parametrize("name", ["cuda:99", "nonsense", "xpu"])
def test_a_missing_device_names_those_that_exist(name: str) -> None:
    with pytest.raises(TrainingError, match=r"choose one of: auto, .*cpu"):
        dev.choose_device(name)


def test_description_counts_cores() -> None:
    assert "cores" in dev.describe_device(torch.device("cpu"))


def test_precision_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(dev, "_fast_bf16", lambda kind: False)
    assert dev.choose_precision("auto", cpu).dtype is None
    monkeypatch.setattr(dev, "_fast_bf16", lambda kind: True)
    precision = dev.choose_precision("auto", cpu)
    assert precision.name == "bf16"
    with precision.autocast(cpu):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is torch.bfloat16
    with dev.choose_precision("fp32", cpu).autocast(cpu):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is torch.float32
    with pytest.raises(TrainingError, match="choose bf16, fp32"):
        dev.choose_precision("fp16", cpu)


def test_bf16_needs_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dev, "_cpu_flags", lambda: "flags : avx2 avx512f")
    dev._fast_bf16.cache_clear()
    assert dev._fast_bf16("cpu") is False
    assert dev._fast_bf16("mps") is False
    dev._fast_bf16.cache_clear()


def test_scaler_works_for_fp16_only() -> None:
    cpu = torch.device("cpu")
    assert not dev.Precision("bf16", torch.bfloat16).scaler(cpu).is_enabled()
    assert dev.Precision("fp16", torch.float16).scaler(cpu).is_enabled()
