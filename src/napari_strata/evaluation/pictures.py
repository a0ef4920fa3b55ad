"""Pictures of scores, drawn with Pillow: the confusion matrix, and image, truth and prediction side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

import numpy as np
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont

from napari_strata.core.classes import IGNORE
from napari_strata.core.metrics import ConfusionMatrix

Array = np.ndarray[Any, Any]
Color: TypeAlias = tuple[int, int, int]
Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont

MOST = 8
"""Planes of which pictures are made."""

PANEL = (360, 640)
"""Shortest and longest side of a panel in pixels; small planes are enlarged by whole numbers, large ones reduced."""

MARGIN, GAP, HEAD = 28, 16, 92
"""Pixels of an example's picture beside, between and above its panels."""

INK, PALE, PAPER = (34, 34, 34), (118, 118, 118), (255, 255, 255)
RIGHT, WRONG = (0, 92, 175), (204, 68, 17)
"""Full blue on the diagonal, full vermilion off it: told apart by the colour-blind, and in grey by their places."""


@dataclass(frozen=True, eq=False)
class Example:
    """One plane for a picture, small enough to keep.

    Parameters
    ----------
    picture
        uint8 (h, w, 3).
    truth, prediction
        class indices uint8 (h, w); `IGNORE` where unlabelled.
    confusion
        of the whole plane, or of the volume that it is from.
    """

    name: str
    picture: Array
    truth: Array
    prediction: Array
    confusion: ConfusionMatrix

    @classmethod
    def of(
        cls,
        name: str,
        image: Array,
        truth: Array,
        *,
        prediction: Array,
        confusion: ConfusionMatrix,
        first: int = 0,
    ) -> Example:
        """From grey values (C, H, W) of any dtype and class indices (H, W), reduced to a panel's size.

        Of a volume, (C, D, H, W) and (D, H, W), the plane with the most labelled pixels is shown and named; its planes
        are numbered from `first`.
        """
        if truth.ndim == 3:
            z = int((truth != IGNORE).sum(axis=(1, 2)).argmax())
            name, image, truth, prediction = (
                f"{name} Z={first + z}",
                image[:, z],
                truth[z],
                prediction[z],
            )
        step = -(-max(truth.shape) // PANEL[1])
        height, width = (max(1, n // step) * min(step, n) for n in truth.shape)
        labels = [
            a[:height, :width][step // 2 :: step, step // 2 :: step].copy()
            for a in (truth, prediction)
        ]
        return cls(
            name,
            _display(image[:, :height, :width], step),
            labels[0],
            labels[1],
            confusion,
        )


def draw_example(example: Example) -> Pillow.Image:
    """Image, truth and prediction side by side, under the plane's scores and over the classes' names and IoU."""
    classes = example.confusion.classes
    panels = [
        ("image", example.picture),
        ("truth", _colored(example.picture, example.truth, classes.colors)),
        ("prediction", _colored(example.picture, example.prediction, classes.colors)),
    ]
    pictures = [_enlarged(array) for _, array in panels]
    width, height = pictures[0].size
    margin, gap, head = MARGIN, GAP, HEAD
    full = max(3 * width + 2 * gap, 3 * 240)
    entries = _legend(example)
    rows = _flow([_text_width(text, 17) + 56 for text, _ in entries], full)
    canvas = Pillow.new(
        "RGB",
        (full + 2 * margin, head + height + 34 + 34 * len(rows) + margin // 2),
        PAPER,
    )
    draw = ImageDraw.Draw(canvas)
    score = f"mean IoU {_number(example.confusion.mean_iou)}   pixel accuracy {_number(example.confusion.pixel_accuracy)}"
    room = full - _text_width(score, 17) - gap
    draw.text((margin, 22), _shortened(example.name, 22, room), INK, font=_font(22))
    draw.text((margin + full, 26), score, PALE, font=_font(17), anchor="ra")
    for i, ((caption, _), picture) in enumerate(zip(panels, pictures, strict=True)):
        left = margin + i * (width + gap)
        draw.text((left, head - 28), caption, PALE, font=_font(17))
        canvas.paste(picture, (left, head))
    top = head + height + 24
    for row in rows:
        left = margin
        for number, taken in row:
            _swatch(canvas, (left, top), entries[number][1])
            draw.text(
                (left + 30, top + 10),
                entries[number][0],
                INK,
                font=_font(17),
                anchor="lm",
            )
            left += taken
        top += 34
    return canvas


def panel_boxes(example: Example) -> list[tuple[int, int, int, int]]:
    """Where image, truth and prediction stand in what `draw_example` draws: left, top, right, bottom in pixels."""
    width, height = _enlarged(example.picture).size
    lefts = [MARGIN + number * (width + GAP) for number in range(3)]
    return [(left, HEAD, left + width, HEAD + height) for left in lefts]


def draw_confusion(confusion: ConfusionMatrix) -> Pillow.Image:
    """The confusion matrix: rows truth, columns prediction, each cell the share of its row and the pixels in it."""
    names = confusion.classes.names
    count = len(names)
    shown = [_shortened(name, 17, 220) for name in names]
    widest = max(_text_width(name, 17) for name in shown)
    cell = (
        min(150, max(104, widest + 16))
        if count <= 8
        else 104
        if count <= 12
        else 72
        if count <= 24
        else 44
    )
    size = 22 if cell > 100 else 16 if cell > 70 else 12
    left = 28 + 32 + widest + 16
    upright = widest > cell - 8
    top = 28 + 34 + 40 + (widest if upright else 20) + 12
    beside = 190
    canvas = Pillow.new(
        "RGB", (left + count * cell + beside, top + count * cell + 34), PAPER
    )
    draw = ImageDraw.Draw(canvas)
    title = f"mean IoU {_number(confusion.mean_iou)}   pixel accuracy {_number(confusion.pixel_accuracy)}"
    draw.text((28, 24), _shortened(title, 22, canvas.width - 56), INK, font=_font(22))
    draw.text(
        (left + count * cell / 2, 28 + 34 + 22),
        "prediction",
        PALE,
        font=_font(17),
        anchor="mm",
    )
    _write_upright(canvas, "truth", (40, top + count * cell // 2), PALE)
    for i, name in enumerate(shown):
        middle = top + i * cell + cell / 2
        draw.text((left - 12, middle), name, INK, font=_font(17), anchor="rm")
        if upright:
            _write_upright(
                canvas, name, (left + i * cell + cell // 2, top - 12), INK, bottom=True
            )
        else:
            draw.text(
                (left + i * cell + cell / 2, top - 12),
                name,
                INK,
                font=_font(17),
                anchor="ms",
            )
        right = left + count * cell + 16
        draw.text(
            (right, middle - 11),
            f"IoU {_number(confusion.iou[i])}",
            INK,
            font=_font(17),
            anchor="lm",
        )
        draw.text(
            (right, middle + 11),
            f"{confusion.support[i]:,} pixels",
            PALE,
            font=_font(14),
            anchor="lm",
        )
    _draw_cells(draw, confusion, (left, top), cell=cell, size=size)
    return canvas


def _draw_cells(
    draw: ImageDraw.ImageDraw,
    confusion: ConfusionMatrix,
    corner: tuple[int, int],
    *,
    cell: int,
    size: int,
) -> None:
    for (i, j), pixels in np.ndenumerate(confusion.counts):
        total = int(confusion.support[i])
        share = pixels / total if total else 0.0
        # The square root shows small shares, which are what one looks for off the diagonal.
        color = _mixed(PAPER, RIGHT if i == j else WRONG, share**0.5)
        x, y = corner[0] + j * cell, corner[1] + i * cell
        draw.rectangle(
            (x, y, x + cell - 3, y + cell - 3), fill=color if total else (244, 244, 244)
        )
        ink = PAPER if share > 0.3 else INK if share else (190, 190, 190)
        middle = (x + (cell - 3) / 2, y + (cell - 3) / 2)
        text = _percent(share) if total else "-"
        if cell <= 50 or not pixels:
            draw.text(middle, text.rstrip("% "), ink, font=_font(size), anchor="mm")
            continue
        draw.text(
            (middle[0], middle[1] - size * 0.45),
            text,
            ink,
            font=_font(size),
            anchor="mm",
        )
        draw.text(
            (middle[0], middle[1] + size * 0.75),
            _short(int(pixels)),
            ink,
            font=_font(size * 2 // 3),
            anchor="mm",
        )


def _legend(example: Example) -> list[tuple[str, Color | None]]:
    """What stands below the panels: classes that occur in the plane, with their IoU, and unlabelled (no colour)."""
    classes, confusion = example.confusion.classes, example.confusion
    seen = set(np.unique(example.truth).tolist()) | set(
        np.unique(example.prediction).tolist()
    )
    entries: list[tuple[str, Color | None]] = [
        (
            f"{_shortened(classes.names[i], 17, 220)}   IoU {_number(confusion.iou[i])}",
            _rgb(classes.colors[i]),
        )
        for i in range(len(classes))
        if i in seen or confusion.support[i]
    ]
    return entries + ([("unlabelled", None)] if IGNORE in seen else [])


def _display(image: Array, step: int) -> Array:
    """Grey values (C, H, W) as a picture uint8 (h, w, 3): means of blocks, stretched between robust percentiles.

    One channel is grey, two are green and magenta, of more the first three are red, green and blue.
    """
    channels = [_reduced(channel, step) for channel in image[:3]]
    if len(channels) == 3 and image.dtype == np.uint8:
        return _bytes(np.stack(channels, axis=-1))
    stretched = [_stretched(channel) for channel in channels]
    if len(stretched) == 2:
        stretched = [stretched[1], stretched[0], stretched[1]]
    return np.stack((stretched * 3)[:3], axis=-1)


def _reduced(channel: Array, step: int) -> Array:
    rows, columns = (min(step, n) for n in channel.shape)
    blocks = channel.astype(np.float64).reshape(
        channel.shape[0] // rows, rows, channel.shape[1] // columns, columns
    )
    return np.asarray(blocks.mean(axis=(1, 3)))


def _stretched(channel: Array) -> Array:
    finite = channel[np.isfinite(channel)]
    low, high = np.percentile(finite, (0.5, 99.5)) if finite.size else (0.0, 1.0)
    values = np.nan_to_num(
        (channel - low) / max(high - low, 1e-12), nan=0.0, posinf=1.0, neginf=0.0
    )
    return _bytes(values * 255)


def _colored(picture: Array, indices: Array, colors: Sequence[str]) -> Array:
    """Class colours, shaded by the picture but never far from the legend's; grey and hatched where unlabelled."""
    grey = picture.astype(np.float64).mean(axis=-1, keepdims=True)
    table = np.full((256, 3), 128.0)
    table[: len(colors)] = [_rgb(c) for c in colors]
    out = table[indices] + 0.25 * (grey - 128)
    bare = indices == IGNORE
    rows, columns = np.indices(indices.shape)
    period = max(4, max(indices.shape) // 40)
    stripe = (rows + columns) % period < max(1, period // 4)
    out[bare] = (0.6 * grey + 90)[..., [0, 0, 0]][bare]
    out[bare & stripe] = 250
    return _bytes(out)


def _bytes(values: Array) -> Array:
    return np.asarray(values).clip(0, 255).round().astype(np.uint8)


def _enlarged(array: Array) -> Pillow.Image:
    picture = Pillow.fromarray(array)
    factor = max(1, -(-PANEL[0] // max(picture.size)))
    return picture.resize(
        (picture.width * factor, picture.height * factor), Pillow.Resampling.NEAREST
    )


def _swatch(canvas: Pillow.Image, corner: tuple[int, int], color: Color | None) -> None:
    """A square of a colour; hatched when there is none."""
    side = 20
    square = np.full((side, side, 3), color or (150, 150, 150), np.uint8)
    if color is None:
        rows, columns = np.indices((side, side))
        square[(rows + columns) % 6 < 2] = 250
    canvas.paste(Pillow.fromarray(square), corner)


def _flow(widths: Sequence[int], room: int) -> list[list[tuple[int, int]]]:
    """Numbers of the entries of each line, with their widths, so that no line is wider than `room`."""
    rows: list[list[tuple[int, int]]] = [[]]
    for number, width in enumerate(widths):
        if rows[-1] and sum(w for _, w in rows[-1]) + width > room:
            rows.append([])
        rows[-1].append((number, width))
    return rows


def _write_upright(
    canvas: Pillow.Image,
    text: str,
    at: tuple[int, int],
    color: Color,
    *,
    bottom: bool = False,
) -> None:
    """Text turned a quarter, reading upwards, centred on `at`, or ending above it."""
    width = _text_width(text, 17) + 4
    strip = Pillow.new("RGB", (width, 24), PAPER)
    ImageDraw.Draw(strip).text((2, 12), text, color, font=_font(17), anchor="lm")
    turned = strip.rotate(90, expand=True)
    canvas.paste(turned, (at[0] - 12, at[1] - (width if bottom else width // 2)))


@cache
def _font(size: int) -> Font:
    return ImageFont.load_default(size)


def _text_width(text: str, size: int) -> int:
    return int(_font(size).getlength(text)) + 1


def _shortened(text: str, size: int, room: int) -> str:
    """`text` cut, with dots, to `room` pixels."""
    if _text_width(text, size) <= room:
        return text
    while text and _text_width(text + "...", size) > room:
        text = text[:-1]
    return text + "..."


def _rgb(color: str) -> Color:
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)


def _mixed(one: Color, other: Color, share: float) -> Color:
    red, green, blue = (
        round(a + (b - a) * share) for a, b in zip(one, other, strict=True)
    )
    return red, green, blue


def _number(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.3f}"


def _percent(share: float) -> str:
    return "0" if share == 0 else "<0.1 %" if share < 0.001 else f"{100 * share:.1f} %"


def _short(count: int) -> str:
    """A count in at most five characters: 950, 12.3k, 4.56M."""
    for limit, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= limit:
            return f"{count / limit:.3g}{unit}"
    return str(count)
