"""Models that predict together: the mean of their probabilities is taken.

Wherever a model is expected, several may be given, or the folder of a cross-validation,
which stands for the models of its folds.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from napari_strata.core.errors import ModelError, RunError
from napari_strata.core.normalization import ResolvedNormalization, Scale
from napari_strata.core.runs import MODEL_FILE, CrossvalFolder
from napari_strata.core.spec import ModelSpec
from napari_strata.models.model import Model

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Ensemble:
    """Models, one or more, whose probabilities are averaged.

    Each member's logits are divided by its own temperature, and each sees the image as
    it was trained to: networks, normalisation and tiles may differ. Classes and
    channels must not.

    Parameters
    ----------
    models
        the members. Their order changes no label.
    names
        of the members, for messages.
    folds
        true when they are the folds of one cross-validation.

    Raises
    ------
    ModelError
        when there is none, or they differ in classes, label values, channels or axes;
        each difference is named.
    """

    models: tuple[Model, ...]
    names: tuple[str, ...] = ()
    folds: bool = False

    def __post_init__(self) -> None:
        if not self.models:
            raise ModelError("found no model; give at least one.")
        if not self.names:
            names = [f"model {number}" for number in range(1, len(self.models) + 1)]
            object.__setattr__(self, "names", tuple(names))
        differences = _describe_differences(self.models, self.names)
        if differences:
            raise ModelError(
                f"these models cannot predict together: {'; '.join(differences)}. Give "
                "models of the same classes and channels."
            )

    def __len__(self) -> int:
        return len(self.models)

    @property
    def spec(self) -> ModelSpec:
        """Spec of the first member.

        Its classes, their colours and the channels are those of all members; the rest
        is its own.
        """
        return self.models[0].spec

    @cached_property
    def ordered(self) -> tuple[Model, ...]:
        """The members in an order that depends on the models only, as sums do."""
        if len(self) == 1:
            return self.models
        return tuple(sorted(self.models, key=lambda model: model.digest))

    @cached_property
    def digest(self) -> str:
        """Sixteen hexadecimal digits that identify what the members predict.

        Of one model, its own.
        """
        if len(self) == 1:
            return self.models[0].digest
        digests = " ".join(model.digest for model in self.ordered)
        return hashlib.sha256(digests.encode()).hexdigest()[:16]

    def describe(self) -> str:
        """``1 model``, ``3 models`` or ``5 models (cross-validation)``."""
        text = "1 model" if len(self) == 1 else f"{len(self)} models"
        return f"{text} (cross-validation)" if self.folds else text

    def averaging(self, tta: bool, *, ortho: bool = False) -> list[str]:
        """Say in one sentence over what probabilities are averaged.

        No sentence for one model that sees the image once.
        """
        parts = []
        if len(self) > 1:
            parts.append(f"over {self.describe()}")
        if tta:
            parts.append("over flips and turns (8 times the work)")
        if ortho:
            parts.append("over XY, XZ and YZ planes (3 times the work)")
        if not parts:
            return []
        return [f"probabilities are averaged {' and '.join(parts)}"]

    def scales(self, samples: Sequence[Array], dtype: Any) -> list[Scale]:
        """The scale of an image for each member, in the order of `ordered`.

        Parameters
        ----------
        samples, dtype
            of the image, see `Image.samples`.
        """
        values = np.concatenate(samples, axis=1)
        scales: dict[ResolvedNormalization, Scale] = {}
        normalizations = [model.spec.normalization for model in self.ordered]
        for normalization in normalizations:
            if normalization not in scales:
                scales[normalization] = normalization.scale_for(values, dtype)
        return [scales[normalization] for normalization in normalizations]


AnyModel: TypeAlias = (
    Model | Ensemble | str | Path | Sequence[Model | Ensemble | str | Path]
)
"""A model, a model file, a run or cross-validation folder, or several of these."""


def load_models(models: AnyModel) -> Ensemble:
    """Load the models that `models` stands for.

    Raises
    ------
    ModelError
        when one is missing or cannot be read, a fold of a cross-validation has no model
        yet, or they do not go together.
    """
    if isinstance(models, Ensemble):
        return models
    items: list[Model | Ensemble | str | Path]
    if isinstance(models, (Model, str, os.PathLike)):
        items = [models]
    else:
        items = list(models)
    members = [member for item in items for member in _load_members(item)]
    folds = len(items) == 1 and _is_folds(items[0])
    return Ensemble(
        tuple(model for _, model in members),
        _distinct_names([name for name, _ in members]),
        folds,
    )


def _is_folds(item: Model | Ensemble | str | Path) -> bool:
    """True for the folds of a cross-validation."""
    if isinstance(item, Ensemble):
        return item.folds
    return not isinstance(item, Model) and is_crossval(item)


def is_crossval(path: str | Path) -> bool:
    """Tell if a path is the folder of a cross-validation, or its ``crossval.json``."""
    return CrossvalFolder(path).exists


def fold_folders(path: str | Path) -> list[Path]:
    """List the run folders of a cross-validation's folds.

    Raises
    ------
    ModelError
        If ``crossval.json`` cannot be read, or folds have no model yet, naming them.
    """
    study = CrossvalFolder(path)
    try:
        runs = [study.fold(str(name)) for name in study.read()["folds"]]
    except (RunError, KeyError, TypeError) as error:
        raise ModelError(
            f"{study.file}: cannot be read ({error}); give the run folders of the "
            "folds instead."
        ) from None
    if not runs:
        raise ModelError(f"{study.file}: found no fold named there.")
    if missing := [run.path.name for run in runs if not run.has_model]:
        raise ModelError(
            f"{study.path}: found no model in {', '.join(missing)} (of {len(runs)} "
            "folds); let the cross-validation go on to its end by the same command "
            "again, or give the finished folds one by one."
        )
    return [run.path for run in runs]


def _load_members(item: Model | Ensemble | str | Path) -> list[tuple[str, Model]]:
    """Names (for a file or folder its path) and models."""
    if isinstance(item, Model):
        return [("", item)]
    if isinstance(item, Ensemble):
        return list(zip(item.names, item.models, strict=True))
    if is_crossval(item):
        return [(str(folder), Model.load(folder)) for folder in fold_folders(item)]
    return [(str(item), Model.load(Path(item).expanduser()))]


def _distinct_names(paths: Sequence[str]) -> tuple[str, ...]:
    """Short names of paths; the whole path where two would be alike.

    Models without a path are numbered.
    """
    short_names = []
    for text in paths:
        path = Path(text)
        name = path.name
        if path.name == MODEL_FILE:
            name = path.parent.name or text
        short_names.append(name)
    names = []
    for number, (name, path_text) in enumerate(
        zip(short_names, paths, strict=True), start=1
    ):
        if short_names.count(name) > 1:
            name = path_text
        names.append(name or f"model {number}")
    return tuple(names)


def _describe_differences(models: Sequence[Model], names: Sequence[str]) -> list[str]:
    """Describe facts that differ but must not.

    Example: ``classes: 'a' has pore, clay; 'b' has pore, quartz``.
    """
    rows = [_shared_facts(model.spec, models[0].spec) for model in models]
    differences = []
    for label in rows[0]:
        names_by_fact: dict[str, list[str]] = {}
        for name, row in zip(names, rows, strict=True):
            names_by_fact.setdefault(row[label], []).append(repr(name))
        if len(names_by_fact) == 1:
            continue
        parts = []
        for fact, owners in names_by_fact.items():
            verb = "has" if len(owners) == 1 else "have"
            parts.append(f"{_enumerate_names(owners)} {verb} {fact}")
        differences.append(f"{label}: {'; '.join(parts)}")
    return differences


def _shared_facts(spec: ModelSpec, first: ModelSpec) -> dict[str, str]:
    """Facts that must be the same in all members, in words.

    Other names for the channels do no harm; the same names in another order would mix
    the channels up.
    """
    channel_names = first.channel_names
    if sorted(spec.channel_names) == sorted(first.channel_names):
        channel_names = spec.channel_names
    return {
        "classes": ", ".join(spec.classes.names),
        "label values": ", ".join(map(str, spec.classes.values)),
        "channels": str(spec.in_channels),
        "neighbours": str(spec.neighbours),
        "order of channels": ", ".join(channel_names),
        "axes": spec.axes,
    }


def _enumerate_names(names: Sequence[str]) -> str:
    """Names as ``a, b and c``; of many, the first three and the number of others."""
    items = list(names)
    if len(items) > 4:
        items = [*items[:3], f"{len(items) - 3} more"]
    if len(items) == 1:
        return items[0]
    return f"{', '.join(items[:-1])} and {items[-1]}"
