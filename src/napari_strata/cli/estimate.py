"""``predict --estimate``: what a prediction would take, said before any is made."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from napari_strata.core.options import PredictOptions


def show_estimates(
    models: Sequence[Path],
    inputs: Sequence[str],
    *,
    out: Path,
    options: PredictOptions,
    axes: str | None,
    as_json: bool,
) -> None:
    """Print time, memory and disk of each input on each device that is asked for."""
    from napari_strata.inference.batch import find_images
    from napari_strata.inference.build import build_ensemble_predictor
    from napari_strata.inference.predict import estimate_prediction
    from napari_strata.io import read_image
    from napari_strata.models.device import available_devices
    from napari_strata.models.ensemble import load_models

    every = [
        name for name in available_devices() if name != "cuda"
    ]  # which is the first of them
    loaded = load_models([*models])
    asked = [
        options.updated(device=name)
        for name in (every if options.device == "auto" else [options.device])
    ]
    ready = [(one, build_ensemble_predictor(loaded, one)) for one in asked]
    for path in find_images(inputs, labels_in=out):
        image = read_image(path, axes=axes)
        if not as_json:
            print(image.describe())
        for one, predictor in ready:
            found = estimate_prediction(
                loaded, image, out=out, options=one, predictor=predictor
            )
            facts = {"event": "Estimate", "source": str(path)} | asdict(found)
            print(json.dumps(facts) if as_json else f"  {found.describe()}")
