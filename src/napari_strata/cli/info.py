"""``info`` of a model: what it is, in words."""

from __future__ import annotations

from pathlib import Path


def describe_model(path: Path) -> list[str]:
    """Lines about a model, a run or a cross-validation. Raises `ModelError` when there is none."""
    from napari_strata.models.ensemble import load_models

    models = load_models(path)
    model = models.models[0]
    spec = model.spec
    best, what = model.best, "model" if len(models.models) == 1 else models.describe()
    numbers = sum(weights.numel() for weights in model.weights.values())
    lines = [
        f"{what} {path}: recipe {model.recipe.name}, trained {model.created}, {len(model.history)} epochs",
        f"  network: {spec.network.kind}, {spec.in_channels} channels in, {numbers / 1e6:.2f} M numbers",
        f"  trained on: {spec.dtype}, pixel size {_pixel_size(spec.pixel_size, spec.pixel_unit)}",
        *(f"  {note}" for note in spec.notes),
        *(
            f"  class {r['index']}: {r['name']}, value {r['value']}, {r['color']}"
            for r in spec.classes.table()
        ),
    ]
    return lines + (
        [f"  validation: mean IoU {best.mean_iou:.3f} in epoch {best.epoch}"]
        if best
        else []
    )


def _pixel_size(sizes: dict[str, float], unit: str) -> str:
    if unit == "pixel" and set(sizes.values()) <= {1.0}:
        return "unknown"
    return ", ".join(f"{axis} {size:g} {unit}" for axis, size in sizes.items())
