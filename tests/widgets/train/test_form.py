"""The form of a recipe: it keeps every recipe exactly; typed values are used or refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pytestqt.qtbot import QtBot
from qtpy.QtCore import QPoint, QPointF, Qt
from qtpy.QtGui import QWheelEvent
from qtpy.QtWidgets import QApplication, QLabel

from napari_strata.core.network_sections import AtrousUNet, Smp, UNet
from napari_strata.core.recipe import EarlyStopping, Recipe
from napari_strata.core.recipes import list_recipes
from napari_strata.widgets.train.fields import Field, show_value
from napari_strata.widgets.train.form import RecipeForm, _Variant

WIDTHS = st.lists(st.integers(1, 4096), min_size=2, max_size=8).map(tuple)
SHARE = st.floats(0, 1, exclude_max=True)
RATE = st.one_of(
    st.sampled_from([1e-4, 3.3e-7, 1e-3, 1.0, 1e16]), st.floats(1e-300, 1e300)
)
COUNT = st.one_of(st.integers(1, 100), st.sampled_from([100_000, 2**31, 2**40]))
LOSSES = st.dictionaries(
    st.sampled_from(["ce", "bce", "dice", "focal", "tversky", "lovasz"]),
    RATE,
    min_size=1,
)
TEXT = st.text(min_size=1, max_size=8).filter(str.strip)


@st.composite
def atrous(draw: st.DrawFn) -> AtrousUNet:
    pairs = draw(
        st.lists(
            st.tuples(st.sampled_from([1, 3, 5, 7]), st.integers(1, 40)), max_size=6
        )
    )
    five = draw(st.tuples(*[st.integers(1, 2048)] * 5))
    kernels, dilations = tuple(k for k, _ in pairs), tuple(d for _, d in pairs)
    return AtrousUNet(
        kernels=kernels,
        dilations=dilations,
        decoder_widths=five,
        encoder_weights=draw(TEXT),
    )


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    network = draw(
        st.one_of(
            st.builds(
                UNet,
                widths=WIDTHS,
                dropout=SHARE,
                head_width=st.none() | COUNT,
                transpose_kernel=st.just(3),
            ),
            atrous(),
            st.builds(
                Smp,
                encoder=TEXT,
                decoder_widths=st.none() | WIDTHS | st.just(()),
                attention=st.sampled_from([None, "scse"]),
            ),
        )
    )
    stopping = st.none() | st.builds(
        EarlyStopping, monitor=st.sampled_from(["loss", "iou"]), patience=COUNT
    )
    training = {
        "epochs": draw(COUNT),
        "learning_rate": draw(RATE),
        "weight_decay": draw(st.floats(0, 1e300)),
        "loss": draw(LOSSES),
        "class_weights": draw(
            st.sampled_from(["none", "balanced"])
            | st.lists(RATE, max_size=5).map(tuple)
        ),
        "clip_norm": draw(st.none() | RATE),
        "averaging": draw(st.none() | st.floats(1e-9, 1, exclude_max=True)),
        "early_stopping": draw(stopping),
        "seed": draw(st.integers(0, 2**32 - 1)),
        "start": draw(st.none() | TEXT),
        "freeze_encoder": draw(st.integers(0, 100)),
        "plateau": {"factor": 0.3, "min_rate": draw(st.floats(0, 1))},
    }
    patches = {
        "per_epoch": draw(st.none() | COUNT),
        "resize": draw(st.none() | st.integers(16, 4096)),
    }
    flips = {"flip_horizontal": draw(st.booleans()), "noise": draw(st.floats(0, 2))}
    return Recipe(
        name=draw(st.text(max_size=8)),
        description=draw(st.text(max_size=8)),
        network=network,
        patches=patches,
        augmentation=flips,
        normalization={"percentiles": (draw(st.floats(0, 49)), 99.9)},
        training=training,
    )


@pytest.fixture
def form(qtbot: QtBot) -> RecipeForm:
    made = RecipeForm()
    qtbot.addWidget(made.native)
    return made


@pytest.fixture
def edits(form: RecipeForm) -> list[RecipeForm]:
    seen: list[RecipeForm] = []
    form.changed.connect(seen.append)
    return seen


def read_again(form: RecipeForm) -> Recipe:
    """Return the recipe from the widgets, not the one that was set."""
    form._recipe = form._recipe.model_copy(
        update={"training": Recipe().training, "network": Smp()}
    )
    form._on_edit()
    assert form.problem == ""
    return form.value()


def type_into(qtbot: QtBot, field: Field, text: str) -> None:
    edit = field.native
    edit.selectAll()
    qtbot.keyClick(edit, Qt.Key.Key_Delete)
    qtbot.keyClicks(edit, text)


def notes(form: RecipeForm) -> list[str]:
    return [
        one.text()
        for one in form.native.findChildren(QLabel)
        if one.text().startswith("⚠") and not one.isHidden()
    ]


@pytest.mark.parametrize("recipe", list_recipes(), ids=lambda recipe: recipe.name)
def test_a_bundled_recipe_round_trips(
    form: RecipeForm, edits: list[Any], recipe: Recipe
) -> None:
    form.set_value(recipe)
    assert not edits, "showing a recipe is no edit"
    assert form.value() == recipe
    assert read_again(form) == recipe


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(recipe=recipes())
def test_any_recipe_round_trips(form: RecipeForm, recipe: Recipe) -> None:
    form.set_value(recipe)
    assert read_again(form) == recipe


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(recipe=recipes())
def test_the_text_of_every_field_is_parsed_to_its_value(
    form: RecipeForm, recipe: Recipe
) -> None:
    form.set_value(recipe)
    for field in form.fields():
        value = field.value
        if not (field.is_switch or field._choices or "encoder" in field.path):
            again = field._parse(show_value(value))
            assert again == value, field.path
            assert (again is None) == (value is None), field.path


def test_every_setting_has_a_widget_with_a_label_and_an_explanation(
    form: RecipeForm,
) -> None:
    paths = {field.path for field in form.fields()}
    wanted = {
        "network.kind",
        "patches.per_epoch",
        "training.plateau.factor",
        "training.loss",
        "augmentation.blur",
    }
    assert wanted <= paths
    assert not paths & {"version", "name", "description"}
    for field in form.fields():
        assert len(field.native.toolTip()) > len("<qt><p></p></qt>"), field.path
        assert field.label[0].isupper(), field.path
        assert "_" not in field.label, field.path


@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        ("training.epochs", "5", 5),
        ("training.learning_rate", "1e-4", 1e-4),
        ("training.learning_rate", "3.3e-7", 3.3e-7),
        ("training.clip_norm", "", None),
        ("training.seed", str(2**32 - 1), 2**32 - 1),
        ("training.loss", "ce: 1, dice:0.5", {"ce": 1, "dice": 0.5}),
        ("training.loss", "{focal: 2}", {"focal": 2}),
        ("training.class_weights", "balanced", "balanced"),
        ("training.class_weights", "1, 2.5, 1e-3", (1, 2.5, 1e-3)),
        ("training.class_weights", "2", (2,)),
        ("patches.per_epoch", "100000", 100_000),
        ("normalization.percentiles", "1 99", (1, 99)),
        ("network.decoder_widths", "[256, 128, 64]", (256, 128, 64)),
        ("network.encoder", "mit_b0", "mit_b0"),
        ("network.encoder", "18", "18"),
        ("training.start", "/runs/12", "/runs/12"),
        ("training.start", "", None),
        ("training.freeze_encoder", "3", 3),
    ],
)
def test_typing_changes_the_recipe(
    form: RecipeForm, qtbot: QtBot, path: str, text: str, value: Any
) -> None:
    type_into(qtbot, form.field(path), text)
    section, name = path.split(".")
    assert getattr(getattr(form.value(), section), name) == value
    assert form.problem == ""


def test_an_edit_emits_one_signal(
    form: RecipeForm, qtbot: QtBot, edits: list[Any]
) -> None:
    qtbot.keyClick(form.field("training.epochs").native, Qt.Key.Key_End)
    qtbot.keyClick(form.field("training.epochs").native, Qt.Key.Key_5)
    assert form.value().training.epochs == 305
    assert edits == [form]
    form.field("augmentation.flip_vertical").native.click()
    assert form.value().augmentation.flip_vertical is False
    assert len(edits) == 2
    form.field("training.schedule").type("cosine")
    assert form.value().training.schedule == "cosine"
    assert len(edits) == 3


@pytest.mark.parametrize(
    ("path", "text", "words"),
    [
        ("training.epochs", "0", "Epochs is 0: it must be greater than or equal to 1"),
        ("training.epochs", "abc", "Epochs is abc: it must be an integer"),
        ("training.epochs", "2.5", "Epochs is 2.5"),
        ("training.epochs", "yes", "Epochs is yes"),
        ("training.epochs", "", "Epochs is empty: type a value, such as 30."),
        (
            "training.learning_rate",
            "-1",
            "Learning rate is -1: it must be greater than 0",
        ),
        ("training.loss", "cee: 1", "Loss"),
        (
            "training.loss",
            "{ce: [}",
            "Loss is {ce: [}: it cannot be read; type it like this: ce: 1, dice: 1.",
        ),
        (
            "training.class_weights",
            "even",
            "Class weights is even: it must be none or balanced",
        ),
        ("normalization.percentiles", "99, 1", "(99, 1)"),
        ("patches.size", "8", "Size is 8: it must be greater than or equal to 16"),
    ],
)
def test_a_wrong_entry_is_reported_and_ignored(
    form: RecipeForm, qtbot: QtBot, path: str, text: str, words: str
) -> None:
    before, field = form.value(), form.field(path)
    field.type(text)
    assert words in form.problem
    assert form.value() == before
    assert "border" in field.native.styleSheet()
    assert words in field.native.toolTip().replace("&#x27;", "'")
    assert any(words in note for note in notes(form))
    assert form._sections[path.split(".")[0]].native.button.text().endswith("⚠"), (
        "a closed group says so too"
    )
    field.type(
        show_value(getattr(getattr(before, path.split(".")[0]), path.split(".")[1]))
    )
    assert form.problem == ""
    assert notes(form) == []
    folds = [section.native for section in form._sections.values()]
    assert not any("⚠" in fold.button.text() for fold in folds)
    assert field.native.styleSheet() == ""
    assert form.value() == before


def test_two_fields_that_must_fit_can_be_changed_one_after_the_other(
    form: RecipeForm, qtbot: QtBot
) -> None:
    form.set_value(Recipe(network=AtrousUNet()))
    form.field("network.kernels").type("1, 3, 3")
    form.field("training.epochs").type("0")
    assert "Kernels has 3 entries and Dilations 4" in form.problem
    assert len(notes(form)) == 2, "one for the pair, one for the epochs"
    form.field("training.epochs").type("7")
    assert form.value().training.epochs == 30, "the whole does not fit yet"
    form.field("network.dilations").type("1, 6, 12")
    network = form.value().network
    assert isinstance(network, AtrousUNet)
    assert (network.kernels, network.dilations) == ((1, 3, 3), (1, 6, 12))
    assert form.value().training.epochs == 7


def test_each_kind_of_network_keeps_its_values(
    form: RecipeForm, edits: list[Any]
) -> None:
    kind = form.field("network.kind")
    kind.type("unet")
    assert form.value().network == UNet()
    assert len(edits) == 1
    form.field("network.widths").type("8, 16")
    kind.type("atrous unet")
    assert form.value().network == AtrousUNet()
    kind.type("unet")
    assert form.value().network == UNet(widths=(8, 16))
    section = form._sections["network"]
    assert isinstance(section, _Variant)
    assert [
        name for name, group in section._groups.items() if not group.isHidden()
    ] == ["unet"]


def test_another_recipe_clears_what_was_left_in_the_other_kinds(
    form: RecipeForm,
) -> None:
    form.field("network.kind").type("unet")
    form.field("network.widths").type("8, 16")
    form.set_value(Recipe())
    form.field("network.kind").type("unet")
    assert form.value().network == UNet()


def test_early_stopping_is_switched_on_and_off(
    form: RecipeForm, edits: list[Any]
) -> None:
    section = form._sections["training"].group.parts["early_stopping"]
    assert form.value().training.early_stopping is None
    assert section.group.isHidden()
    section.switch.native.click()
    assert form.value().training.early_stopping == EarlyStopping()
    assert not section.group.isHidden()
    form.field("training.early_stopping.patience").type("3")
    assert form.value().training.early_stopping == EarlyStopping(patience=3)
    assert len(edits) == 2
    section.switch.native.click()
    assert form.value().training.early_stopping is None


def test_hidden_values_are_kept(form: RecipeForm) -> None:
    form.set_value(Recipe(name="mine", description="a\u2028b"))
    form.field("training.epochs").type("3")
    assert (form.value().name, form.value().description) == ("mine", "a\u2028b")


def test_the_text_is_normalised_when_typing_ends(
    form: RecipeForm, qtbot: QtBot
) -> None:
    field = form.field("training.learning_rate")
    type_into(qtbot, field, "2e-4")
    assert field.native.text() == "2e-4"
    qtbot.keyClick(field.native, Qt.Key.Key_Return)
    assert field.native.text() == "0.0002"
    assert form.value().training.learning_rate == 2e-4


def test_the_wheel_scrolls_the_page_and_changes_no_setting(form: RecipeForm) -> None:
    combo = form.field("training.optimizer").native
    down = QWheelEvent(
        QPointF(5, 5),
        QPointF(combo.mapToGlobal(QPoint(5, 5))),
        QPoint(),
        QPoint(0, -120),
        Qt.MouseButton.NoButton,
        Qt.KeyboardModifier.NoModifier,
        Qt.ScrollPhase.NoScrollPhase,
        False,
    )
    QApplication.sendEvent(combo, down)
    assert form.value().training.optimizer == "adamw"


def test_an_open_group_has_the_height_of_its_content(
    form: RecipeForm, qtbot: QtBot
) -> None:
    form.native.show()
    training = form._sections["training"]
    assert training.group.isHidden() or not training.group.isVisible()
    training.native.button.click()
    assert training.group.isVisible()
    inner = training.group.parts["plateau"]
    before = training.native.sizeHint().height()
    inner.native.button.click()
    assert inner.group.isVisible()
    assert training.native.sizeHint().height() > before
