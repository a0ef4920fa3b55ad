"""Metadata in OME-XML, ImageJ text and resolution tags."""

from __future__ import annotations

import pytest

from napari_strata.io.metadata import from_imagej, from_ome, from_shaped
from napari_strata.io.record import Record

IMAGE = """<Image Name="{name}"><Pixels PhysicalSizeX="{size}" PhysicalSizeY="nonsense" PhysicalSizeZ="-1"
 TimeIncrement="2" TimeIncrementUnit="min"><Channel/><Channel Name="GFP"/></Pixels></Image>"""
NO_TAGS = (0.0, 0.0, 1)


def ome(*images: str) -> str:
    return f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">{"".join(images)}</OME>'


def test_ome_ignores_invalid_sizes_and_adds_names() -> None:
    found = from_ome(ome(IMAGE.format(name="a", size="0.5")), 0)
    assert found.pixel == {
        "X": (0.5, "micrometer"),
        "Z": (1.0, "micrometer"),  # the sign is a direction
        "T": (2.0, "minute"),
    }
    assert found.channel_names == ("channel 0", "GFP")
    assert found.record is None


def test_ome_images_without_pixels_do_not_shift_the_others() -> None:
    xml = ome(
        '<Image Name="gone"/>',
        IMAGE.format(name="a", size="1"),
        IMAGE.format(name="b", size="2"),
    )
    assert from_ome(xml, 1, count=2, name="b").pixel["X"] == (2.0, "micrometer")
    assert from_ome(xml, 0, count=2, name="gone").pixel == {}
    assert from_ome(xml, 0, count=2, name="nobody").pixel == {}


def test_imagej_interval_and_unit() -> None:
    metadata = {
        "unit": "nm",
        "spacing": 40,
        "finterval": 5,
        "channels": 2,
        "Labels": ["a", "b"],
    }
    found = from_imagej(metadata, (0.5, 0.25, 1))
    nanometers = {
        "X": (2.0, "nanometer"),
        "Y": (4.0, "nanometer"),
        "Z": (40.0, "nanometer"),
    }
    assert found.pixel == nanometers | {"T": (5.0, "second")}
    assert found.channel_names == ("a", "b")


@pytest.mark.parametrize(
    "tags",
    [NO_TAGS, (1.0, 1.0, 2), (0.0, 300.0, 2), (72.0, 96.0, 2), (300.0, 300.0, 1)],
)
def test_resolution_tags_with_default_values(tags: tuple[float, float, int]) -> None:
    assert from_imagej({}, tags).pixel == {}


def test_resolutions_of_scanners_in_inches() -> None:
    found = from_imagej({"spacing": 0.001}, (2540.0, 5080.0, 2)).pixel
    assert found["X"] == (pytest.approx(10.0), "micrometer")
    assert found["Y"] == (pytest.approx(5.0), "micrometer")
    assert found["Z"] == (pytest.approx(25.4), "micrometer")


def test_shaped_metadata_of_every_kind() -> None:
    assert from_shaped(
        {"channel_names": ["a"], "PhysicalSizeY": 3}, NO_TAGS
    ).channel_names == ("a",)
    assert from_shaped({"channel_names": "abc"}, NO_TAGS).channel_names == ()
    assert from_shaped({"PhysicalSizeY": float("nan")}, NO_TAGS).pixel == {}


@pytest.mark.parametrize(
    "text", [None, "", "{", "[]", "3", '{"axes": "YX"}', '{"classes": {"names": []}}']
)
def test_invalid_records(text: str | None) -> None:
    assert Record.read(text) is None


def test_a_record_with_an_inconsistent_class_map_is_invalid() -> None:
    record = Record(
        axes="YX", shape=(2, 2), scale=(1, 1), units=("pixel", "pixel"), name="a"
    )
    twice = '{"names": ["a", "a"], "values": [0, 1], "colors": ["#000000", "#ffffff"]}'
    assert Record.read(record.text()) == record
    assert (
        Record.read(record.text().replace('"classes": null', f'"classes": {twice}'))
        is None
    )
