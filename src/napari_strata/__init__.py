"""napari-strata: train and run semantic segmentation networks on image stacks.

The names below are the whole public interface. Each is loaded on first use (PEP 562), so that importing this package
costs nothing and needs neither torch nor Qt.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from napari_strata.classes import ClassMap as ClassMap
    from napari_strata.ensemble import Ensemble as Ensemble
    from napari_strata.ensemble import load_models as load_models
    from napari_strata.errors import StrataError as StrataError
    from napari_strata.evaluation.evaluate import evaluate as evaluate
    from napari_strata.evaluation.evaluate import score_labels as score_labels
    from napari_strata.image import AnnotatedImage as AnnotatedImage
    from napari_strata.image import Image as Image
    from napari_strata.image import LabelImage as LabelImage
    from napari_strata.inference.predict import (
        estimate_prediction as estimate_prediction,
    )
    from napari_strata.inference.predict import iter_predict as iter_predict
    from napari_strata.inference.predict import predict as predict
    from napari_strata.io import read_image as read_image
    from napari_strata.io import read_labels as read_labels
    from napari_strata.io import read_pairs as read_pairs
    from napari_strata.io import write_labels as write_labels
    from napari_strata.metrics import ConfusionMatrix as ConfusionMatrix
    from napari_strata.model import Model as Model
    from napari_strata.networks import build_network as build_network
    from napari_strata.objects.pieces import find_objects as find_objects
    from napari_strata.objects.table import region_table as region_table
    from napari_strata.pages.write import write_page as write_page
    from napari_strata.recipe import Recipe as Recipe
    from napari_strata.recipes import list_recipes as list_recipes
    from napari_strata.recipes import load_recipe as load_recipe
    from napari_strata.run import RunFolder as RunFolder
    from napari_strata.spec import ModelSpec as ModelSpec
    from napari_strata.spec import resolve as resolve
    from napari_strata.training.crossval import crossval as crossval
    from napari_strata.training.crossval import iter_crossval as iter_crossval
    from napari_strata.training.loop import iter_train as iter_train
    from napari_strata.training.loop import train as train
    from napari_strata.training.start import fine_tuning_recipe as fine_tuning_recipe
    from napari_strata.training.tune import iter_tune as iter_tune
    from napari_strata.training.tune import tune as tune

_HOMES = {
    "AnnotatedImage": "image",
    "ClassMap": "classes",
    "ConfusionMatrix": "metrics",
    "Ensemble": "ensemble",
    "Image": "image",
    "LabelImage": "image",
    "Model": "model",
    "ModelSpec": "spec",
    "Recipe": "recipe",
    "RunFolder": "run",
    "StrataError": "errors",
    "build_network": "networks",
    "crossval": "training.crossval",
    "estimate_prediction": "inference.predict",
    "evaluate": "evaluation.evaluate",
    "find_objects": "objects.pieces",
    "fine_tuning_recipe": "training.start",
    "iter_crossval": "training.crossval",
    "iter_predict": "inference.predict",
    "iter_train": "training.loop",
    "iter_tune": "training.tune",
    "list_recipes": "recipes",
    "load_models": "ensemble",
    "load_recipe": "recipes",
    "predict": "inference.predict",
    "read_image": "io",
    "read_labels": "io",
    "read_pairs": "io",
    "region_table": "objects.table",
    "resolve": "spec",
    "score_labels": "evaluation.evaluate",
    "train": "training.loop",
    "tune": "training.tune",
    "write_labels": "io",
    "write_page": "pages.write",
}

__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("napari-strata")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
