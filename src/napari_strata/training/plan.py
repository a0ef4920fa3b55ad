"""Plan of a training: all decisions before the first step. Writes nothing.

The plan is for a new run, or for one that continues.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from napari_strata.core.classes import ClassMap
from napari_strata.core.errors import LabelError, RecipeError, RunError
from napari_strata.core.events import Message
from napari_strata.core.image import AnnotatedImage, as_pairs
from napari_strata.core.recipe import Recipe, differences
from napari_strata.core.recipes import load_recipe
from napari_strata.core.runs import RunFolder
from napari_strata.core.spec import ModelSpec, find_classes, resolve
from napari_strata.data.neighbours import pairs_with_neighbours
from napari_strata.data.regions import (
    LabelledRegion,
    count_labels,
    find_nonfinite,
    join_names,
    label_counts,
    labelled_regions,
)
from napari_strata.data.split import Split, split_given, split_pairs

MAY_CHANGE = (
    "training.epochs",
    "training.early_stopping",
    "training.precision",
    "training.batch_size",
)
"""What may differ from the recipe that a run was started with when it goes on."""


BOX = {"Z": "planes", "Y": "rows", "X": "columns"}
"""Names of the sides of a part's box in ``data.json``.

Planes of a 3D network's only.
"""


@dataclass(frozen=True)
class TrainingJob:
    """Arguments of a training; see `iter_train`.

    Parameters
    ----------
    split
        what trains and what validates, where that is decided already, as in
        cross-validation; its parts are parts of `pairs`, counted by `classes`. A run
        that goes on keeps the split that it has.
    """

    recipe: Any
    pairs: AnnotatedImage | Sequence[AnnotatedImage]
    out: Any
    validation: AnnotatedImage | Sequence[AnnotatedImage] | None = None
    classes: ClassMap | None = None
    unlabelled: Sequence[int] = ()
    overrides: Mapping[str, Any] | None = None
    device: str = "auto"
    resume: bool = False
    extend: int = 0
    split: Split | None = None


@dataclass(frozen=True)
class Plan:
    """Data, spec and split of a run.

    Parameters
    ----------
    counts
        labelled training pixels of each class.
    fingerprint
        digest of images, labels and split.
    """

    recipe: Recipe
    spec: ModelSpec
    training: list[LabelledRegion]
    validation: list[LabelledRegion]
    text: str
    counts: tuple[int, ...]
    fingerprint: str
    pairs: list[AnnotatedImage] = field(repr=False)
    messages: tuple[Message, ...] = ()

    def with_epochs(self, epochs: int) -> Plan:
        """Return the plan with another number of epochs."""
        return replace(
            self, recipe=self.recipe.with_overrides({"training.epochs": epochs})
        )

    def record(self) -> dict[str, Any]:
        """Build the content of ``data.json``.

        It has sources, split, classes, spec and fingerprint, as plain data.
        """
        numbers = {id(pair): i for i, pair in enumerate(self.pairs)}

        def row(part: LabelledRegion) -> dict[str, Any]:
            box = {
                BOX[a]: [along.start, along.stop]
                for a, along in zip(part.axes, part.box, strict=True)
            }
            return {
                "name": part.name,
                "pair": numbers[id(part.pair)],
                "index": dict(part.index),
            } | box

        return {
            "fingerprint": self.fingerprint,
            "classes": self.spec.classes.table(),
            "unlabelled": list(self.spec.classes.unlabelled),
            "pairs": [
                {
                    "name": pair.name,
                    "images": pair.image.source,
                    "labels": pair.labels.source,
                }
                | _form(pair)
                for pair in self.pairs
            ],
            "split": self.text,
            "training": [row(part) for part in self.training],
            "validation": [row(part) for part in self.validation],
            "spec": self.spec.model_dump(mode="json"),
        }


def axes_of(recipe: Recipe) -> str:
    """The axes of what a recipe's network sees at a time.

    ``YX``, or ``ZYX`` where it is 3D.
    """
    return recipe.network.axes


def plan_new(job: TrainingJob) -> Plan:
    """Decide what a new run needs.

    Raises
    ------
    RecipeError, ImageError, LabelError
        when recipe and data do not make a training.
    """
    recipe = load_recipe(job.recipe).with_overrides(job.overrides)
    pairs = pairs_with_neighbours(as_pairs(job.pairs), recipe.patches.neighbours)
    held = pairs_with_neighbours(
        as_pairs(job.validation or []), recipe.patches.neighbours
    )
    # Validation labels count: a value that stands there alone is a class that training
    # lacks, and is named as such.
    classes = job.classes or find_classes([*pairs, *held], job.unlabelled)
    spec = resolve(recipe, pairs, classes=classes, unlabelled=job.unlabelled)
    if len(spec.classes) < 2:
        raise LabelError(
            f"found one class only, {spec.classes.names[0]!r}; a network learns to tell"
            " classes apart: label at least two, or take a value out of those that are"
            " unlabelled."
        )
    if job.split is not None:
        split = (
            _of_pairs(job.split, as_pairs(job.pairs), pairs)
            if recipe.patches.neighbours
            else job.split
        )
    elif job.validation is None:
        section = recipe.training
        split = split_pairs(
            pairs,
            fraction=section.validation,
            seed=section.seed,
            classes=spec.classes,
            axes=spec.axes,
            strokes_train=recipe.network.is_fitted,
        )
    else:
        split = split_given(pairs, held, spec.classes, spec.axes)
        pairs = [*pairs, *held]
    return _plan(recipe, spec, split, pairs, notes=spec.notes)


def plan_resumed(job: TrainingJob, run: RunFolder) -> Plan:
    """Take up what `run` was started with.

    Its recipe, its spec and its split, which never changes.

    Pairs that the run does not know are added to training, whole; pairs that are gone
    are left out and named.

    Raises
    ------
    RecipeError
        when an override changes more than `MAY_CHANGE`.
    RunError
        when none of the images is known to the run, or its ``data.json`` is damaged.
    """
    stored, record = run.recipe, run.read_json("data.json")
    recipe = stored.with_overrides(job.overrides)
    if forbidden := [
        key for key in differences(stored, recipe) if not key.startswith(MAY_CHANGE)
    ]:
        raise RecipeError(
            f"{', '.join(forbidden)} cannot change when a run goes on; start a new run,"
            f" or change only {', '.join(MAY_CHANGE)}."
        )
    spec = ModelSpec.model_validate(record["spec"])
    held = pairs_with_neighbours(as_pairs(job.validation or []), spec.neighbours)
    pairs = pairs_with_neighbours(as_pairs(job.pairs), spec.neighbours)
    known_pairs, added = _recognise(record["pairs"], [*pairs, *held])
    if not known_pairs:
        raise RunError(
            f"{run.path}: none of the images given belongs to this run; give those it"
            " was started with."
        )
    if stray := [pair.name for pair in held if pair in added]:
        raise RunError(
            f"{run.path}: {join_names(stray)} was not validated on before; a run keeps"
            " its validation images."
        )
    split = Split(
        training=_parts(record["training"], known_pairs, spec)
        + (labelled_regions(added, spec.classes, spec.axes) if added else []),
        validation=_parts(record["validation"], known_pairs, spec),
        text=record["split"],
        warnings=tuple(_gone(record["pairs"], known_pairs)),
    )
    if record["validation"] and not split.validation:
        raise RunError(
            f"{run.path}: the validation images of this run are missing; give them"
            " again (--val)."
        )
    plan = _plan(
        recipe, spec, split, [*known_pairs.values(), *added], notes=_news(added)
    )
    if plan.fingerprint != record["fingerprint"]:
        note = (
            f"the training data changed: fingerprint {record['fingerprint']} ->"
            f" {plan.fingerprint}"
        )
        plan = replace(plan, messages=(*plan.messages, Message(note)))
    if isinstance(job.recipe, str) and job.recipe not in ("default", stored.name):
        note = (
            f"the run goes on with its own recipe, {stored.name!r}; {job.recipe!r} is"
            " not used"
        )
        plan = replace(plan, messages=(*plan.messages, Message(note, "warning")))
    return plan


def _plan(
    recipe: Recipe,
    spec: ModelSpec,
    split: Split,
    pairs: list[AnnotatedImage],
    *,
    notes: Sequence[str],
) -> Plan:
    warnings = [*find_nonfinite(pairs), *_flat(pairs), *split.warnings]
    if recipe.training.early_stopping is not None and not split.validation:
        warnings.append(
            "early stopping needs validation images and is off: nothing is held back"
        )
    counts = label_counts(split.training, spec.classes).sum(axis=0)
    return Plan(
        recipe=recipe,
        spec=spec,
        training=split.training,
        validation=split.validation,
        text=split.text,
        counts=tuple(int(n) for n in counts),
        fingerprint=data_fingerprint(split, pairs, spec.classes),
        pairs=pairs,
        messages=(
            *map(Message, (*_described(pairs), *notes)),
            *(Message(text, "warning") for text in warnings),
        ),
    )


def _of_pairs(
    split: Split, plain: Sequence[AnnotatedImage], pairs: Sequence[AnnotatedImage]
) -> Split:
    """A split of the pairs `plain` as one of `pairs`, which are those with their
    neighbours.
    """
    dressed = {id(old): new for old, new in zip(plain, pairs, strict=True)}
    training, validation = (
        [replace(part, pair=dressed[id(part.pair)]) for part in side]
        for side in (split.training, split.validation)
    )
    return replace(split, training=training, validation=validation)


def _described(pairs: Sequence[AnnotatedImage]) -> list[str]:
    """What was read, in words, so that axes taken for others are seen.

    The first image of each kind, and each note.
    """
    kinds = {
        (pair.image.axes, str(pair.image.dtype), pair.image.notes): pair.image
        for pair in reversed(pairs)
    }
    lines = [
        line
        for image in reversed(kinds.values())
        for line in (image.describe(), *image.notes)
    ]
    more = len(pairs) - len(kinds)
    alike = [
        f"and {more} more image{'' if more == 1 else 's'} like"
        f" {'this' if len(kinds) == 1 else 'these'}"
    ]
    return [*dict.fromkeys(lines), *(alike if more else [])]


def _flat(pairs: Sequence[AnnotatedImage]) -> list[str]:
    """A warning for images of one grey value, from which nothing is learnt."""
    names = [
        pair.name
        for pair in pairs
        if not any(_contrast(samples) for samples in pair.image.samples())
    ]
    return (
        [
            "found one grey value only, from which nothing can be learnt, in:"
            f" {join_names(names)}"
        ]
        if names
        else []
    )


def _contrast(samples: Any) -> bool:
    finite = samples[np.isfinite(samples)]
    return bool(finite.size and finite.min() != finite.max())


def _form(pair: AnnotatedImage) -> dict[str, Any]:
    image = pair.image
    return {"axes": image.axes, "shape": list(image.shape), "dtype": str(image.dtype)}


def data_fingerprint(
    split: Split, pairs: Sequence[AnnotatedImage], classes: ClassMap
) -> str:
    """Sixteen hexadecimal digits of sampled grey values, of every part's class
    counts and of where the parts lie.
    """
    state = hashlib.sha256()
    for pair in pairs:
        state.update(repr(_form(pair)).encode())
        for samples in (*pair.image.samples(), *pair.labels.samples()):
            state.update(samples.tobytes())
    for parts in (split.training, split.validation):
        for part, counts in zip(parts, label_counts(parts, classes), strict=True):
            state.update(repr((dict(part.index), *part.box, counts.tolist())).encode())
    return state.hexdigest()[:16]


def _recognise(
    rows: Sequence[Mapping[str, Any]], pairs: Sequence[AnnotatedImage]
) -> tuple[dict[int, AnnotatedImage], list[AnnotatedImage]]:
    """Pairs that the run knows, by their number in it, and those it does not.

    Equal ones count in their order.
    """
    open_rows = dict(enumerate(rows))
    known_pairs, added = {}, []
    for pair in pairs:
        pair_row = {"name": pair.name} | _form(pair)
        number = next(
            (n for n, row in open_rows.items() if pair_row.items() <= row.items()), None
        )
        if number is None:
            added.append(pair)
        else:
            known_pairs[number] = pair
            del open_rows[number]
    return dict(sorted(known_pairs.items())), added


def _parts(
    rows: Sequence[Mapping[str, Any]],
    known: Mapping[int, AnnotatedImage],
    spec: ModelSpec,
) -> list[LabelledRegion]:
    parts = [
        LabelledRegion(
            known[row["pair"]],
            row["index"],
            tuple(slice(*row[BOX[a]]) for a in spec.axes),
            row["name"],
        )
        for row in rows
        if row["pair"] in known
    ]
    return [count_labels(part, spec.classes) for part in parts]


def _gone(
    rows: Sequence[Mapping[str, Any]], known: Mapping[int, AnnotatedImage]
) -> list[str]:
    names = [row["name"] for number, row in enumerate(rows) if number not in known]
    return (
        [f"images of this run that are gone, and train no more: {join_names(names)}"]
        if names
        else []
    )


def _news(added: Sequence[AnnotatedImage]) -> list[str]:
    names = [pair.name for pair in added]
    return (
        [f"images that are new to this run, added to training: {join_names(names)}"]
        if names
        else []
    )
