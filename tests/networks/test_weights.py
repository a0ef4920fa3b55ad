from __future__ import annotations

import os
import pickle
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from napari_strata.core.errors import ModelError, TrainingError
from napari_strata.core.events import Message
from napari_strata.core.network_sections import AtrousUNet, Smp, UNet
from napari_strata.networks import build_network, hub
from napari_strata.networks.build import encoder_of
from napari_strata.networks.weights import adapt, load_encoder_weights, read_tensors
from networks.network_checks import make_spec, noise

NARROW = (16, 16, 16, 16, 16)


def section(weights: str, **options: Any) -> Smp:
    return Smp.model_validate(
        {
            "encoder": "resnet18",
            "decoder_widths": NARROW,
            "encoder_weights": weights,
            **options,
        }
    )


def load(
    chosen: Smp | AtrousUNet | UNet, *, channels: int = 3, **options: Any
) -> tuple[nn.Module, str]:
    """Build a network, load its encoder weights and return the message too."""
    spec = make_spec(chosen, channels=channels)
    network = build_network(spec)
    return network, load_encoder_weights(network, spec, **options).text


def imagenet_like(seed: int = 7) -> dict[str, Tensor]:
    """Random tensors with the names and shapes of the hub's resnet18."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return dict(smp.encoders.get_encoder("resnet18", weights=None).state_dict())


@pytest.fixture
def empty_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty caches of the hub and of torch, and no results of earlier probes."""
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    hub._probe.cache_clear()
    return tmp_path


@pytest.fixture
def unreachable(empty_caches: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("[Errno -2] Name or service not known")

    monkeypatch.setattr(hub, "get_hf_file_metadata", refuse)
    monkeypatch.setattr(
        hub,
        "hf_hub_download",
        lambda *_, **__: pytest.fail("downloaded without a probe"),
    )
    return empty_caches


def put_in_hub_cache(
    folder: Path, repo: str, revision: str, tensors: dict[str, Tensor]
) -> None:
    """Write a file to the cache in the layout of huggingface_hub."""
    place = folder / "hub" / f"models--{repo.replace('/', '--')}"
    (place / "snapshots" / revision).mkdir(parents=True)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(revision)
    save_file(tensors, place / "snapshots" / revision / "model.safetensors")


def test_classic_unet_has_no_encoder_to_fill() -> None:
    assert "no pretrained encoder" in load(UNet(widths=(2, 4)))[1]


def test_none_leaves_the_random_weights() -> None:
    spec = make_spec(section("none"))
    network = build_network(spec)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    assert load_encoder_weights(network, spec) == Message(
        "encoder resnet18: starts from random weights, as the recipe says"
    )
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())


# Offline


def test_auto_starts_from_random_weights_when_the_hub_cannot_be_reached(
    unreachable: Path,
) -> None:
    spec = make_spec(section("auto"))
    message = load_encoder_weights(build_network(spec), spec)
    assert message.level == "warning"
    assert message.text.startswith(
        "encoder resnet18: starts from random weights (ImageNet weights could not be "
        "reached: "
    )
    assert "Name or service not known" in message.text
    assert "network.encoder_weights=PATH" in message.text


@pytest.mark.parametrize(
    "chosen",
    [section("imagenet"), AtrousUNet(encoder="resnet18", encoder_weights="imagenet")],
)
def test_imagenet_refuses_and_names_three_remedies(
    unreachable: Path, chosen: Smp | AtrousUNet
) -> None:
    with pytest.raises(TrainingError) as caught:
        load(chosen)
    for way in (
        "Connect this machine",
        "network.encoder_weights=PATH",
        "network.encoder_weights=none",
    ):
        assert way in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_silent_hub_costs_the_timeout_once(
    empty_caches: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    asked = []
    tests_end = threading.Event()
    request.addfinalizer(tests_end.set)

    def hang(url: str, **_: Any) -> None:
        asked.append(url)
        assert tests_end.wait(60), "the caller waits for the hub"

    monkeypatch.setattr(hub, "get_hf_file_metadata", hang)
    monkeypatch.setattr(hub.time, "monotonic", lambda: 1000.0)
    assert "no answer within 0.2 s" in load(section("auto"), probe_timeout=0.2)[1]
    assert "no answer within 0.2 s" in load(section("auto"), probe_timeout=0.2)[1]
    assert len(asked) == 1
    monkeypatch.setattr(hub.time, "monotonic", lambda: 1061.0)
    load(section("auto"), probe_timeout=0.1)
    assert len(asked) == 2  # a minute later it is asked again: the network may be back


def test_an_offline_setting_prevents_the_probe(
    empty_caches: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(
        hub, "get_hf_file_metadata", lambda *_, **__: pytest.fail("probed")
    )
    assert "HF_HUB_OFFLINE is set" in load(section("auto"))[1]


def test_an_interrupted_download_is_reported(
    empty_caches: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_off(*_: Any, **__: Any) -> None:
        raise RuntimeError("connection reset\nmore")

    monkeypatch.setattr(hub, "get_hf_file_metadata", lambda *_, **__: None)
    monkeypatch.setattr(hub, "hf_hub_download", break_off)
    assert "could not be reached: connection reset)." in load(section("auto"))[1]


def test_weights_are_downloaded_from_a_reachable_hub(
    empty_caches: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = imagenet_like()
    save_file(tensors, empty_caches / "downloaded.safetensors")
    asked = []

    def download(repo: str, file: str, *, revision: str, etag_timeout: float) -> str:
        asked.append((repo, file, len(revision), etag_timeout))
        return str(empty_caches / "downloaded.safetensors")

    monkeypatch.setattr(hub, "get_hf_file_metadata", lambda *_, **__: None)
    monkeypatch.setattr(hub, "hf_hub_download", download)
    network, said = load(section("imagenet"))
    assert asked == [("smp-hub/resnet18.imagenet", "model.safetensors", 40, 2.0)]
    assert said == "encoder resnet18: ImageNet weights loaded (100 of 100 tensors)"
    assert torch.equal(
        encoder_of(network).state_dict()["layer4.1.bn2.bias"],
        tensors["layer4.1.bn2.bias"],
    )


# Caches


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_cached_weights_need_no_network_and_equal_smp_s(
    unreachable: Path, channels: int
) -> None:
    source = hub.find_pretrained("resnet18")
    tensors = imagenet_like()
    put_in_hub_cache(unreachable, source.repo, str(source.revision), tensors)
    network, said = load(section("imagenet"), channels=channels)
    expected = smp.encoders.get_encoder("resnet18", weights=None)
    expected.load_state_dict(dict(tensors))
    expected.set_in_channels(channels, pretrained=True)
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(
            encoder_of(network).state_dict()[name], tensor, msg=name
        )
    assert ("adapted from 3 channels" in said) == (channels != 3)


def test_atrous_unet_takes_the_same_cache(unreachable: Path) -> None:
    source = hub.find_pretrained("resnet18")
    tensors = imagenet_like()
    put_in_hub_cache(unreachable, source.repo, str(source.revision), tensors)
    network, said = load(
        AtrousUNet(encoder="resnet18", decoder_widths=NARROW, encoder_weights="auto")
    )
    assert "ImageNet weights loaded" in said
    assert torch.equal(
        encoder_of(network).state_dict()["conv1.weight"], tensors["conv1.weight"]
    )


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_timm_encoders_load_from_the_cache(unreachable: Path, channels: int) -> None:
    source = hub.find_pretrained("tu-resnet10t")
    tensors = timm.create_model("resnet10t", pretrained=False).state_dict()
    tensors["conv1.0.weight"] += 1
    put_in_hub_cache(unreachable, source.repo, "a" * 40, tensors)
    network, said = load(section("imagenet", encoder="tu-resnet10t"), channels=channels)
    own = encoder_of(network).state_dict()
    assert "ImageNet weights loaded" in said
    assert torch.equal(
        own["model.layer4.0.conv1.weight"], tensors["layer4.0.conv1.weight"]
    )
    summed = own["model.conv1.0.weight"].sum(1)
    if channels == 1:
        torch.testing.assert_close(summed, tensors["conv1.0.weight"].sum(1))
    assert network.eval()(noise(1, channels, 20, 20)).isfinite().all()


def test_vision_transformers_load_from_the_cache(unreachable: Path) -> None:
    chosen = section("imagenet", architecture="dpt", encoder="tu-vit_tiny_patch16_224")
    source = hub.find_pretrained(chosen.encoder)
    tensors = timm.create_model("vit_tiny_patch16_224", pretrained=False).state_dict()
    put_in_hub_cache(unreachable, source.repo, "b" * 40, tensors)
    network, _ = load(chosen, channels=2)
    own = encoder_of(network).state_dict()
    assert torch.equal(
        own["model.blocks.3.mlp.fc1.weight"], tensors["blocks.3.mlp.fc1.weight"]
    )
    assert own["model.patch_embed.proj.weight"].shape[1] == 2


def test_weights_that_torchvision_downloaded_are_found(unreachable: Path) -> None:
    folder = unreachable / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    tensors = imagenet_like()
    classifier = {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
    torch.save(tensors | classifier, folder / "resnet18-f37072fd.pth")
    torch.save({}, folder / "resnet18-notours.pth")
    network, said = load(section("imagenet"))
    assert "ImageNet weights loaded (100 of 100 tensors)" in said
    assert torch.equal(
        encoder_of(network).state_dict()["bn1.weight"], tensors["bn1.weight"]
    )


def test_other_pretraining_data_is_named() -> None:
    assert hub.find_pretrained("resnext101_32x16d").data == "instagram"
    with pytest.raises(hub.UnobtainableError, match="no weights"):
        hub.find_pretrained("tu-nothing")


# Files


@pytest.mark.parametrize(
    "prefix", ["", "encoder.", "module.encoder.", "backbone.", "network.encoder."]
)
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_file_fills_the_encoder(tmp_path: Path, prefix: str, suffix: str) -> None:
    tensors = imagenet_like()
    named = {prefix + name: tensor for name, tensor in tensors.items()} | {
        "fc.weight": torch.zeros(10, 512)
    }
    file = tmp_path / f"weights{suffix}"
    save_file(named, file) if suffix == ".safetensors" else torch.save(
        {"epoch": 3, "state_dict": named}, file
    )
    network, said = load(section(str(file)))
    assert said == f"encoder resnet18: 100 of 100 tensors loaded from {file}"
    own = encoder_of(network).state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in tensors.items())


def test_a_saved_model_is_a_file_of_encoder_weights(tmp_path: Path) -> None:
    first = build_network(make_spec(section("none"), channels=1))
    save_file(first.state_dict(), tmp_path / "model.safetensors")
    second, _ = load(section(str(tmp_path / "model.safetensors")), channels=1)
    own, given = second.state_dict(), first.state_dict()
    assert all(
        torch.equal(own[k], v)
        for k, v in given.items()
        if k.startswith("network.encoder")
    )
    assert not torch.equal(
        own["network.segmentation_head.0.weight"],
        given["network.segmentation_head.0.weight"],
    )


def test_a_file_for_three_channels_is_adapted_to_one(tmp_path: Path) -> None:
    tensors = imagenet_like()
    save_file(tensors, tmp_path / "w.safetensors")
    network, _ = load(section(str(tmp_path / "w.safetensors")), channels=1)
    assert torch.equal(
        encoder_of(network).state_dict()["conv1.weight"],
        tensors["conv1.weight"].sum(1, keepdim=True),
    )


def test_the_message_counts_the_tensors(tmp_path: Path) -> None:
    tensors = {k: v for k, v in imagenet_like().items() if not k.startswith("layer4")}
    save_file(tensors, tmp_path / "w.safetensors")
    assert (
        "75 of 100 tensors loaded" in load(section(str(tmp_path / "w.safetensors")))[1]
    )


def test_weights_of_another_network_are_refused_and_change_nothing(
    tmp_path: Path,
) -> None:
    file = tmp_path / "w.safetensors"
    save_file(
        {
            "features.0.weight": torch.zeros(64, 3, 3, 3),
            "bn1.weight": torch.full((64,), 9.0),
        },
        file,
    )
    spec = make_spec(section(str(file)), channels=3)
    network = build_network(spec)
    with pytest.raises(ModelError) as caught:
        load_encoder_weights(network, spec)
    message = str(caught.value)
    assert f"{file}: 1 of the 100 tensors" in message
    assert "(64, 3, 3, 3)" in message
    assert "'conv1.weight' (64, 3, 7, 7)" in message
    assert (encoder_of(network).state_dict()["bn1.weight"] == 1).all()


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.place),)

    def __init__(self, place: Path) -> None:
        self.place = place


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_a_pickle_is_refused_and_not_run(tmp_path: Path, writer: str) -> None:
    file, place = tmp_path / "evil.pth", tmp_path / "ran"
    if writer == "torch":
        torch.save({"conv1.weight": torch.zeros(1), "x": Bomb(place)}, file)
    else:
        file.write_bytes(pickle.dumps(Bomb(place)))
    with pytest.raises(ModelError, match="could run code") as caught:
        load(section(str(file)))
    assert str(file) in str(caught.value)
    assert not place.exists()


def test_a_refused_pickle_shows_no_warning_of_torch(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    warnings.simplefilter("always")
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"a": 1}, protocol=4))
    with pytest.raises(ModelError):
        read_tensors(tmp_path / "a.pkl")
    assert [str(warning.message) for warning in recwarn] == []


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("missing.pt", None, "does not exist"),
        ("cut.safetensors", b"\x10\x00\x00", "cannot be read"),
        ("cut.pth", b"PK\x03\x04", "damaged"),
        ("text.pt", b"hello", "damaged"),
    ],
)
def test_bad_files_are_named(
    tmp_path: Path, name: str, content: bytes | None, said: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=said) as caught:
        load(section(str(tmp_path / name)))
    assert str(tmp_path / name) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("content", [{"epoch": 3}, [1, 2], {"state_dict": {}}])
def test_a_file_without_tensors_is_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(ModelError, match="without tensors"):
        load(section(str(tmp_path / "w.pt")))


def test_adapted_first_convolution_keeps_the_magnitude_of_the_features() -> None:
    kernel = torch.rand(4, 3, 7, 7, dtype=torch.float64)
    grey = torch.rand(1, 1, 20, 20, dtype=torch.float64)
    expected = nn.functional.conv2d(grey.expand(1, 3, 20, 20), kernel)
    for channels in (1, 3, 6):
        adapted = adapt(kernel, torch.Size((4, channels, 7, 7)), channels)
        assert adapted is not None
        found = nn.functional.conv2d(grey.expand(1, channels, 20, 20), adapted)
        torch.testing.assert_close(found, expected)
    assert adapt(torch.rand(4, 64, 3, 3), torch.Size((4, 2, 3, 3)), 2) is None
    assert adapt(kernel, torch.Size((5, 3, 7, 7)), 3) is None
