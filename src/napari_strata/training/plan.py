"""Plan of a training: all decisions before the first step.

A plan is for a new or a resumed run. Nothing is written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from napari_strata.core.classes import ClassMap
from napari_strata.core.errors import LabelError, RecipeError, RunError
from napari_strata.core.events import LabelsUpdated, Message
from napari_strata.core.image import AnnotatedImage, LabelImage, as_pairs
from napari_strata.core.recipe import Recipe, differences
from napari_strata.core.recipes import load_recipe
from napari_strata.core.runs import RunFolder
from napari_strata.core.spec import ModelSpec, find_classes, resolve
from napari_strata.core.text import format_count
from napari_strata.data.neighbours import pairs_with_neighbours
from napari_strata.data.regions import (
    LabelledRegion,
    count_labels,
    find_nonfinite,
    join_names,
    label_counts,
    labelled_regions,
)
from napari_strata.data.split import (
    Split,
    find_new_regions,
    split_given,
    split_pairs,
    warn_missing_classes,
)
from napari_strata.data.strokes import are_strokes
from napari_strata.data.trained_on import (
    CONTENT,
    EARLIER,
    Digests,
    Regions,
    regions_of_record,
    regions_of_start,
    without,
)
from napari_strata.training.suggestion import Suggestion, suggest_recipe

MAY_CHANGE = (
    "training.epochs",
    "training.early_stopping",
    "training.precision",
    "training.batch_size",
)
"""Keys of the recipe that may change when a run is resumed."""


SAME_SPLIT = ", as in "
"""Words before the run whose split a training keeps."""

BOX_KEYS = {"Z": "planes", "Y": "rows", "X": "columns"}
"""Keys in ``data.json`` of the box of a region; only 3D networks have planes."""


@dataclass(frozen=True)
class ChangedLabels:
    """Labels of a running training that have changed.

    Parameters
    ----------
    before
        The labels that the training uses.
    after
        The labels that take their place.
    """

    before: LabelImage
    after: LabelImage


@dataclass(frozen=True)
class TrainingTask:
    """Arguments of a training; see `iter_train`.

    Parameters
    ----------
    split
        Split into training and validation data, for cross-validation. Its regions are
        regions of `pairs`, counted by `classes`. A resumed run keeps its own split.
    take_labels
        Function that returns those labels of the given pairs that have changed since
        the last call, or None. It is called before each step.
    snapshot_s
        Seconds from one snapshot of the newest weights to the next, or to the end of an
        epoch; 0 for none.
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
    take_labels: Callable[[list[AnnotatedImage]], ChangedLabels | None] | None = None
    snapshot_s: float = 0.0

    def changed(self, plan: Plan) -> Plan | None:
        """Return the plan with labels that have changed; None if they have not.

        Errors as those of `Plan.with_labels`.
        """
        change = self.take_labels(plan.pairs) if self.take_labels else None
        return None if change is None else plan.with_labels(change)


@dataclass(frozen=True)
class Plan:
    """Data, spec and split of a run.

    Parameters
    ----------
    counts
        Labelled training pixels of each class.
    fingerprint
        Digest of images, labels and split.
    suggestion
        Another recipe, where that would suit the data better.
    left_out
        Names of planes with labels that are not used, beside what is held back.
    is_changed
        True if the images of a resumed run have other labels than when it stopped.
    digests
        Digests of the regions.
    earlier
        Regions that trained before and do not any more, as in ``data.json``; None if
        not known.
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
    suggestion: Suggestion | None = None
    left_out: tuple[str, ...] = ()
    is_changed: bool = False
    digests: Digests = field(default_factory=Digests, repr=False)
    earlier: Regions | None = ()

    @property
    def validates_strokes(self) -> bool:
        """True if the labels of the validation regions are strokes."""
        return are_strokes(self.validation)

    def with_epochs(self, epochs: int) -> Plan:
        """Return the plan with another number of epochs."""
        return replace(
            self, recipe=self.recipe.with_overrides({"training.epochs": epochs})
        )

    def with_labels(self, change: ChangedLabels) -> Plan:
        """Return the plan with other labels; spec and split stay.

        What was held back stays so. New planes train; see `find_new_regions`.

        Raises
        ------
        LabelError
            When a label value is neither a class of the spec nor unlabelled, or the
            labels belong to no image of the plan.
        ImageError
            When the labels have another size than their image.
        """
        old = next((pair for pair in self.pairs if pair.labels is change.before), None)
        if old is None:
            raise LabelError("found labels of an image that is not part of this run.")
        pair = replace(old, labels=change.after)
        classes = self.spec.classes

        def renewed(regions: Sequence[LabelledRegion]) -> list[LabelledRegion]:
            return [
                count_labels(replace(region, pair=pair), classes)
                if region.pair is old
                else region
                for region in regions
            ]

        training, validation = renewed(self.training), renewed(self.validation)
        added, left_out = _find_new_regions([pair], training, validation, self.spec)
        training += added
        if not label_counts(training, classes).any():
            raise LabelError("found no labelled pixel left to train on.")
        split = Split(training, validation, self.text)
        pairs = [pair if known is old else known for known in self.pairs]
        counts = label_counts(training, classes).sum(axis=0)
        return replace(
            self,
            training=training,
            validation=validation,
            counts=tuple(int(n) for n in counts),
            fingerprint=data_fingerprint(split, pairs, classes),
            pairs=pairs,
            left_out=tuple(left_out),
            is_changed=False,
            earlier=self._with_erased(training),
        )

    def _with_erased(self, training: Sequence[LabelledRegion]) -> Regions | None:
        """Return `earlier` with the regions that have lost all their labels."""
        if self.earlier is None:
            return None
        erased = [
            self._region_record(before)
            for before, after in zip(self.training, training, strict=False)
            if label_counts([before], self.spec.classes).any()
            and not label_counts([after], self.spec.classes).any()
        ]
        return (*self.earlier, *erased)

    @property
    def is_blind(self) -> bool:
        """True if there are validation data, but they lack a class that trains."""
        held_back = label_counts(self.validation, self.spec.classes).sum(axis=0)
        return bool(self.validation) and bool(
            (np.array(self.counts) > 0)[held_back == 0].any()
        )

    def labels_updated(self, epoch: int) -> LabelsUpdated:
        """Build the event that tells which labels a training uses from now on."""
        held_back = label_counts(self.validation, self.spec.classes).sum()
        return LabelsUpdated(
            epoch, sum(self.counts), int(held_back), self.left_out, self.is_changed
        )

    def record(self) -> dict[str, Any]:
        """Build the content of ``data.json``.

        It has sources, split, classes, spec and fingerprint, as plain data; and digests
        of the planes, by which an evaluation recognises them (`data.trained_on`).
        """
        numbers = {id(pair): i for i, pair in enumerate(self.pairs)}

        def row(region: LabelledRegion) -> dict[str, Any]:
            return {
                "name": region.name,
                "pair": numbers[id(region.pair)],
                "index": dict(region.index),
            } | self._region_record(region)

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
                | _image_facts(pair)
                for pair in self.pairs
            ],
            "split": self.text,
            "training": [row(region) for region in self.training],
            "validation": [row(region) for region in self.validation],
            EARLIER: None if self.earlier is None else list(self.earlier),
            "spec": self.spec.model_dump(mode="json"),
        }

    def _region_record(self, region: LabelledRegion) -> dict[str, Any]:
        """Return name, box and digests of a region."""
        box = {
            BOX_KEYS[axis]: [bounds.start, bounds.stop]
            for axis, bounds in zip(region.axes, region.box, strict=True)
        }
        spec = self.spec
        digests = self.digests.of(region, spec.classes, spec.neighbours)
        return {"name": region.name, **box, CONTENT: digests}


def axes_of(recipe: Recipe) -> str:
    """Return the spatial axes of a recipe's network, ``YX`` or ``ZYX``."""
    return recipe.network.axes


def plan_new(task: TrainingTask) -> Plan:
    """Plan a new run.

    Raises
    ------
    RecipeError, ImageError, LabelError
        When recipe and data are not suitable for a training.
    """
    recipe = load_recipe(task.recipe).with_overrides(task.overrides)
    pairs = pairs_with_neighbours(as_pairs(task.pairs), recipe.patches.neighbours)
    validation_pairs = pairs_with_neighbours(
        as_pairs(task.validation or []), recipe.patches.neighbours
    )
    # Values that occur only in the validation labels are also classes, so that a
    # warning can name classes that the training data lack.
    classes = task.classes or find_classes([*pairs, *validation_pairs], task.unlabelled)
    spec = resolve(recipe, pairs, classes=classes, unlabelled=task.unlabelled)
    if len(spec.classes) < 2:
        raise LabelError(
            f"found one class only, {spec.classes.names[0]!r}; a network needs at least"
            " two: label another class, or remove a value from those that mean"
            " unlabelled."
        )
    if task.split is not None:
        split = (
            _replace_pairs(task.split, as_pairs(task.pairs), pairs)
            if recipe.patches.neighbours
            else task.split
        )
    elif task.validation is None:
        section = recipe.training
        split = _split_of_start(recipe, pairs, spec) or split_pairs(
            pairs,
            fraction=section.validation,
            seed=section.seed,
            classes=spec.classes,
            axes=spec.axes,
            strokes_train=recipe.network.is_fitted,
        )
    else:
        split = split_given(pairs, validation_pairs, spec.classes, spec.axes)
        pairs = [*pairs, *validation_pairs]
    suggestion = suggest_recipe(recipe, [*split.training, *split.validation], pairs)
    notes = [*spec.notes, *([suggestion.text] if suggestion else [])]
    plan = _plan(recipe, spec, split, pairs, notes=notes)
    start = recipe.training.start
    earlier = regions_of_start(start) if start is not None else ()
    return replace(plan, suggestion=suggestion, earlier=earlier)


def _split_of_start(
    recipe: Recipe, pairs: Sequence[AnnotatedImage], spec: ModelSpec
) -> Split | None:
    """Return the split of the run whose model a training starts from.

    A new split would validate on pixels that this model has learnt from. None if the
    run is unknown, has none of these images, or held nothing back.
    """
    if recipe.training.start is None or not recipe.training.validation:
        return None
    path = Path(recipe.training.start).expanduser()
    record = RunFolder(path if path.is_dir() else path.parent).data()
    if not record.get("validation") or record["spec"].get("axes") != spec.axes:
        return None
    known_pairs, added = _recognise(record["pairs"], pairs)
    training = _regions(record["training"], known_pairs, spec)
    validation = _regions(record["validation"], known_pairs, spec)
    new, left_out = _find_new_regions(
        list(known_pairs.values()), training, validation, spec
    )
    training += new
    if added:
        training += labelled_regions(added, spec.classes, spec.axes)
    if not label_counts(training, spec.classes).any() or not validation:
        return None
    warnings = warn_missing_classes(training, validation, spec.classes)
    if left_out:
        names = join_names(left_out)
        warnings.append(f"labels beside what is held back are not used: {names}")
    text = f"{record['split'].partition(SAME_SPLIT)[0]}{SAME_SPLIT}{path}"
    return Split(training, validation, text, tuple(warnings))


def plan_resumed(task: TrainingTask, run: RunFolder) -> Plan:
    """Plan to resume a run, with its own recipe, spec and split.

    New pairs are added to the training data as a whole. Missing pairs are left out, and
    a warning names them.

    Raises
    ------
    RecipeError
        When an override changes other keys than `MAY_CHANGE`.
    RunError
        When the run contains none of the images, or its ``data.json`` is damaged.
    """
    stored, record = run.recipe, run.read_json("data.json")
    recipe = stored.with_overrides(task.overrides)
    if forbidden := [
        key for key in differences(stored, recipe) if not key.startswith(MAY_CHANGE)
    ]:
        raise RecipeError(
            f"{', '.join(forbidden)} cannot change in a resumed run; start a new run,"
            f" or change only {', '.join(MAY_CHANGE)}."
        )
    spec = ModelSpec.model_validate(record["spec"])
    validation_pairs = pairs_with_neighbours(
        as_pairs(task.validation or []), spec.neighbours
    )
    pairs = pairs_with_neighbours(as_pairs(task.pairs), spec.neighbours)
    known_pairs, added = _recognise(record["pairs"], [*pairs, *validation_pairs])
    if not known_pairs:
        raise RunError(
            f"{run.path}: none of the given images belongs to this run; give the images"
            " that it was started with."
        )
    new_names = [pair.name for pair in validation_pairs if pair in added]
    if new_names:
        raise RunError(
            f"{run.path}: {join_names(new_names)} did not validate before; a run keeps"
            " its validation images."
        )
    training = _regions(record["training"], known_pairs, spec)
    validation = _regions(record["validation"], known_pairs, spec)
    # A split that was given may leave images out.
    may_grow = list(known_pairs.values()) if task.split is None else []
    new, left_out = _find_new_regions(may_grow, training, validation, spec)
    split = Split(
        training=training
        + new
        + (labelled_regions(added, spec.classes, spec.axes) if added else []),
        validation=validation,
        text=record["split"],
        warnings=tuple(_describe_missing(record["pairs"], known_pairs)),
    )
    if record["validation"] and not split.validation:
        raise RunError(
            f"{run.path}: the validation images of this run are missing; give them"
            " again (--val)."
        )
    plan = _plan(
        recipe,
        spec,
        split,
        [*known_pairs.values(), *added],
        notes=_describe_added(added),
    )
    plan = replace(
        plan, left_out=tuple(left_out), earlier=_regions_before(record, plan)
    )
    if plan.fingerprint != record["fingerprint"]:
        note = (
            f"the training data changed: fingerprint {record['fingerprint']} ->"
            f" {plan.fingerprint}"
        )
        messages = (*plan.messages, Message(note))
        is_same_images = not added and len(known_pairs) == len(record["pairs"])
        plan = replace(plan, messages=messages, is_changed=is_same_images)
    if isinstance(task.recipe, str) and task.recipe not in ("default", stored.name):
        note = (
            f"the run continues with its own recipe, {stored.name!r};"
            f" {task.recipe!r} is not used"
        )
        plan = replace(plan, messages=(*plan.messages, Message(note, "warning")))
    return plan


def _regions_before(record: Mapping[str, Any], plan: Plan) -> Regions | None:
    """Return the regions that trained a run before it is resumed, and do not now."""
    is_same = plan.fingerprint == record["fingerprint"]
    if EARLIER not in record:  # of an earlier version
        return () if is_same and plan.recipe.training.start is None else None
    known = regions_of_record(record)
    if is_same or known is None:
        return record[EARLIER]  # type: ignore[no-any-return]
    return without(known, tuple(plan.record()["training"]))


def plan_all_strokes(plan: Plan) -> Plan | None:
    """Return a plan of a pixel classifier that learns from all strokes of its images.

    Nothing is held back: the fit holds back whole strokes in turn, and measures on
    them. None where not all labels are strokes.
    """
    section = plan.recipe.training
    split = split_pairs(
        plan.pairs,
        fraction=section.validation,
        seed=section.seed,
        classes=plan.spec.classes,
        axes=plan.spec.axes,
        strokes_train=True,
    )
    if split.validation:
        return None
    return _plan(plan.recipe, plan.spec, split, plan.pairs, notes=())


def _plan(
    recipe: Recipe,
    spec: ModelSpec,
    split: Split,
    pairs: list[AnnotatedImage],
    *,
    notes: Sequence[str],
) -> Plan:
    warnings = [
        *find_nonfinite(pairs),
        *_warn_of_constant_images(pairs),
        *split.warnings,
    ]
    if recipe.training.early_stopping is not None and not split.validation:
        warnings.append(
            "early stopping needs validation data and is off: there are none"
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
            *map(Message, (*_describe_images(pairs), *notes)),
            *(Message(text, "warning") for text in warnings),
        ),
    )


def _replace_pairs(
    split: Split, old_pairs: Sequence[AnnotatedImage], pairs: Sequence[AnnotatedImage]
) -> Split:
    """Replace the pairs of a split, for example by those with neighbouring planes."""
    new_pairs = {id(old): new for old, new in zip(old_pairs, pairs, strict=True)}
    training, validation = (
        [replace(region, pair=new_pairs[id(region.pair)]) for region in regions]
        for regions in (split.training, split.validation)
    )
    return replace(split, training=training, validation=validation)


def _describe_images(pairs: Sequence[AnnotatedImage]) -> list[str]:
    """Describe the first image of each kind, so that the user notices wrong axes."""
    kinds = {
        (pair.image.axes, str(pair.image.dtype), pair.image.notes): pair.image
        for pair in reversed(pairs)
    }
    lines = [
        line
        for image in reversed(kinds.values())
        for line in (image.describe(), *image.notes)
    ]
    others = len(pairs) - len(kinds)
    if others:
        lines.append(
            f"and {format_count(others, 'more image')} like"
            f" {'this' if len(kinds) == 1 else 'these'}"
        )
    return list(dict.fromkeys(lines))


def _warn_of_constant_images(pairs: Sequence[AnnotatedImage]) -> list[str]:
    """Return a warning for images with a single grey value."""
    names = [
        pair.name
        for pair in pairs
        if not any(_has_contrast(samples) for samples in pair.image.samples())
    ]
    return (
        [
            "found one grey value only, from which nothing can be learnt, in:"
            f" {join_names(names)}"
        ]
        if names
        else []
    )


def _has_contrast(samples: Any) -> bool:
    finite = samples[np.isfinite(samples)]
    return bool(finite.size and finite.min() != finite.max())


def _image_facts(pair: AnnotatedImage) -> dict[str, Any]:
    """Return the facts by which a resumed run recognises an image."""
    image = pair.image
    return {"axes": image.axes, "shape": list(image.shape), "dtype": str(image.dtype)}


def data_fingerprint(
    split: Split, pairs: Sequence[AnnotatedImage], classes: ClassMap
) -> str:
    """Return a digest of the data of a training, as 16 hexadecimal digits.

    It depends on sampled grey values, and on position and class counts of each region.
    """
    state = hashlib.sha256()
    for pair in pairs:
        state.update(repr(_image_facts(pair)).encode())
        for samples in (*pair.image.samples(), *pair.labels.samples()):
            state.update(samples.tobytes())
    for regions in (split.training, split.validation):
        for region, counts in zip(regions, label_counts(regions, classes), strict=True):
            facts = (dict(region.index), *region.box, counts.tolist())
            state.update(repr(facts).encode())
    return state.hexdigest()[:16]


def _find_new_regions(
    pairs: Sequence[AnnotatedImage],
    training: Sequence[LabelledRegion],
    validation: Sequence[LabelledRegion],
    spec: ModelSpec,
) -> tuple[list[LabelledRegion], list[str]]:
    """Find planes of pairs with their first labels, and names of those left out."""
    added, left_out = [], []
    for pair in pairs:
        own_training = [region for region in training if region.pair is pair]
        own_validation = [region for region in validation if region.pair is pair]
        if own_validation and not own_training:
            continue  # the image is held back as a whole
        regions, names = find_new_regions(
            pair, own_training, own_validation, spec.classes, spec.axes
        )
        added += regions
        left_out += names
    return added, left_out


def _recognise(
    rows: Sequence[Mapping[str, Any]], pairs: Sequence[AnnotatedImage]
) -> tuple[dict[int, AnnotatedImage], list[AnnotatedImage]]:
    """Separate the pairs of a run, by their number, from new pairs.

    Equal pairs are numbered in their order.
    """
    unmatched_rows = dict(enumerate(rows))
    known_pairs, added = {}, []
    for pair in pairs:
        pair_row = {"name": pair.name} | _image_facts(pair)
        number = next(
            (
                number
                for number, row in unmatched_rows.items()
                if pair_row.items() <= row.items()
            ),
            None,
        )
        if number is None:
            added.append(pair)
        else:
            known_pairs[number] = pair
            del unmatched_rows[number]
    return dict(sorted(known_pairs.items())), added


def _regions(
    rows: Sequence[Mapping[str, Any]],
    known: Mapping[int, AnnotatedImage],
    spec: ModelSpec,
) -> list[LabelledRegion]:
    regions = [
        LabelledRegion(
            known[row["pair"]],
            row["index"],
            tuple(slice(*row[BOX_KEYS[axis]]) for axis in spec.axes),
            row["name"],
        )
        for row in rows
        if row["pair"] in known
    ]
    return [count_labels(region, spec.classes) for region in regions]


def _describe_missing(
    rows: Sequence[Mapping[str, Any]], known: Mapping[int, AnnotatedImage]
) -> list[str]:
    names = [row["name"] for number, row in enumerate(rows) if number not in known]
    return (
        [f"images of this run that are missing and are left out: {join_names(names)}"]
        if names
        else []
    )


def _describe_added(added: Sequence[AnnotatedImage]) -> list[str]:
    names = [pair.name for pair in added]
    return (
        [f"images that are new to this run, added to training: {join_names(names)}"]
        if names
        else []
    )
