from __future__ import annotations

import numpy as np
import PIL.Image
import pytest

from napari_strata.core.classes import IGNORE, ClassMap
from napari_strata.core.metrics import ConfusionMatrix
from napari_strata.evaluation.pictures import (
    PANEL,
    RIGHT,
    Example,
    draw_confusion,
    draw_example,
    format_count,
    panel_boxes,
    shorten,
    text_width,
    to_picture,
)

CLASSES = ClassMap(names=("pore", "clay"), values=(1, 2), colors=("#4477aa", "#ee8866"))


def example(
    image: np.ndarray,
    truth: np.ndarray,
    prediction: np.ndarray,
    classes: ClassMap = CLASSES,
) -> Example:
    confusion = ConfusionMatrix(classes)
    confusion.update(truth, prediction)
    return Example.of("plane", image, truth, prediction=prediction, confusion=confusion)


def halves(height: int = 100, width: int = 80) -> tuple[np.ndarray, np.ndarray]:
    truth = np.zeros((height, width), np.uint8)
    truth[:, width // 2 :] = 1
    return np.full((1, height, width), 7, np.uint8), truth


def near(
    picture: np.ndarray, color: tuple[int, int, int], *, within: int = 45
) -> np.ndarray:
    return (np.abs(picture.astype(int) - color).max(axis=-1) <= within).mean()


def test_three_panels_show_image_truth_and_prediction():
    grey, truth = halves()
    drawn = np.asarray(draw_example(example(grey, truth, np.ones_like(truth))))
    _, width, gap, top, left = 400, 320, 16, 92, 28  # four times the plane
    panels = [
        drawn[top : top + 400, left + i * (width + gap) :][:, :width] for i in range(3)
    ]
    blue, orange = (0x44, 0x77, 0xAA), (0xEE, 0x88, 0x66)
    assert np.ptp(panels[0].reshape(-1, 3), axis=1).max() == 0  # grey
    assert near(panels[1][:, :160], blue) == 1
    assert near(panels[1][:, 160:], orange) == 1
    assert near(panels[2], orange) == 1
    legend = drawn[top + 400 :]
    assert near(legend, blue, within=0) > 0
    assert near(legend, orange, within=0) > 0


def test_unlabelled_pixels_are_hatched_grey_and_in_the_legend():
    grey, truth = halves()
    plain = draw_example(example(grey, truth, truth))
    truth[:50] = IGNORE
    drawn = np.asarray(draw_example(example(grey, truth, np.zeros_like(truth))))
    panel = drawn[92 : 92 + 190, 28 + 336 :][:, :320]
    assert np.ptp(panel.reshape(-1, 3), axis=1).max() == 0  # without colour
    assert 0.1 < (panel[..., 0] == 250).mean() < 0.5  # stripes
    assert np.asarray(plain).shape == drawn.shape


@pytest.mark.parametrize(
    "shape", [(1, 1), (7, 3), (3, 400), (1000, 996), (2500, 700), (64, 5000)]
)
def test_any_plane_gives_a_picture_of_sensible_size(shape):
    rng = np.random.default_rng(0)
    made = example(
        rng.integers(0, 9, (1, *shape)).astype(np.uint16),
        rng.integers(0, 2, shape).astype(np.uint8),
        rng.integers(0, 2, shape).astype(np.uint8),
    )
    assert max(made.truth.shape) <= PANEL[1]
    assert made.picture.shape == (*made.truth.shape, 3)
    drawn = draw_example(made)
    assert 700 <= drawn.width <= 3 * PANEL[1] + 120
    assert drawn.height <= PANEL[1] + 260


def test_pictures_stretch_grey_keep_rgb_and_never_fail():
    ramp = np.linspace(1000, 1010, 400, dtype=np.float32).reshape(1, 20, 20)
    grey = to_picture(ramp, 1)
    assert grey.min() == 0
    assert grey.max() == 255
    hot = ramp.copy()
    hot[0, 3, 3] = 1e9
    assert (
        np.abs(to_picture(hot, 1).astype(int) - grey)[:3].max() <= 6
    )  # one hot pixel does not darken the rest
    rgb = np.random.default_rng(0).integers(0, 255, (3, 6, 6)).astype(np.uint8)
    assert np.array_equal(to_picture(rgb, 1), np.stack(list(rgb), axis=-1))
    two = to_picture(np.stack([ramp[0], ramp[0, ::-1]]), 1)
    assert np.array_equal(two[..., 0], two[..., 2])
    assert not np.array_equal(two[..., 0], two[..., 1])
    assert to_picture(np.repeat(ramp, 5, axis=0), 2).shape == (10, 10, 3)
    assert to_picture(np.full((1, 4, 4), np.nan), 1).max() == 0
    assert len(np.unique(to_picture(np.full((1, 4, 4), 3.0), 1))) == 1


def test_the_legend_names_only_classes_that_occur_and_breaks_lines():
    many = ClassMap(
        names=tuple(f"class number {i}" for i in range(40)), values=tuple(range(40))
    )
    truth = np.arange(1600, dtype=np.uint8).reshape(40, 40) % 40
    full = draw_example(example(truth[None], truth, truth, many))
    few = draw_example(
        example(truth[None], np.zeros_like(truth), np.zeros_like(truth), many)
    )
    assert full.width == few.width
    assert full.height >= few.height + 5 * 34


def test_the_confusion_matrix_is_blue_where_right_and_red_where_wrong():
    counts = np.array([[900, 100], [0, 500]])
    drawn = np.asarray(
        draw_confusion(ConfusionMatrix(CLASSES, counts)).convert("RGB")
    ).astype(int)
    blue = (drawn[..., 2] - drawn[..., 0]) > 60
    red = (drawn[..., 0] - drawn[..., 2]) > 30
    rows, columns = np.nonzero(blue)
    # The two full cells touch at the middle: upper left and lower right, and never the
    # other way.
    middle = (rows.min() + rows.max()) // 2, (columns.min() + columns.max()) // 2
    assert blue[: middle[0], : middle[1]].sum() > 5000
    assert blue[middle[0] + 3 :, middle[1] + 3 :].sum() > 5000
    assert blue[: middle[0] - 3, middle[1] + 3 :].sum() == 0
    assert red[: middle[0], middle[1] :].sum() > 5000
    assert red[middle[0] + 3 :].sum() == 0
    assert (drawn == RIGHT).all(
        axis=-1
    ).sum() > 5000  # every pixel of clay is right: full blue


@pytest.mark.parametrize("count", [1, 2, 13, 30, 100])
def test_any_number_of_classes_and_empty_rows_can_be_drawn(count):
    classes = ClassMap(
        names=tuple(f"a class of a rather long name, number {i}" for i in range(count)),
        values=tuple(range(count)),
    )
    drawn = draw_confusion(ConfusionMatrix(classes, np.eye(count, dtype=int) * 12345))
    empty = draw_confusion(ConfusionMatrix(classes))
    assert drawn.size == empty.size
    assert isinstance(drawn, PIL.Image.Image)
    assert min(drawn.size) > 40 * count


def test_numbers_are_short():
    assert [format_count(n) for n in (0, 950, 12_345, 4_560_000, 7 * 10**9)] == [
        "0",
        "950",
        "12.3k",
        "4.56M",
        "7G",
    ]


def test_long_names_are_cut_to_a_width():
    cut = shorten("a name of many letters", 17, 90)
    assert cut.endswith("...")
    assert 60 < text_width(cut, 17) <= 90
    assert shorten("short", 17, 90) == "short"


@pytest.mark.parametrize("shape", [(100, 80), (20, 30), (1500, 720)])
def test_the_boxes_are_where_the_panels_are(shape: tuple[int, int]) -> None:
    image, truth = halves(*shape)
    picture = example(image, truth, 1 - truth)
    drawn = draw_example(picture)
    panels = [np.asarray(drawn.crop(box)) for box in panel_boxes(picture)]
    assert len({panel.shape for panel in panels}) == 1
    assert not np.any(np.all(panels[1] == 255, axis=-1))
    assert np.array_equal(panels[1], panels[2][:, ::-1])
    for left, top, right, bottom in panel_boxes(picture):
        ring = np.asarray(drawn.crop((left - 1, top - 1, right + 1, bottom + 1)))
        assert np.all(ring[0] == 255)
        assert np.all(ring[-1] == 255)
        assert np.all(ring[:, [0, -1]] == 255)


def test_of_a_volume_the_plane_with_the_most_labels_is_shown() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (1, 5, 30, 40)).astype(np.uint8)
    truth, prediction = (
        np.full((5, 30, 40), IGNORE, np.uint8),
        rng.integers(0, 2, (5, 30, 40)).astype(np.uint8),
    )
    truth[1, :4], truth[3] = 0, 1
    scores = ConfusionMatrix(ClassMap.from_values([0, 1]))
    volume = Example.of(
        "rock", image, truth, prediction=prediction, confusion=scores, first=20
    )
    plane = Example.of(
        "rock Z=23", image[:, 3], truth[3], prediction=prediction[3], confusion=scores
    )
    assert volume.name == plane.name
    for actual, expected in (
        (volume.picture, plane.picture),
        (volume.truth, plane.truth),
        (volume.prediction, prediction[3]),
    ):
        np.testing.assert_array_equal(actual, expected)
