"""The recipe box: choice of a recipe, main settings, form, and texts."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from napari import Viewer
from pytestqt.qtbot import QtBot
from qtpy.QtCore import QEvent, Qt
from qtpy.QtWidgets import QApplication, QFileDialog

from napari_strata.core.errors import RecipeError
from napari_strata.core.network_sections import AtrousUNet, Smp, UNet
from napari_strata.core.recipe import EarlyStopping, Plateau, Recipe
from napari_strata.core.recipes import dump_recipe, list_recipes, load_recipe
from napari_strata.widgets.train.form import RecipeForm
from napari_strata.widgets.train.recipe_box import FROM_FILE, RecipeBox, _difference

NAMES = [recipe.name for recipe in list_recipes()]
NETWORKS = st.sampled_from(
    [
        Smp(),
        Smp(encoder="resnet18", decoder_widths=(64, 32, 16, 8, 4), attention="scse"),
        UNet(),
        UNet(widths=(16, 32), norm="none", head_width=8),
        AtrousUNet(),
        AtrousUNet(kernels=(1, 3), dilations=(1, 6)),
    ]
)


@pytest.fixture
def box(qtbot: QtBot) -> RecipeBox:
    made = RecipeBox()
    qtbot.addWidget(made)
    made.show()
    return made


@pytest.fixture
def edits(box: RecipeBox) -> list[Recipe]:
    seen: list[Recipe] = []
    box.changed.connect(lambda: seen.append(box.recipe()))
    return seen


def opened(box: RecipeBox) -> RecipeForm:
    if not box.fold.is_open:
        box.fold.button.click()
    assert box.form is not None
    return box.form


def type_plain(qtbot: QtBot, box: RecipeBox, path: str, text: str) -> None:
    edit = box.fields[path].native
    edit.selectAll()
    qtbot.keyClick(edit, Qt.Key.Key_Delete)
    qtbot.keyClicks(edit, text)


def pick(box: RecipeBox, text: str) -> None:
    index = box.combo.findText(text)
    box.combo.setCurrentIndex(index)
    box.combo.activated.emit(index)


def test_it_starts_with_the_default_recipe(box: RecipeBox) -> None:
    assert (box.base(), box.overrides(), box.problem()) == ("default", {}, "")
    assert box.recipe() == load_recipe("default")
    assert [box.combo.itemText(i) for i in range(box.combo.count())] == [
        *NAMES,
        FROM_FILE,
    ]
    assert box.form is None, "the form is made when it is opened"
    assert not box.reset_button.isVisible()
    assert box.about.text().startswith("A good first choice")
    assert box.about.text().endswith("encoder.")


@pytest.mark.parametrize("name", NAMES)
def test_picking_a_recipe_shows_it(
    box: RecipeBox, edits: list[Recipe], name: str
) -> None:
    box.set_recipe(
        "unet-ct" if name == "default" else "default", {"training.epochs": 3}
    )
    edits.clear()
    pick(box, name)
    assert (box.base(), box.recipe(), box.overrides()) == (name, load_recipe(name), {})
    assert edits == [load_recipe(name)]
    assert (
        box.fields["training.learning_rate"].native.text()
        == f"{box.recipe().training.learning_rate:g}"
    )


def test_main_settings_change_the_recipe(
    box: RecipeBox, qtbot: QtBot, edits: list[Recipe]
) -> None:
    box.fields["training.epochs"].type("5")
    assert edits[-1].training.epochs == 5
    assert len(edits) == 1
    type_plain(qtbot, box, "patches.size", "128")
    type_plain(qtbot, box, "training.batch_size", "4")
    type_plain(qtbot, box, "training.learning_rate", "1e-4")
    wanted = {
        "training.epochs": 5,
        "patches.size": 128,
        "training.batch_size": 4,
        "training.learning_rate": 1e-4,
    }
    assert box.overrides() == wanted
    assert box.recipe() == load_recipe("default").with_overrides(wanted)
    assert "epochs 5 (was 30)" in box.differs.text()
    assert "and 1 more" in box.differs.text()
    assert "learning rate 0.0001 (was 0.001)" in box.differs.toolTip()
    assert box.reset_button.isVisible()
    qtbot.mouseClick(box.reset_button, Qt.MouseButton.LeftButton)
    assert box.overrides() == {}
    assert box.recipe() == load_recipe("default")
    assert box.fields["training.epochs"].native.text() == "30"
    assert not box.reset_button.isVisible()
    assert not box.differs.isVisible()


def test_form_and_main_settings_are_synchronized(
    box: RecipeBox, qtbot: QtBot, edits: list[Recipe]
) -> None:
    box.fields["training.epochs"].type("5")
    form = opened(box)
    assert form.field("training.epochs").native.text() == "5"
    edits.clear()
    form.field("training.epochs").type("6")
    assert box.fields["training.epochs"].native.text() == "6"
    assert [one.training.epochs for one in edits] == [6]
    box.fields["training.epochs"].type("7")
    assert form.field("training.epochs").native.text() == "7"
    assert [one.training.epochs for one in edits] == [6, 7]
    form.field("training.weight_decay").type("0")
    assert box.overrides() == {"training.epochs": 7, "training.weight_decay": 0.0}
    box.set_recipe("unet-ct")
    assert form.value() == box.recipe() == load_recipe("unet-ct")
    assert len(edits) == 4


@pytest.mark.parametrize("with_form", [False, True])
def test_a_wrong_entry_is_reported_and_the_last_valid_recipe_is_kept(
    box: RecipeBox, qtbot: QtBot, edits: list[Recipe], with_form: bool
) -> None:
    if with_form:
        opened(box)
    field = box.fields["training.learning_rate"]
    type_plain(qtbot, box, "training.learning_rate", "fast")
    assert box.problem().startswith("Learning rate is fast: it must be a number")
    assert box.problem() in box.wrong.text()
    assert box.wrong.isVisible()
    assert "border" in field.native.styleSheet()
    assert box.recipe() == load_recipe("default").with_overrides(box.overrides())
    box.fields["training.epochs"].type("9")
    assert box.problem(), "another setting does not correct it"
    form = opened(box)
    assert form.problem
    assert form.field("training.learning_rate").native.text() == "fast"
    assert form.field("training.epochs").native.text() == "9"
    form.field("training.learning_rate").type("0.01")
    assert box.problem() == ""
    assert not box.wrong.isVisible()
    assert field.native.text() == "0.01"
    assert box.overrides() == {"training.epochs": 9, "training.learning_rate": 0.01}


def test_reset_corrects_a_wrong_entry(box: RecipeBox, qtbot: QtBot) -> None:
    box.fields["training.epochs"].type("many")
    qtbot.mouseClick(box.reset_button, Qt.MouseButton.LeftButton)
    assert (box.problem(), box.fields["training.epochs"].native.text()) == ("", "30")
    assert box.fields["training.epochs"].native.styleSheet() == ""


def test_resizing_disables_the_patch_size(box: RecipeBox) -> None:
    size = box.fields["patches.size"].native
    assert size.isEnabled()
    box.set_recipe("atrous-resnet50")
    assert not size.isEnabled()
    assert "512 x 512" in box.resized.text()
    assert "512 x 512" in size.toolTip()
    opened(box).field("patches.resize").type("")
    assert size.isEnabled()
    assert not box.resized.isVisible()
    assert "Side of the square patches" in size.toolTip()


@pytest.mark.parametrize(
    ("base", "overrides"),
    [
        (
            "unet-ct",
            {
                "network.widths": (16, 32, 64, 128),
                "training.epochs": 30,
                "patches.per_epoch": 256,
            },
        ),
        ("default", {"network.kind": "unet", "network.widths": [16, 32, 64, 128]}),
        (
            "unet-classic",
            {"training.early_stopping": None, "training.loss": {"ce": 1, "dice": 2}},
        ),
        ("default", {"training.early_stopping.patience": 4}),
    ],
)
def test_set_recipe_takes_overrides(
    box: RecipeBox, base: str, overrides: dict[str, Any]
) -> None:
    box.set_recipe(base, overrides)
    wanted = load_recipe(base).with_overrides(overrides)
    assert (box.base(), box.recipe()) == (base, wanted)
    assert load_recipe(base).with_overrides(box.overrides()) == wanted
    assert opened(box).value() == wanted


def test_a_wrong_recipe_is_refused_and_the_old_one_is_kept(box: RecipeBox) -> None:
    for base, overrides in (("unet-cd", {}), ("unet-ct", {"training.epoch": 3})):
        with pytest.raises(RecipeError):
            box.set_recipe(base, overrides)
        assert (box.base(), box.combo.currentText(), box.recipe()) == (
            "default",
            "default",
            load_recipe("default"),
        )


def test_another_network_is_described(box: RecipeBox) -> None:
    form = opened(box)
    form.field("network.kind").type("unet")
    form.field("network.widths").type("16, 32")
    assert box.overrides() == {"network.kind": "unet", "network.widths": [16, 32]}
    assert box.differs.text() == "Changed: network unet (was smp), widths 16, 32"


@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    base=st.sampled_from(NAMES),
    network=NETWORKS,
    epochs=st.sampled_from([1, 18, 30, 10**6]),
    stopping=st.none() | st.builds(EarlyStopping, patience=st.sampled_from([5, 10])),
    plateau=st.builds(
        Plateau, factor=st.sampled_from([0.3, 0.5]), patience=st.sampled_from([3, 5])
    ),
    loss=st.sampled_from([{"ce": 1.0}, {"ce": 1.0, "dice": 1.0}, {"bce": 0.5}]),
    weights=st.sampled_from(["none", "balanced", (1.0, 2.0)]),
)
def test_base_and_overrides_make_the_recipe(
    base: str, network: Any, **training: Any
) -> None:
    names = {"stopping": "early_stopping", "weights": "class_weights"}
    start = load_recipe(base)
    change = {names.get(name, name): value for name, value in training.items()}
    recipe = start.model_copy(
        update={
            "network": network,
            "training": start.training.model_copy(update=change),
        }
    )
    overrides = _difference(start, recipe)
    assert start.with_overrides(overrides) == recipe
    for dotted in overrides:
        fewer = {key: value for key, value in overrides.items() if key != dotted}
        try:
            assert start.with_overrides(fewer) != recipe, f"{dotted} is not needed"
        except RecipeError:
            continue  # needed by the others


def test_a_recipe_from_a_file(
    box: RecipeBox,
    qtbot: QtBot,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    edits: list[Recipe],
) -> None:
    mine = (
        load_recipe("unet-ct")
        .with_overrides({"training.epochs": 3})
        .model_copy(update={"name": "my bones"})
    )
    good, bad = tmp_path / "mine.yaml", tmp_path / "bad.yaml"
    good.write_text(dump_recipe(mine), encoding="utf-8")
    bad.write_text("training: {epoch: 3}", encoding="utf-8")
    chosen = {"path": str(good)}
    monkeypatch.setattr(QFileDialog, "getOpenFileName", lambda *_: (chosen["path"], ""))
    with qtbot.waitSignal(box.changed, timeout=120_000):
        pick(box, FROM_FILE)
    assert (box.base(), box.recipe(), box.overrides()) == (str(good), mine, {})
    assert box.combo.currentText() == "my bones"
    assert box.fields["training.epochs"].native.text() == "3"
    chosen["path"] = str(bad)
    pick(box, FROM_FILE)
    qtbot.waitUntil(lambda: "training.epoch" in box.wrong.text(), timeout=120_000)
    assert "bad.yaml" in box.wrong.text()
    assert (box.base(), box.recipe(), box.combo.currentText()) == (
        str(good),
        mine,
        "my bones",
    )
    assert box.problem() == "", "the recipe is valid"
    chosen["path"] = ""  # cancelled
    pick(box, FROM_FILE)
    assert box.combo.currentText() == "my bones"
    assert edits == [mine]


def test_it_fits_into_a_narrow_dock(make_napari_viewer: Callable[..., Viewer]) -> None:
    viewer, box = make_napari_viewer(), RecipeBox()
    viewer.window.add_dock_widget(box, name="Train", area="right")
    form = opened(box)
    for section in form._sections.values():
        section.native.button.click()
    for name in NAMES:
        box.set_recipe(name)
        assert box.minimumSizeHint().width() <= 264, name
    box.fold.button.click()
    for name in NAMES:
        box.set_recipe(name)
        assert box.layout().heightForWidth(290) <= 180 + 40 * bool(
            box.recipe().patches.resize
        ), name


def test_a_deleted_box_is_not_referenced(
    make_napari_viewer: Callable[..., Viewer], qtbot: QtBot
) -> None:
    viewer, box = make_napari_viewer(), RecipeBox()
    dock = viewer.window.add_dock_widget(box, name="Train", area="right")
    opened(box).field("training.epochs").type("x")
    gone = weakref.ref(box)
    viewer.window.remove_dock_widget(dock)
    box.deleteLater()
    del box, dock
    QApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete)
    gc.collect()
    assert gone() is None
