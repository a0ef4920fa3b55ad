from __future__ import annotations

import numpy as np
import pytest

from napari_strata.core.classes import ClassMap
from napari_strata.core.errors import LabelError
from napari_strata.core.image import LabelImage
from napari_strata.evaluation.compare import error_classes, find_errors, join_classes

ROCK = ClassMap(
    names=("pore", "grain"),
    values=(1, 2),
    colors=("#112233", "#445566"),
    unlabelled=(0,),
)


def test_the_truth_says_what_values_mean_and_the_prediction_adds_its_own():
    classes = ClassMap(
        names=("hole", "grain", "grain 2"),
        values=(1, 2, 7),
        colors=("#aaaaaa", "#bbbbbb", "#cccccc"),
    )
    joined = join_classes(ROCK, classes, {0, 1, 2, 7}, background=True)
    assert joined.names == ("pore", "grain", "grain 2")
    assert joined.colors == ("#112233", "#445566", "#cccccc")
    assert joined.unlabelled == (0,)  # as the truth's classes say, whatever was asked


@pytest.mark.parametrize(
    ("background", "values", "unlabelled"), [(True, (0, 1), ()), (False, (1,), (0,))]
)
def test_without_classes_the_user_says_what_0_means(background, values, unlabelled):
    joined = join_classes(None, None, {0, 1}, background=background)
    assert (joined.values, joined.unlabelled) == (values, unlabelled)
    assert joined.names == (("background", "class 1") if background else ("class 1",))


def test_a_name_that_is_taken_is_told_apart_by_its_value():
    second = ClassMap(names=("grain",), values=(5,))
    assert join_classes(ROCK, second, {1, 2, 5}, background=False).names == (
        "pore",
        "grain",
        "grain (5)",
    )


def test_objects_and_nothing_are_refused_in_words():
    with pytest.raises(
        LabelError, match="found 200 label values \\(1 to 200\\): too many for classes"
    ):
        join_classes(None, None, range(201), background=False)
    with pytest.raises(LabelError, match="nothing to score"):
        join_classes(None, None, {0}, background=False)
    objects = ClassMap.foreground()
    assert join_classes(objects, None, range(201), background=False) == objects


def test_errors_are_the_predicted_values_where_they_are_wrong_and_labelled(monkeypatch):
    monkeypatch.setattr("napari_strata.evaluation.compare.STRIP_PIXELS", 40)
    rng = np.random.default_rng(0)
    truth, errors = rng.integers(0, 3, (5, 3, 17)), rng.integers(1, 3, (5, 3, 17))
    made = find_errors(LabelImage(errors, "YZX"), LabelImage(truth, "YZX"), ROCK)
    assert np.array_equal(made, np.where((truth != 0) & (truth != errors), errors, 0))
    assert made.any()


def test_a_wrong_0_is_seen_as_the_next_free_value():
    classes = ClassMap(names=("background", "cell"), values=(0, 3))
    truth, errors = np.array([[0, 3, 3]]), np.array([[3, 0, 3]])
    assert error_classes(classes).values == (4, 3)
    made = find_errors(LabelImage(errors, "YX"), LabelImage(truth, "YX"), classes)
    assert made.tolist() == [[3, 4, 0]]
