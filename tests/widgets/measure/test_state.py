"""Decisions and contents of the Measure dock, without a viewer."""

from __future__ import annotations

import math
from typing import Any

import pytest

from napari_strata.measure.fractions import NO_MODEL
from napari_strata.report.measure_tables import (
    ABSENT,
    CHORDS,
    CONNECTED,
    CORRELATION,
    ROCK,
    SURFACE,
    TOPICS,
    VOLUME,
    fraction_table,
    profile_curves,
    topic_content,
    why_no_interval,
)
from napari_strata.widgets.measure.state import (
    SPECIMEN,
    WHOLE,
    MeasureState,
    resolve,
)


def fraction(**changed: Any) -> dict[str, Any]:
    known = {
        "count": 0.1,
        "estimate": 0.11,
        "low": 0.1,
        "high": 0.12,
        "interval": "model",
        "why": "from the model's errors",
    }
    return known | changed


def without(why: str = NO_MODEL) -> dict[str, Any]:
    return fraction(estimate=0.1, low=None, high=None, interval="none", why=why)


MEASURES: dict[str, Any] = {
    "region": "specimen",
    "voxels": 1000,
    "about": {
        "labels": "rock",
        "unit": "micrometer",
        "voxel_size": {"Z": 2, "Y": 1, "X": 1},
        "colors": {"pore": "#4477aa", "grain": "#ddcc77"},
    },
    "fractions": {"pore": fraction(), "grain": without("validation has 3 pieces")},
    "profile": {
        "axis": "Z",
        "unit": "micrometer",
        "positions": [0, 2],
        "voxels": [500, 500],
        "fractions": {
            "pore": {
                "count": [0.1, 0.1],
                "estimate": [0.1, 0.12],
                "low": [None, 0.1],
                "high": [None, 0.14],
            },
            "grain": {
                "count": [0.9, None],
                "estimate": [0.9, None],
                "low": [None, None],
                "high": [None, None],
            },
        },
    },
    "connected": {
        "pore": {
            "pieces": 1234,
            "largest": 0.5,
            "open": 0.9,
            "closed": 0.1,
            "through": {"z": 0.5, "y": 0.0, "x": None},
            "why": {"x": "the region has no flat ends along X"},
        }
    },
    "surface": {
        "pore": {
            "specific": 0.02,
            "of_class": 0.2,
            "by_axis": {"z": 0.01, "y": 0.02, "x": 0.03},
            "contact": {},
        }
    },
    "chords": {
        "pore": {
            "x": {"count": 4, "cut": 1, "mean": 1.5, "step": 1, "counts": [0, 1, 3]},
            "z": {"count": 0, "cut": 5, "mean": None, "step": 2, "counts": [0]},
        }
    },
    "correlation": {"pore": {"mean": {"distance": [0, 1], "s2": [0.1, None]}}},
    "local": {
        "unit": "micrometer",
        "curves": {
            "pore": [
                {"side": 4, "cubes": 64, "mean": 0.1, "std": 0.02},
                {"side": 8, "cubes": 8, "mean": 0.1, "std": 0.01},
            ]
        },
    },
    "rock": {
        "pore": {"share": 0.1, "pieces": 90.2, "half_width": 0.013, "why": ""},
        "grain": {
            "share": 0.9,
            "pieces": 12.0,
            "half_width": None,
            "why": "too few grains",
        },
    },
}


def test_fractions_come_with_their_interval_or_the_reason_against_it() -> None:
    table = fraction_table(MEASURES)
    assert [row.texts for row in table.rows] == [
        ("11.00 %", "10.00 \N{EN DASH} 12.00"),
        ("10.00 %", ABSENT),
    ]
    assert "corrected by the mean error" in table.rows[0].tips[0]
    assert table.rows[1].tips[1] == "Validation has 3 pieces."
    assert table.rows[0].color == "#4477aa"
    assert why_no_interval(MEASURES) == (
        "No interval for grain: validation has 3 pieces."
    )
    none = MEASURES | {"fractions": {"pore": without(), "grain": without()}}
    assert why_no_interval(none) == (
        "No interval: choose the model that predicted these labels."
    )
    drift = without("the image looks unlike the training images")
    none = MEASURES | {"fractions": {"pore": drift, "grain": drift}}
    assert why_no_interval(none) == f"No interval: {drift['why']}."
    all_known = MEASURES | {"fractions": {"pore": fraction()}}
    assert why_no_interval(all_known) == ""


def test_profiles_are_percent_with_a_band_where_it_is_known() -> None:
    content = profile_curves(MEASURES)
    assert content is not None
    pore, grain = content.curves
    assert (content.x_title, content.y_title) == ("Z (µm)", "%")
    assert pore.ys == pytest.approx((10, 12))
    assert math.isnan(pore.low[0])
    assert pore.high[1] == pytest.approx(14)
    assert grain.low == ()
    assert math.isnan(grain.ys[1])
    assert profile_curves(MEASURES | {"profile": {}}) is None


def test_tables_and_curves_of_shape() -> None:
    table = topic_content(MEASURES, CONNECTED).table
    assert table is not None
    assert table.rows[0].texts == (
        *("1,234", "90.0"),
        *("50.0", "no", ABSENT),
    )
    assert "no flat ends" in topic_content(MEASURES, CONNECTED).explanation
    table = topic_content(MEASURES, SURFACE).table
    assert table is not None
    assert table.columns[1].text == "1/µm"
    assert table.rows[0].texts == ("0.02", "0.2", "0.01", "0.02", "0.03")
    chords = topic_content(MEASURES, CHORDS)
    assert chords.table is not None
    assert chords.curves is not None
    assert chords.table.rows[0].texts == (ABSENT, "1.5")
    assert chords.table.rows[0].tips == ("0 chords, 5 cut", "4 chords, 1 cut")
    assert chords.curves.curves[0].ys == (25, 75)
    curves = topic_content(MEASURES, CORRELATION).curves
    assert curves is not None
    assert curves.curves[0].xs == (0, 1)
    curves = topic_content(MEASURES, VOLUME).curves
    assert curves is not None
    assert curves.curves[0].ys == pytest.approx((2, 1))
    rock = topic_content(MEASURES, ROCK)
    assert rock.table is not None
    assert [row.texts for row in rock.table.rows] == [
        ("10.00 %", "± 1.30", "90"),
        ("90.00 %", ABSENT, "12"),
    ]
    assert "grain: too few grains." in rock.explanation


def test_what_was_not_measured_has_its_reason() -> None:
    plane = MEASURES | {"connected": {"why": "A single plane."}}
    assert topic_content(plane, CONNECTED).why == "A single plane."
    for topic in TOPICS:
        content = topic_content(MEASURES | {"why_no_shape": "several times"}, topic)
        assert content.why == "Not measured: several times."
        assert content.table is None


def test_controls_say_why_they_cannot_be_used() -> None:
    view = resolve(MeasureState())
    assert view.measure.why_not == "Choose the labels to measure."
    assert view.export.why_not == "Measure first."
    assert not view.stop.visible
    ready = MeasureState(labels="rock", depth=4)
    view = resolve(ready)
    assert view.measure.enabled
    assert view.model_text == "Without a model, fractions have no interval."
    view = resolve(MeasureState(labels="rock", region="roi", region_problem="No shape"))
    assert view.measure.why_not == view.region_text == "No shape"
    assert "hull" in resolve(MeasureState(labels="rock", region=SPECIMEN)).region_text
    assert resolve(MeasureState(labels="rock", region=WHOLE)).region_text == ""
    busy = resolve(MeasureState(labels="rock", activity="Measuring", is_running=True))
    assert busy.measure.why_not == "Measuring"
    assert busy.stop.visible
    assert "Choose the image" in resolve(MeasureState(labels="r", model="m")).model_text
