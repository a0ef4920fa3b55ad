"""napari-strata: train and run semantic segmentation networks on image stacks.

The names below are the whole public interface. Each is loaded on first use (PEP 562),
so that importing this package takes no time and needs neither torch nor Qt.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from napari_strata.core.classes import ClassMap as ClassMap
    from napari_strata.core.drift import Drift as Drift
    from napari_strata.core.errors import StrataError as StrataError
    from napari_strata.core.image import AnnotatedImage as AnnotatedImage
    from napari_strata.core.image import Image as Image
    from napari_strata.core.image import LabelImage as LabelImage
    from napari_strata.core.metrics import ConfusionMatrix as ConfusionMatrix
    from napari_strata.core.recipe import Recipe as Recipe
    from napari_strata.core.recipes import list_recipes as list_recipes
    from napari_strata.core.recipes import load_recipe as load_recipe
    from napari_strata.core.run_list import delete_run as delete_run
    from napari_strata.core.run_list import find_runs as find_runs
    from napari_strata.core.runs import RunFolder as RunFolder
    from napari_strata.core.spec import ModelSpec as ModelSpec
    from napari_strata.core.spec import resolve as resolve
    from napari_strata.evaluation.evaluate import evaluate as evaluate
    from napari_strata.evaluation.evaluate import score_labels as score_labels
    from napari_strata.export.nnunet import export_nnunet as export_nnunet
    from napari_strata.export.registry import export_model as export_model
    from napari_strata.inference.drift import check_drift as check_drift
    from napari_strata.inference.predict import (
        estimate_prediction as estimate_prediction,
    )
    from napari_strata.inference.predict import iter_predict as iter_predict
    from napari_strata.inference.predict import predict as predict
    from napari_strata.io import read_image as read_image
    from napari_strata.io import read_labels as read_labels
    from napari_strata.io import read_pairs as read_pairs
    from napari_strata.io import write_labels as write_labels
    from napari_strata.measure.measures import Measures as Measures
    from napari_strata.measure.measures import measure as measure
    from napari_strata.measure.object_table import region_table as region_table
    from napari_strata.measure.objects import find_objects as find_objects
    from napari_strata.models.ensemble import Ensemble as Ensemble
    from napari_strata.models.ensemble import load_models as load_models
    from napari_strata.models.model import Model as Model
    from napari_strata.networks import build_network as build_network
    from napari_strata.report.write import write_page as write_page
    from napari_strata.studies.crossval import crossval as crossval
    from napari_strata.studies.crossval import iter_crossval as iter_crossval
    from napari_strata.studies.tune import iter_tune as iter_tune
    from napari_strata.studies.tune import tune as tune
    from napari_strata.training.loop import iter_train as iter_train
    from napari_strata.training.loop import train as train
    from napari_strata.training.transfer import fine_tuning_recipe as fine_tuning_recipe

_MODULES = {
    "AnnotatedImage": "core.image",
    "ClassMap": "core.classes",
    "ConfusionMatrix": "core.metrics",
    "Drift": "core.drift",
    "Ensemble": "models.ensemble",
    "Image": "core.image",
    "LabelImage": "core.image",
    "Measures": "measure.measures",
    "Model": "models.model",
    "ModelSpec": "core.spec",
    "Recipe": "core.recipe",
    "RunFolder": "core.runs",
    "StrataError": "core.errors",
    "build_network": "networks",
    "check_drift": "inference.drift",
    "crossval": "studies.crossval",
    "delete_run": "core.run_list",
    "estimate_prediction": "inference.predict",
    "evaluate": "evaluation.evaluate",
    "export_model": "export.registry",
    "export_nnunet": "export.nnunet",
    "find_objects": "measure.objects",
    "find_runs": "core.run_list",
    "fine_tuning_recipe": "training.transfer",
    "iter_crossval": "studies.crossval",
    "iter_predict": "inference.predict",
    "iter_train": "training.loop",
    "iter_tune": "studies.tune",
    "list_recipes": "core.recipes",
    "load_models": "models.ensemble",
    "load_recipe": "core.recipes",
    "measure": "measure.measures",
    "predict": "inference.predict",
    "read_image": "io",
    "read_labels": "io",
    "read_pairs": "io",
    "region_table": "measure.object_table",
    "resolve": "core.spec",
    "score_labels": "evaluation.evaluate",
    "train": "training.loop",
    "tune": "studies.tune",
    "write_labels": "io",
    "write_page": "report.write",
}

__all__ = [*_MODULES, "__version__"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("napari-strata")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
