from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace

import pytest
import torch

from napari_strata.core.errors import TrainingError
from napari_strata.models import device as dev


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Give this machine two GPUs; those that are named have no kernels."""
    make = torch.ones

    def set_gpus(*broken: str, capabilities: Sequence[tuple[int, int]] = ()) -> None:
        def ones(*shape: int, device: torch.device) -> torch.Tensor:
            if str(device) in broken:
                raise RuntimeError(
                    "CUDA error: no kernel image is available for execution on the "
                    "device\nCUDA kernel errors might be reported later"
                )
            return make(*shape)

        monkeypatch.setattr(torch, "ones", ones)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
        monkeypatch.setattr(
            torch.cuda,
            "get_device_capability",
            lambda device=None: capabilities[torch.device(device or 0).index],
        )
        monkeypatch.setattr(
            torch.cuda,
            "get_device_properties",
            lambda device: SimpleNamespace(name="H200", total_memory=140e9),
        )

    dev.device_fault.cache_clear()
    dev._fast_bf16.cache_clear()
    yield set_gpus
    dev.device_fault.cache_clear()
    dev._fast_bf16.cache_clear()


def test_auto_takes_the_first_gpu_that_works(gpus: Callable[..., None]) -> None:
    gpus()
    assert dev.available_devices() == ["cuda", "cuda:0", "cuda:1", "cpu"]
    assert str(dev.choose_device()) == "cuda"
    assert dev.describe_unused_gpus("auto") == []


def test_auto_passes_over_a_gpu_without_kernels(gpus: Callable[..., None]) -> None:
    gpus("cuda", "cuda:0")
    assert str(dev.choose_device()) == "cuda:1"
    (sentence,) = dev.describe_unused_gpus("auto")
    assert sentence.startswith("cuda:0 is not used")


def test_the_cpu_computes_where_no_gpu_works(gpus: Callable[..., None]) -> None:
    gpus("cuda", "cuda:0", "cuda:1")
    assert dev.available_devices() == ["cpu"]
    assert str(dev.choose_device()) == "cpu"
    sentences = dev.describe_unused_gpus("auto")
    assert len(sentences) == 2
    assert "no kernel image is available" in sentences[0]
    assert "reported later" not in sentences[0]
    assert dev.describe_unused_gpus("cpu") == []
    with pytest.raises(TrainingError, match=r"no kernel image.*choose one of: auto, c"):
        dev.choose_device("cuda:1")


@pytest.mark.parametrize("name", ["cuda:2", "cuda:99", "cpu:1"])
def test_a_number_that_no_gpu_has_is_refused(
    gpus: Callable[..., None], name: str
) -> None:
    gpus()
    assert str(dev.choose_device("cuda:1")) == "cuda:1"
    with pytest.raises(TrainingError, match=r"choose one of: auto, cuda, cuda:0"):
        dev.choose_device(name)


def test_a_gpu_that_is_full_now_still_counts(
    gpus: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: int, device: torch.device) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    gpus()
    monkeypatch.setattr(torch, "ones", full)
    assert str(dev.choose_device()) == "cuda"


def test_precision_is_that_of_the_chosen_gpu(gpus: Callable[..., None]) -> None:
    gpus(capabilities=[(9, 0), (7, 5)])
    hopper, turing = torch.device("cuda:0"), torch.device("cuda:1")
    assert dev.choose_precision("auto", hopper).name == "bf16"
    assert dev.choose_precision("auto", turing).name == "fp32"
    with pytest.raises(TrainingError, match="GPU without it; choose fp16"):
        dev.choose_precision("bf16", turing)
    assert dev.choose_precision("fp16", turing).dtype is torch.float16


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
    monkeypatch.setattr(dev, "_fast_bf16", lambda device: False)
    assert dev.choose_precision("auto", cpu).dtype is None
    monkeypatch.setattr(dev, "_fast_bf16", lambda device: True)
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
    assert dev._fast_bf16(torch.device("cpu")) is False
    assert dev._fast_bf16(torch.device("mps")) is False
    dev._fast_bf16.cache_clear()


def test_scaler_works_for_fp16_only() -> None:
    cpu = torch.device("cpu")
    assert not dev.Precision("bf16", torch.bfloat16).scaler(cpu).is_enabled()
    assert dev.Precision("fp16", torch.float16).scaler(cpu).is_enabled()
