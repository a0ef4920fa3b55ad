"""Training and prediction with little memory end with a message, and lose nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import gc, json, resource, sys
from pathlib import Path

import numpy as np
import torch

import napari_strata as ns
from helpers import easy_pair, tiny_recipe

torch.set_num_threads(1)
# oneDNN crashes, or refuses a convolution ever after, where it gets no memory itself.
torch.backends.mkldnn.enabled = False
folder = Path(sys.argv[1])


def run(megabytes, work):
    gc.collect()
    usual = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    now = pages * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + megabytes * 2**20, usual[1]))
    try:
        work()
        text = "finished"
    except ns.StrataError as error:
        text = str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, usual)
    return text


pair = easy_pair((4, 256, 256))
run_folder = folder / "run"
ns.train(tiny_recipe(), pair, out=run_folder, device="cpu")
before = (run_folder / "model.safetensors").read_bytes()
image = ns.Image(np.tile(pair.image.data, (1, 8, 8)), "ZYX")
wide = tiny_recipe(
    patches__size=256, training__batch_size=16, network__widths=[16, 32]
)
texts = {"train": [], "predict": []}
for megabytes in (5, 20, 60):
    new = folder / f"new {megabytes}"
    texts["train"].append(
        run(megabytes, lambda: ns.train(wide, pair, out=new, device="cpu"))
    )
    out = folder / f"{megabytes}.tif"
    texts["predict"].append(
        run(megabytes, lambda: ns.predict(run_folder, image, out=out, device="cpu"))
    )
    assert not out.exists() or texts["predict"][-1] == "finished"
assert (run_folder / "model.safetensors").read_bytes() == before
out = folder / "20.tif"
ns.predict(run_folder, image, out=out, device="cpu")
expected = ns.predict(run_folder, image, device="cpu")
assert np.array_equal(ns.read_labels(out).data, expected.data)
print(json.dumps(texts))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS and /proc")
def test_too_little_memory_is_reported(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[1],
    )
    assert done.returncode == 0, done.stderr
    texts = json.loads(done.stdout.splitlines()[-1])
    for text in texts["train"]:
        assert "memory" in text
    for text in texts["predict"]:
        assert "memory" in text or text == "finished"
    assert "memory" in texts["predict"][0]
