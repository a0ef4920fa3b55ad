from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image as Picture

from napari_strata.core.classes import ClassMap
from napari_strata.core.errors import ImageError, LabelError, StrataError
from napari_strata.core.image import AnnotatedImage, Image, LabelImage
from napari_strata.io import read_pairs, write_labels

SHAPE = (12, 10)


def _write(
    path: Path, value: int = 1, shape: tuple[int, ...] = SHAPE, dtype: str = "uint8"
) -> Path:
    """Write an image file with a single value, by which tests recognise it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.full(shape, value, dtype)
    if array.dtype.kind == "f":
        array += 0.5  # whole numbers are labels
    if path.suffix == ".tif":
        tifffile.imwrite(
            path, array, photometric="rgb" if shape[-1] == 3 else "minisblack"
        )
    else:
        Picture.fromarray(array).save(path)
    return path


def _values(pairs: list[AnnotatedImage]) -> list[tuple[str, int, int]]:
    return [
        (p.name, int(p.image.read().flat[0]), int(p.labels.read().flat[0]))
        for p in pairs
    ]


THREE = [("a2", 1, 11), ("a10", 2, 12), ("b", 3, 13)]
"""Names in natural order, with the grey value of each image and of its labels."""


def _folders(
    root: Path, images: str, labels: str, ending: str = "", suffix: str = ".tif"
) -> tuple[Path, Path]:
    for name, grey, label in THREE:
        _write(root / images / f"{name}{suffix}", grey)
        _write(root / labels / f"{name}{ending}.tif", label)
    return root / images, root / labels


@pytest.mark.parametrize(
    "ending", ["", "_label", "_labels", "_mask", "_masks", "_seg", "_Mask"]
)
def test_two_folders(tmp_path: Path, ending: str) -> None:
    images, labels = _folders(tmp_path, "pictures", "truth", ending)
    assert _values(read_pairs(images, labels)) == THREE
    assert _values(read_pairs(str(images), str(labels))) == THREE


def test_two_folders_of_single_slices_are_pairs_of_files_not_stacks(
    tmp_path: Path,
) -> None:
    pairs = read_pairs(*_folders(tmp_path, "x", "y"))
    assert [p.image.shape for p in pairs] == [SHAPE] * 3


def test_suffixes_may_differ_and_other_files_are_skipped(tmp_path: Path) -> None:
    images, labels = _folders(tmp_path, "x", "y", suffix=".png")
    for name in (".DS_Store", "notes.txt", "table.csv", "Thumbs.db", ".hidden.tif"):
        (images / name).write_text("x")
        (labels / name).write_text("x")
    assert _values(read_pairs(images, labels)) == THREE


@pytest.mark.parametrize(
    "labels", ["masks", "labels", "label", "mask", "annotations", "Masks"]
)
@pytest.mark.parametrize("nested", [False, True])
def test_one_dataset_folder(tmp_path: Path, labels: str, nested: bool) -> None:
    root = tmp_path / "dataset"
    _folders(
        root,
        "images/images" if nested else "images",
        f"{labels}/{labels}" if nested else labels,
        "_label",
    )
    (root / "readme.txt").write_text("x")
    assert _values(read_pairs(root)) == THREE
    assert _values(read_pairs(root / "images", root / labels)) == THREE
    assert _values(read_pairs(tmp_path)) == THREE  # nothing in it but the dataset


def test_a_dataset_folder_of_two_stacks(tmp_path: Path) -> None:
    _write(tmp_path / "images.tif", 5, (4, *SHAPE))
    _write(tmp_path / "masks.tif", 2, (4, *SHAPE))
    (pair,) = read_pairs(tmp_path)
    assert (pair.image.shape, pair.image.axes) == ((4, *SHAPE), "ZYX")
    assert _values([pair]) == [("images", 5, 2)]


@pytest.mark.parametrize("ending", ["_label", "_labels", "_mask", "_masks", "_seg"])
def test_side_by_side(tmp_path: Path, ending: str) -> None:
    _folders(tmp_path, "", "", ending)
    (tmp_path / "extra").mkdir()
    assert _values(read_pairs(tmp_path)) == THREE


def test_side_by_side_an_image_may_itself_end_like_a_label(tmp_path: Path) -> None:
    _write(tmp_path / "cell_seg.tif", 1)
    _write(tmp_path / "cell_seg_mask.tif", 2)
    assert _values(read_pairs(tmp_path)) == [("cell_seg", 1, 2)]


def test_patterns(tmp_path: Path) -> None:
    _folders(tmp_path, "", "", "_label")
    images, labels = str(tmp_path / "a*[0-9].tif"), str(tmp_path / "a*_label.tif")
    assert _values(read_pairs(images, labels)) == THREE[:2]
    with pytest.raises(ImageError, match="nothing matches"):
        read_pairs(str(tmp_path / "*.png"), labels)


def test_two_files_need_no_common_name(tmp_path: Path) -> None:
    image, labels = (
        _write(tmp_path / "scan.tif", 7, (3, *SHAPE)),
        _write(tmp_path / "truth.tif", 1, (3, *SHAPE)),
    )
    assert _values(read_pairs(image, labels)) == [("scan", 7, 1)]


def test_a_stack_and_a_folder_of_its_slices(tmp_path: Path) -> None:
    stack = _write(tmp_path / "scan.tif", 7, (3, *SHAPE))
    for z in range(3):
        _write(tmp_path / "slices" / f"z{z}.tif", z)
    (pair,) = read_pairs(stack, tmp_path / "slices")
    assert pair.labels.read()[0, :, 0, 0].tolist() == [0, 1, 2]
    (pair,) = read_pairs(str(tmp_path / "slices" / "*.tif"), stack)
    assert pair.image.read()[0, :, 0, 0].tolist() == [0, 1, 2]


def test_a_file_and_the_folder_of_its_partner(tmp_path: Path) -> None:
    images, labels = _folders(tmp_path, "x", "y", "_mask")
    assert _values(read_pairs(images / "a10.tif", labels)) == [THREE[1]]
    assert _values(read_pairs(images, labels / "b_mask.tif")) == [THREE[2]]


def test_a_zarr_folder_counts_as_a_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    grey, truth = (
        LabelImage(rng.integers(0, 5, (2, *SHAPE)).astype(np.uint8), "ZYX")
        for _ in range(2)
    )
    for folder, image in (("x", grey), ("y", truth)):
        write_labels(tmp_path / folder / "a.ome.zarr", image)
        _write(tmp_path / folder / "b.tif", 1)
    (one,) = read_pairs(tmp_path / "x" / "a.ome.zarr", tmp_path / "y" / "a.ome.zarr")
    np.testing.assert_array_equal(one.labels.read()[0], truth.data)
    both = read_pairs(tmp_path / "x", tmp_path / "y")
    assert [p.image.shape for p in both] == [(2, *SHAPE), SHAPE]
    np.testing.assert_array_equal(both[0].image.read()[0], grey.data)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("header", ["", "image{}label\n", "\ufeffFile{}Truth\n"])
def test_a_table(tmp_path: Path, separator: str, header: str) -> None:
    _folders(tmp_path / "data", "x", "y", "_other")
    rows = [f"data/x/{n}.tif{separator} data/y/{n}_other.tif" for n, _, _ in THREE]
    table = tmp_path / "pairs.csv"
    table.write_text(
        header.format(separator) + "\n".join(rows) + "\n\n", encoding="utf-8"
    )
    assert _values(read_pairs(table)) == THREE


def test_a_table_with_more_columns_names_the_two(tmp_path: Path) -> None:
    _folders(tmp_path, "x", "y")
    table = tmp_path / "pairs.csv"
    table.write_text(f"id,mask file,Image\n1,y/b.tif,{tmp_path / 'x' / 'b.tif'}\n")
    assert _values(read_pairs(table)) == [THREE[2]]


def test_all_problems_of_a_table_are_listed_with_their_lines(tmp_path: Path) -> None:
    _folders(tmp_path, "x", "y")
    table = tmp_path / "pairs.csv"
    table.write_text(
        "x/a2.tif,y/a2.tif\nx/gone.tif,y/lost.tif\nx/b.tif\nx/b.tif,y/b.tif,3\nx/a2.tif,y/b.tif\n"
    )
    with pytest.raises(ImageError) as error:
        read_pairs(table)
    text = str(error.value)
    assert "found 4 problems" in text
    for words in (
        "line 2: no such file: ",
        "gone.tif",
        "lost.tif",
        "line 3: found 1 entries",
        "line 4: found 3 entries",
    ):
        assert words in text
    assert "a2.tif occurs more than once in" in text


@pytest.mark.parametrize("text", ["", "\n \n", "image,label\n"])
def test_a_table_without_rows(tmp_path: Path, text: str) -> None:
    (tmp_path / "pairs.csv").write_text(text)
    with pytest.raises(
        ImageError, match=r"pairs\.csv: a table without rows; needed are two columns"
    ):
        read_pairs(tmp_path / "pairs.csv")


def test_a_table_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_bytes(b"\xff\xfe\x81\x00")
    with pytest.raises(ImageError, match="cannot be read as a table of text"):
        read_pairs(tmp_path / "pairs.csv")


def test_all_problems_are_listed_at_once(tmp_path: Path) -> None:
    images, labels = _folders(tmp_path, "x", "y")
    _write(images / "lonely.tif")
    _write(labels / "stray_mask.tif")
    _write(labels / "b_seg.tif")
    _write(images / "odd.tif")
    _write(labels / "odd.tif", shape=(12, 11))
    _write(images / "broken.tif")
    (labels / "broken.tif").write_bytes(b"II*\x00 not really")
    _write(images / "soft.tif")
    _write(labels / "soft.tif", dtype="float32")
    _write(images / "twice.tif")
    _write(images / "twice.png")
    _write(labels / "twice.tif")
    with pytest.raises(ImageError) as error:
        read_pairs(images, labels)
    head, *lines, hint = str(error.value).splitlines()
    assert (
        head
        == "found 7 problems with the pairs of images and labels; nothing was started:"
    )
    expected = [
        ("ambiguous name", "2 images", "'twice'"),
        ("label without an image", str(labels / "stray_mask.tif")),
        ("ambiguous", "b.tif has 2 labels (b.tif, b_seg.tif)"),
        ("image without a label", str(images / "lonely.tif")),
        ("broken.tif",),
        ("odd", "X: 10 against 11"),
        ("soft.tif", "float32"),
    ]
    assert len(lines) == len(expected)
    for words in expected:
        assert any(all(word in line for word in words) for line in lines), words
    assert "_label" in hint


def test_a_long_list_is_cut(tmp_path: Path) -> None:
    for i in range(30):
        _write(tmp_path / "x" / f"{i}.tif")
    _write(tmp_path / "y" / "0.tif")
    with pytest.raises(ImageError) as error:
        read_pairs(tmp_path / "x", tmp_path / "y")
    lines = str(error.value).splitlines()
    assert lines[0].startswith("found 29 problems")
    assert lines[-2:] == ["  and 9 more", lines[-1]]
    assert len(lines) == 1 + 20 + 2


def test_one_pair_gives_its_own_error(tmp_path: Path) -> None:
    image = _write(tmp_path / "a.tif")
    with pytest.raises(LabelError, match=r"b\.tif: found labels of dtype float32"):
        read_pairs(image, _write(tmp_path / "b.tif", dtype="float32"))
    with pytest.raises(ImageError, match=r"^a: .*differ along Y: 12 against 5"):
        read_pairs(image, _write(tmp_path / "c.tif", shape=(5, 10)))
    with pytest.raises(ImageError, match="no such file"):
        read_pairs(image, tmp_path / "gone.tif")


def _nothing(root: Path) -> tuple[Path, ...]:
    (root / "empty").mkdir()
    return (root / "empty",)


def _two_empty(root: Path) -> tuple[Path, ...]:
    (root / "empty").mkdir()
    return (_write(root / "a.tif"), root / "empty")


def _image_only(root: Path) -> tuple[Path, ...]:
    return (_write(root / "a.tif"),)


def _two_kinds_of_labels(root: Path) -> tuple[Path, ...]:
    for folder in ("images", "masks", "labels"):
        _write(root / folder / "a.tif")
    return (root,)


def _no_endings(root: Path) -> tuple[Path, ...]:
    _write(root / "a.tif")
    return (root,)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            _nothing,
            r"empty: found no images in this folder; needed are folders images and labels",
        ),
        (_two_empty, r"empty: no images in this folder"),
        (_image_only, r"a\.tif: found one file and no labels; give the labels"),
        (_two_kinds_of_labels, r"ambiguous, found labels, masks"),
        (
            _no_endings,
            r"found 1 problem .*\n  image without a label: .*a\.tif\nNeeded: a label file has",
        ),
        (lambda root: (root / "gone",), "gone: no such file"),
    ],
)
def test_what_cannot_be_paired(
    tmp_path: Path, make: Callable[[Path], tuple[Path, ...]], words: str
) -> None:
    with pytest.raises(ImageError, match=words):
        read_pairs(*make(tmp_path))


def test_arrays() -> None:
    rng = np.random.default_rng(0)
    grey, truth = rng.normal(size=SHAPE), rng.integers(0, 3, SHAPE)
    (pair,) = read_pairs(grey, truth)
    assert (pair.name, pair.image.axes, pair.labels.axes) == ("image", "YX", "YX")
    assert pair.image.data is grey
    assert pair.labels.data is truth
    stack = rng.normal(size=(4, *SHAPE, 3))
    (pair,) = read_pairs(stack, np.zeros((4, *SHAPE), bool), axes="ZYXC")
    assert (pair.labels.axes, pair.labels.dtype) == ("ZYX", np.uint8)
    two = read_pairs([grey, grey], [truth, truth])
    assert [p.name for p in two] == ["image 1", "image 2"]


def test_colour_coded_label_arrays() -> None:
    image, colours = np.zeros((*SHAPE, 3), np.uint8), np.zeros((*SHAPE, 3), np.uint8)
    colours[..., 0] = 255
    (pair,) = read_pairs(image, colours, axes="YXC")
    assert pair.labels.axes == "YXC"
    assert (
        ClassMap.from_rgb([(0, 0, 0), (255, 0, 0)]).encode(pair.labels.read()).tolist()
        == np.ones(SHAPE).tolist()
    )


@pytest.mark.parametrize(
    ("images", "labels", "error", "words"),
    [
        (
            np.zeros((3, 4, 5)),
            np.zeros((3, 4, 5), int),
            ImageError,
            "axes of an array of shape .* cannot be known",
        ),
        (
            np.zeros((4, 5)),
            np.zeros((4, 6), int),
            ImageError,
            "differ along X: 5 against 6",
        ),
        (
            np.zeros((4, 5)),
            np.zeros((2, 4, 5), int),
            ImageError,
            "axes of an array of shape .* cannot be known",
        ),
        (
            np.zeros((4, 5)),
            np.full((4, 5), 0.33),
            LabelError,
            r"image: found labels of dtype float64 \(0\.33",
        ),
        (np.zeros((4, 5)), None, ImageError, "found images without labels"),
        (
            [np.zeros((4, 5))] * 2,
            [np.zeros((4, 5), int)],
            ImageError,
            "found 2 images and 1 labels",
        ),
        ([], [], ImageError, "found 0 images"),
        (
            [[1, 2]],
            [[1, 2]],
            ImageError,
            "image: found list; needed is an array, an Image or the path",
        ),
        (np.zeros((4, 5)), [[1, 2]], ImageError, "labels of image: found list; needed"),
    ],
)
def test_arrays_that_do_not_fit(
    images: object, labels: object, error: type[StrataError], words: str
) -> None:
    with pytest.raises(error, match=words):
        read_pairs(images, labels)  # type: ignore[arg-type]


def test_problems_of_several_arrays_are_named_by_number() -> None:
    good, bad = np.zeros((4, 5), int), np.zeros((4, 6), int)
    with pytest.raises(ImageError) as error:
        read_pairs([good, good, good], [bad, good, bad])
    assert "image 1" in str(error.value)
    assert "image 3" in str(error.value)
    assert "image 2" not in str(error.value)


def test_images_and_mixtures(tmp_path: Path) -> None:
    image = Image(np.zeros((2, *SHAPE)), "ZYX", scale=(3, 1, 1), name="mine")
    (pair,) = read_pairs(image, np.ones((2, *SHAPE), np.uint8))
    assert (pair.image, pair.labels.scale, pair.name) == (image, (3, 1, 1), "mine")
    (pair,) = read_pairs(
        image, Image(np.ones((2, *SHAPE), np.uint8), "ZYX", name="truth")
    )
    assert isinstance(pair.labels, LabelImage)
    assert pair.labels.name == "truth"
    labels = LabelImage(np.ones((2, *SHAPE), np.uint8), "ZYX")
    assert read_pairs(image, labels)[0].labels is labels
    path = _write(tmp_path / "a.tif", 4, (2, *SHAPE))
    assert _values(read_pairs([image, path], [path, labels])) == [
        ("mine", 0, 4),
        ("a", 4, 1),
    ]


def test_annotated_images_are_returned_unchanged() -> None:
    pair = AnnotatedImage(Image(np.zeros(SHAPE)), LabelImage(np.zeros(SHAPE, int)))
    assert read_pairs(pair) == [pair]
    assert read_pairs([pair, pair]) == [pair, pair]


def test_axes_are_those_of_the_images_and_labels_lack_c(tmp_path: Path) -> None:
    image = _write(tmp_path / "a.tif", shape=(5, *SHAPE))
    labels = _write(tmp_path / "b.tif", shape=(5, *SHAPE))
    assert read_pairs(image, labels)[0].image.axes == "ZYX"
    (pair,) = read_pairs(image, labels, axes="TYX")
    assert pair.image.axes == pair.labels.axes == "TYX"
    (pair,) = read_pairs(image, _write(tmp_path / "c.tif"), axes="CYX")
    assert (pair.image.channels, pair.labels.axes) == (5, "YX")


def test_labels_that_do_not_name_their_axes_take_those_of_the_image(
    tmp_path: Path,
) -> None:
    times = tmp_path / "times.tif"
    tifffile.imwrite(
        times, np.zeros((5, *SHAPE), np.uint8), imagej=True, metadata={"axes": "TYX"}
    )
    (pair,) = read_pairs(times, _write(tmp_path / "plain.tif", shape=(5, *SHAPE)))
    assert pair.labels.axes == pair.image.axes == "TYX"
    both = tmp_path / "both.tif"
    tifffile.imwrite(
        both, np.zeros((2, 3, *SHAPE), np.uint8), imagej=True, metadata={"axes": "TZYX"}
    )
    unknown = tmp_path / "unknown.tif"
    tifffile.imwrite(
        unknown,
        np.ones((2, 3, *SHAPE), np.uint8),
        photometric="minisblack",
        metadata=None,
    )
    with pytest.raises(
        ImageError
    ):  # pages are pages: six of them are not two times three planes
        read_pairs(both, unknown)
    shaped = tmp_path / "shaped.tif"
    tifffile.imwrite(
        shaped, np.ones((2, 3, *SHAPE), np.uint8), photometric="minisblack"
    )
    (pair,) = read_pairs(both, shaped)
    assert pair.labels.axes == "TZYX"


def test_unknown_axes_must_be_named(tmp_path: Path) -> None:
    image = _write(tmp_path / "a.tif", shape=(2, 3, *SHAPE))
    labels = _write(tmp_path / "b.tif", shape=(3, 2, *SHAPE))
    with pytest.raises(ImageError, match=r"a\.tif.*--axes"):
        read_pairs(image, labels)
    with pytest.raises(ImageError, match=r"differ along"):
        read_pairs(image, labels, axes="TZYX")
    with pytest.raises(ImageError, match=r"b\.tif.*--axes"):
        read_pairs(_write(tmp_path / "c.tif"), labels)


def test_colour_coded_label_files(tmp_path: Path) -> None:
    image, labels = (
        _write(tmp_path / "a.tif", shape=(*SHAPE, 3)),
        _write(tmp_path / "b.png", 9, (*SHAPE, 3)),
    )
    for axes in (None, "YXC"):
        (pair,) = read_pairs(image, labels, axes=axes)
        assert pair.labels.axes == "YXC"
        assert pair.labels.read().shape == (3, *SHAPE)


def test_class_maps_of_files_are_read(tmp_path: Path) -> None:
    classes = ClassMap(names=("pore", "clay"), values=(1, 2))
    image = _write(tmp_path / "x" / "a.tif")
    write_labels(
        tmp_path / "y" / "a_label.tif",
        LabelImage(np.ones(SHAPE, np.uint8), classes=classes),
    )
    (pair,) = read_pairs(image.parent, tmp_path / "y")
    assert pair.labels.classes == classes
