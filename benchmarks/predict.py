"""Time to predict a 2048 x 2048 picture with a U-Net: ours and other programs.

    python benchmarks/predict.py [NAME]... [--model RUN] [--json FILE]

Contenders, each in a process of its own, with the same weights: a bare forward pass of
the whole picture, MONAI's sliding window (overlap .25, Gaussian), nnU-Net's predictor
(step .5, Gaussian, no mirroring), ours in float32 and bfloat16 and with each backend.
All give class indices of the whole picture. Contenders other than ours need ``pip
install -r benchmarks/requirements.txt``; what is not there is left out.

Without `--model`, a network is trained for a minute or two on a generated sandstone
first, so that its answers are those of a network and not of noise (kept in the
temporary folder). With names and `--json`, the other figures are those of the file.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from contest import Facts, arguments, contender, run, table, timed

import napari_strata as ns
from napari_strata.core.errors import RunError
from napari_strata.core.options import PredictOptions
from napari_strata.inference.build import build_predictor
from napari_strata.io.samples import sandstone

SIDE, TILE = 2048, 512
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def answers() -> Path:
    folder = Path(tempfile.gettempdir()) / "napari-strata-benchmark"
    folder.mkdir(exist_ok=True)
    return folder


def model(options: argparse.Namespace) -> ns.Model:
    """The network of the contest."""
    if options.model:
        return ns.Model.load(options.model)
    run_folder = answers() / "unet-resnet34"
    if not (run_folder / "model.safetensors").exists():
        overrides = {
            "network.encoder_weights": "none",
            "patches.size": 128,
            "patches.per_epoch": 400,
            "training.epochs": 12,
            "training.batch_size": 16,
            "normalization.grey_values": "physical",
            "augmentation.brightness": 0,
            "augmentation.contrast": 0,
        }
        ns.train(
            "unet-resnet34",
            sandstone((6, 256, 256), seed=0),
            out=run_folder,
            overrides=overrides,
        )
    return ns.Model.load(run_folder)


def picture(options: argparse.Namespace) -> np.ndarray[Any, Any]:
    """Grey values (C, 2048, 2048) float32, scaled as the model wants them."""
    loaded = model(options)
    image = sandstone((1, SIDE, SIDE), seed=7).image
    plane = image.read(next(iter(image.planes())))
    scale = loaded.spec.normalization.scale_for(image.samples(), image.dtype)
    return np.ascontiguousarray(scale.apply(plane), np.float32)


def network(
    options: argparse.Namespace, *, channels_last: bool = False
) -> torch.nn.Module:
    built = model(options).build(torch.device(DEVICE)).eval()
    return built.to(memory_format=torch.channels_last) if channels_last else built


def keep(name: str, labels: Any) -> None:
    np.save(answers() / f"labels {name}.npy", np.asarray(labels).astype(np.uint8))


def synchronised(call: Any) -> Any:
    def timed_call() -> Any:
        labels = call()
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        return labels

    return timed_call


def bare(options: argparse.Namespace, name: str, *, precision: str) -> Facts:
    """Run one forward pass of the whole picture; no labels leave the device."""
    from napari_strata.models.tiled import class_indices

    net = network(options, channels_last=True)
    image = (
        torch.from_numpy(picture(options))[None]
        .to(DEVICE)
        .contiguous(memory_format=torch.channels_last)
    )

    def forward() -> Any:
        with (
            torch.inference_mode(),
            torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=precision == "bf16"),
        ):
            return net(image)

    facts = timed(synchronised(forward), repeats=options.repeats)
    keep(name, class_indices(facts["answer"].float())[0].cpu())
    return facts | {"forwarded": 1.0}


@contender("eager float32, whole")
def eager(options: argparse.Namespace) -> Facts:
    """The reference: torch as it comes, NCHW, the whole picture at once."""
    net, image = network(options), torch.from_numpy(picture(options))[None].to(DEVICE)

    def forward() -> Any:
        with torch.inference_mode():
            return net(image)

    facts = timed(synchronised(forward), repeats=options.repeats)
    keep("reference", facts["answer"][0].argmax(0).cpu())
    return facts | {"forwarded": 1.0}


@contender("bare forward, float32")
def bare_fp32(options: argparse.Namespace) -> Facts:
    return bare(options, "bare forward, float32", precision="fp32")


@contender("bare forward, bfloat16")
def bare_bf16(options: argparse.Namespace) -> Facts:
    return bare(options, "bare forward, bfloat16", precision="bf16")


@contender("ours, tile 512, float32")
def ours_512(options: argparse.Namespace) -> Facts:
    return ours(options, "ours, tile 512, float32", precision="fp32", tile=TILE)


@contender("ours, tile 512, bfloat16")
def ours_512_bf16(options: argparse.Namespace) -> Facts:
    return ours(options, "ours, tile 512, bfloat16", precision="bf16", tile=TILE)


def ours(options: argparse.Namespace, name: str, **keywords: Any) -> Facts:
    """Predict as `predict` does, from grey values in memory to labels in memory."""
    from napari_strata.core.tiling import plan_tiles
    from napari_strata.models.allocator import kept_pages

    loaded = model(options)
    image = sandstone((1, SIDE, SIDE), seed=7).image
    plane = image.read(next(iter(image.planes())))
    predictor = build_predictor(loaded, PredictOptions(device=DEVICE, **keywords))
    scale = loaded.spec.normalization.scale_for(image.samples(), image.dtype)
    spec = predictor.spec
    tiles = plan_tiles((SIDE, SIDE), tile=spec.tile, halo=spec.halo, stride=spec.stride)
    forwarded = (
        sum(
            (t.read[0].stop - t.read[0].start) * (t.read[1].stop - t.read[1].start)
            for t in tiles
        )
        / SIDE**2
    )
    with kept_pages(DEVICE):
        facts = timed(lambda: predictor.predict(plane, scale), repeats=options.repeats)
        keep(name, facts["answer"][0])
    return facts | {"forwarded": forwarded}


@contender("ours, float32")
def ours_fp32(options: argparse.Namespace) -> Facts:
    return ours(options, "ours, float32", precision="fp32")


@contender("ours, bfloat16")
def ours_bf16(options: argparse.Namespace) -> Facts:
    return ours(options, "ours, bfloat16", precision="bf16")


def other(
    options: argparse.Namespace, name: str, backend: str, precision: str
) -> Facts | None:
    """Ours with another program for the network; its packages may be missing."""
    try:
        return ours(options, name, backend=backend, precision=precision)
    except RunError as error:
        print(error)
        return None


@contender("ours, ONNX Runtime, float32")
def ours_onnx(options: argparse.Namespace) -> Facts | None:
    return other(options, "ours, ONNX Runtime, float32", "onnx", "fp32")


@contender("ours, OpenVINO, float32")
def ours_openvino(options: argparse.Namespace) -> Facts | None:
    return other(options, "ours, OpenVINO, float32", "openvino", "fp32")


@contender("ours, OpenVINO, bfloat16")
def ours_openvino_bf16(options: argparse.Namespace) -> Facts | None:
    return other(options, "ours, OpenVINO, bfloat16", "openvino", "bf16")


@contender("MONAI .25, float32")
def monai(
    options: argparse.Namespace, name: str = "MONAI .25, float32", *, bf16: bool = False
) -> Facts | None:
    """As its documentation has it: four windows at a time, Gaussian weights."""
    try:
        from monai.inferers import sliding_window_inference
    except ImportError:
        return None
    net, image = network(options), torch.from_numpy(picture(options))[None]

    def predict() -> Any:
        with (
            torch.inference_mode(),
            torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=bf16),
        ):
            logits = sliding_window_inference(
                image.to(DEVICE),
                (TILE, TILE),
                4,
                net,
                overlap=0.25,
                mode="gaussian",
                device=torch.device(DEVICE),
            )
            return logits.argmax(1)[0].to(torch.uint8).cpu()

    facts = timed(predict, repeats=options.repeats)
    keep(name, facts["answer"])
    return facts | {"forwarded": 25 * TILE**2 / SIDE**2}


@contender("MONAI .25, bfloat16")
def monai_bf16(options: argparse.Namespace) -> Facts | None:
    return monai(options, "MONAI .25, bfloat16", bf16=True)


@contender("nnU-Net .5, float32")
def nnunet(options: argparse.Namespace) -> Facts | None:
    """Run its sliding window around our network, without mirroring."""
    os.environ.setdefault("nnUNet_raw", str(answers()))
    os.environ.setdefault("nnUNet_preprocessed", str(answers()))
    os.environ.setdefault("nnUNet_results", str(answers()))
    try:
        from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    except ImportError:
        return None
    classes = len(model(options).spec.classes)
    predictor = nnUNetPredictor(
        tile_step_size=0.5,
        use_gaussian=True,
        use_mirroring=False,
        device=torch.device(DEVICE),
        allow_tqdm=False,
    )
    heads = SimpleNamespace(num_segmentation_heads=classes)
    predictor.manual_initialization(
        network(options),
        SimpleNamespace(get_label_manager=lambda _: heads),
        SimpleNamespace(patch_size=(TILE, TILE)),
        None,
        {},
        "none",
        None,
    )
    image = torch.from_numpy(picture(options))[:, None]

    def predict() -> Any:
        return (
            predictor.predict_sliding_window_return_logits(image)[:, 0]
            .argmax(0)
            .to(torch.uint8)
            .cpu()
        )

    facts = timed(predict, repeats=options.repeats)
    keep("nnU-Net .5, float32", facts["answer"])
    return facts | {"forwarded": 49 * TILE**2 / SIDE**2}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument(
        "--model", type=Path, help="a run folder or model file of one channel instead"
    )
    options = parser.parse_args()
    if not options.alone and not options.table:
        model(options)  # trained before the clock runs
    results = run(options)
    if not results:
        return
    reference = np.load(answers() / "labels reference.npy")
    slowest = results.get("MONAI .25, float32", {}).get("median")
    rows = []
    for name, facts in results.items():
        path = answers() / f"labels {name}.npy"
        same = (
            float(np.mean(np.load(path) == reference)) * 100 if path.exists() else 100.0
        )
        kind = "bfloat16" if "bfloat16" in name else "float32"
        floor = results.get(f"bare forward, {kind}", {}).get("median")
        rows.append(
            [
                name,
                facts["median"],
                f"{facts['least']:.2f}-{facts['most']:.2f}",
                slowest / facts["median"] if slowest else "-",
                facts["median"] / floor if floor else "-",
                facts["forwarded"],
                f"{same:.3f} %",
                f"{facts['peak']:.0f}",
            ]
        )
    head = [
        "",
        "seconds",
        "spread",
        "times MONAI .25",
        "of the bare forward",
        "forwarded",
        "labels as eager",
        "peak MB",
    ]
    print(table(head, rows))


if __name__ == "__main__":
    main()
