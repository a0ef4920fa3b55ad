"""Ensemble: models that predict together; the answer is the mean of their probabilities.

Wherever a model is asked for, several may be given, or the folder of a cross-validation, which stands for the models of
its folds.
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
    """Models that predict together, one or more: the mean of their probabilities is taken.

    Each member's logits are divided by its own temperature, and each sees the image as it was trained to: networks,
    normalisation and tiles may differ. Classes and channels must not.

    Parameters
    ----------
    models
        the members. Their order changes no label.
    names
        of the members, for messages.
    folds
        whether they are the folds of one cross-validation.

    Raises
    ------
    ModelError
        when there is none, or they differ in classes, label values, channels or axes; each difference is named.
    """

    models: tuple[Model, ...]
    names: tuple[str, ...] = ()
    folds: bool = False

    def __post_init__(self) -> None:
        if not self.models:
            raise ModelError("found no model; give at least one.")
        if not self.names:
            object.__setattr__(
                self,
                "names",
                tuple(f"model {n}" for n in range(1, len(self.models) + 1)),
            )
        if differences := _differences(self.models, self.names):
            raise ModelError(
                f"these models cannot predict together: {'; '.join(differences)}. Give models of the same classes and "
                "channels."
            )

    def __len__(self) -> int:
        return len(self.models)

    @property
    def spec(self) -> ModelSpec:
        """The first member's: classes, their colours and the channels serve all, the rest only that member."""
        return self.models[0].spec

    @cached_property
    def ordered(self) -> tuple[Model, ...]:
        """The members in an order that does not depend on how they were given, so that sums do not either."""
        return (
            self.models
            if len(self) == 1
            else tuple(sorted(self.models, key=lambda model: model.digest))
        )

    @cached_property
    def digest(self) -> str:
        """Sixteen hexadecimal digits that differ for groups that can predict differently; of one model, its own."""
        if len(self) == 1:
            return self.models[0].digest
        return hashlib.sha256(
            " ".join(model.digest for model in self.ordered).encode()
        ).hexdigest()[:16]

    def describe(self) -> str:
        """``1 model``, ``3 models`` or ``5 models (cross-validation)``."""
        return f"{len(self)} model{'' if len(self) == 1 else 's'}{' (cross-validation)' if self.folds else ''}"

    def averaging(self, tta: bool, *, ortho: bool = False) -> list[str]:
        """Over what probabilities are averaged, in one sentence; none of one model that sees the image once."""
        over = [f"over {self.describe()}"] if len(self) > 1 else []
        over += ["over flips and turns (8 times the work)"] if tta else []
        over += ["over XY, XZ and YZ planes (3 times the work)"] if ortho else []
        return [f"probabilities are averaged {' and '.join(over)}"] if over else []

    def scales(self, samples: Sequence[Array], dtype: Any) -> list[Scale]:
        """The scale of an image of this dtype for each member, as in `ordered`, from its `Image.samples`."""
        values, found = (
            np.concatenate(samples, axis=1),
            dict[ResolvedNormalization, Scale](),
        )
        for kind in (kinds := [model.spec.normalization for model in self.ordered]):
            if kind not in found:
                found[kind] = kind.scale_for(values, dtype)
        return [found[kind] for kind in kinds]


AnyModel: TypeAlias = (
    Model | Ensemble | str | Path | Sequence[Model | Ensemble | str | Path]
)
"""A model, a model file, a run folder, a cross-validation folder, or several of these."""


def load_models(models: AnyModel) -> Ensemble:
    """The models that `models` stands for; of one model, a group of one.

    Raises
    ------
    ModelError
        when one is missing or cannot be read, a fold of a cross-validation has no model yet, or they do not go
        together.
    """
    if isinstance(models, Ensemble):
        return models
    given = [models] if isinstance(models, (Model, str, os.PathLike)) else list(models)
    found = [member for one in given for member in _members(one)]
    crossval = (
        len(given) == 1
        and not isinstance(given[0], (Model, Ensemble))
        and is_crossval(given[0])
    )
    folds = crossval or (
        len(given) == 1 and isinstance(given[0], Ensemble) and given[0].folds
    )
    return Ensemble(
        tuple(model for _, model in found),
        _told_apart([name for name, _ in found]),
        folds,
    )


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


def _members(given: Model | Ensemble | str | Path) -> list[tuple[str, Model]]:
    """Names (for a file or folder its path) and models."""
    if isinstance(given, Model):
        return [("", given)]
    if isinstance(given, Ensemble):
        return list(zip(given.names, given.models, strict=True))
    if is_crossval(given):
        return [(str(folder), Model.load(folder)) for folder in fold_folders(given)]
    return [(str(given), Model.load(Path(given).expanduser()))]


def _told_apart(paths: Sequence[str]) -> tuple[str, ...]:
    """Short names of paths: their last parts, or all of it where two are alike; models without one are counted."""
    short = [
        str(Path(path).parent.name or path)
        if Path(path).name == MODEL_FILE
        else Path(path).name
        for path in paths
    ]
    names = [
        one if short.count(one) == 1 else path
        for one, path in zip(short, paths, strict=True)
    ]
    return tuple(name or f"model {number}" for number, name in enumerate(names, 1))


def _differences(models: Sequence[Model], names: Sequence[str]) -> list[str]:
    """What differs that must not: ``classes: 'a' has pore, clay; 'b' has pore, quartz``."""
    rows = [_facts(model.spec, models[0].spec) for model in models]
    differences = []
    for what in rows[0]:
        having: dict[str, list[str]] = {}
        for name, row in zip(names, rows, strict=True):
            having.setdefault(row[what], []).append(repr(name))
        if len(having) > 1:
            told = (
                f"{_listed(who)} {'have' if len(who) > 1 else 'has'} {fact}"
                for fact, who in having.items()
            )
            differences.append(f"{what}: {'; '.join(told)}")
    return differences


def _facts(spec: ModelSpec, first: ModelSpec) -> dict[str, str]:
    """What must be the same in all members, in words."""
    classes = spec.classes
    # Other names for the channels do no harm; the same names in another order would mix the channels up.
    mixed = sorted(spec.channel_names) == sorted(first.channel_names)
    return {
        "classes": ", ".join(classes.names),
        "label values": ", ".join(map(str, classes.values)),
        "channels": str(spec.in_channels),
        "neighbours": str(spec.neighbours),
        "order of channels": ", ".join(
            spec.channel_names if mixed else first.channel_names
        ),
        "axes": spec.axes,
    }


def _listed(names: Sequence[str]) -> str:
    shown = [*names[:3], f"{len(names) - 3} more"] if len(names) > 4 else list(names)
    return f"{', '.join(shown[:-1])} and {shown[-1]}" if len(shown) > 1 else shown[0]
