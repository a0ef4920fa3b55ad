"""Pictures of scores, drawn with Pillow.

The confusion matrix, and image, truth and prediction side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

import numpy as np
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont

from napari_strata.core.classes import IGNORE
from napari_strata.core.events import describe_agreement
from napari_strata.core.metrics import ConfusionMatrix
from napari_strata.core.text import format_percent, format_score
from napari_strata.data.strokes import SPARSE

Array = np.ndarray[Any, Any]
Color: TypeAlias = tuple[int, int, int]
Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont

MAX_EXAMPLES = 8
"""Largest count of planes with a picture."""

PANEL = (360, 640)
"""Shortest and longest side of a panel in pixels.

Small planes are enlarged by whole numbers, large ones reduced.
"""

MARGIN, GAP, HEADER = 28, 16, 92
"""Pixels of an example's picture beside, between and above its panels."""

ROW = 34
"""Height of a row of the legend in pixels."""

INK, PALE, PAPER = (34, 34, 34), (118, 118, 118), (255, 255, 255)
RIGHT, WRONG = (0, 92, 175), (204, 68, 17)
"""Colours on the diagonal and off it; colour-blind readers can distinguish them."""

LARGE, MEDIUM, SMALL = 22, 17, 14
"""Font sizes."""

NAME_WIDTH = 220
"""Largest width of a class name in pixels."""


@dataclass(frozen=True, eq=False)
class Example:
    """One plane for a picture, small enough to keep.

    Parameters
    ----------
    picture
        uint8 (h, w, 3).
    truth, prediction
        Class indices uint8 (h, w); `IGNORE` where unlabelled.
    confusion
        Of the whole plane, or of the volume that it is from.
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
        """Reduce a plane to the size of a panel.

        Of a volume, the plane with the most labelled pixels is taken.

        Parameters
        ----------
        image
            Grey values (C, H, W) or (C, D, H, W) of any dtype.
        truth, prediction
            Class indices (H, W) or (D, H, W).
        first
            Number of the volume's first plane, for the name.
        """
        if truth.ndim == 3:
            z = int((truth != IGNORE).sum(axis=(1, 2)).argmax())
            name = f"{name} Z={first + z}"
            image, truth, prediction = image[:, z], truth[z], prediction[z]
        step = -(-max(truth.shape) // PANEL[1])  # rounded up
        # A side shorter than the step stays one pixel long.
        height, width = (max(1, n // step) * min(step, n) for n in truth.shape)
        return cls(
            name,
            to_picture(image[:, :height, :width], step),
            _subsample(truth[:height, :width], step),
            _subsample(prediction[:height, :width], step),
            confusion,
        )


def draw_example(example: Example) -> Pillow.Image:
    """Draw image, truth and prediction, with scores above and a legend below."""
    confusion = example.confusion
    colors = confusion.classes.colors
    panels = {
        "image": example.picture,
        "truth": _colorize(example.picture, example.truth, colors),
        "prediction": _colorize(example.picture, example.prediction, colors),
    }
    boxes = panel_boxes(example)
    height = boxes[0][3] - boxes[0][1]
    content = max(boxes[-1][2] - MARGIN, 3 * 240)
    legend = _legend(example)
    rows = _break_lines([text_width(text, MEDIUM) + 56 for text, _ in legend], content)
    canvas = Pillow.new(
        "RGB",
        (
            content + 2 * MARGIN,
            HEADER + height + ROW + ROW * len(rows) + MARGIN // 2,
        ),
        PAPER,
    )
    draw = ImageDraw.Draw(canvas)
    score = _describe_example(example)
    name_width = content - text_width(score, MEDIUM) - GAP
    name = shorten(example.name, LARGE, name_width)
    draw.text((MARGIN, 22), name, INK, font=_font(LARGE))
    draw.text((MARGIN + content, 26), score, PALE, font=_font(MEDIUM), anchor="ra")
    for (caption, panel), (left, top, _, _) in zip(panels.items(), boxes, strict=True):
        draw.text((left, top - 28), caption, PALE, font=_font(MEDIUM))
        canvas.paste(_enlarge(panel), (left, top))
    top = HEADER + height + 24
    for row in rows:
        left = MARGIN
        for number, width in row:
            text, color = legend[number]
            _draw_swatch(canvas, (left, top), color)
            position = (left + 30, top + 10)
            draw.text(position, text, INK, font=_font(MEDIUM), anchor="lm")
            left += width
        top += ROW
    return canvas


def panel_boxes(example: Example) -> list[tuple[int, int, int, int]]:
    """Return left, top, right and bottom of the panels that `draw_example` draws."""
    width, height = _enlarge(example.picture).size
    boxes = []
    for number in range(3):
        left = MARGIN + number * (width + GAP)
        boxes.append((left, HEADER, left + width, HEADER + height))
    return boxes


def draw_confusion(confusion: ConfusionMatrix) -> Pillow.Image:
    """Draw the confusion matrix: rows are truth, columns prediction.

    Each cell holds the share of its row and the count of pixels.
    """
    count = len(confusion.classes)
    names = [shorten(name, MEDIUM, NAME_WIDTH) for name in confusion.classes.names]
    widest = max(text_width(name, MEDIUM) for name in names)
    cell = _cell_size(count, widest)
    # Names that are too wide for their column are turned.
    is_vertical = widest > cell - 8
    left = 28 + 32 + widest + 16
    top = 28 + 34 + 40 + (widest if is_vertical else 20) + 12
    side = count * cell
    canvas = Pillow.new("RGB", (left + side + 190, top + side + 34), PAPER)
    draw = ImageDraw.Draw(canvas)
    title = shorten(_describe_scores(confusion), LARGE, canvas.width - 56)
    draw.text((28, 24), title, INK, font=_font(LARGE))
    draw.text(
        (left + side / 2, 84), "prediction", PALE, font=_font(MEDIUM), anchor="mm"
    )
    _draw_vertical(canvas, "truth", (40, top + side // 2), PALE)
    for i, name in enumerate(names):
        start = i * cell
        middle = top + start + cell / 2
        draw.text((left - 12, middle), name, INK, font=_font(MEDIUM), anchor="rm")
        if is_vertical:
            position = (left + start + cell // 2, top - 12)
            _draw_vertical(canvas, name, position, INK, above=True)
        else:
            draw.text(
                (left + start + cell / 2, top - 12),
                name,
                INK,
                font=_font(MEDIUM),
                anchor="ms",
            )
        iou = f"IoU {format_score(confusion.iou[i])}"
        pixels = f"{confusion.support[i]:,} pixels"
        x = left + side + 16
        draw.text((x, middle - 11), iou, INK, font=_font(MEDIUM), anchor="lm")
        draw.text((x, middle + 11), pixels, PALE, font=_font(SMALL), anchor="lm")
    _draw_cells(draw, confusion, (left, top), cell)
    return canvas


def _cell_size(count: int, widest: int) -> int:
    """Return the side of a cell of the confusion matrix in pixels."""
    if count <= 8:
        return min(150, max(104, widest + 16))
    if count <= 12:
        return 104
    return 72 if count <= 24 else 44


def _draw_cells(
    draw: ImageDraw.ImageDraw,
    confusion: ConfusionMatrix,
    corner: tuple[int, int],
    cell: int,
) -> None:
    size = 12
    if cell > 100:
        size = LARGE
    elif cell > 70:
        size = 16
    for (i, j), pixels in np.ndenumerate(confusion.counts):
        total = int(confusion.support[i])
        share = pixels / total if total else 0.0
        # The square root makes small shares visible: errors are read off them.
        color = _mix(PAPER, RIGHT if i == j else WRONG, share**0.5)
        ink = (190, 190, 190)
        if share > 0.3:
            ink = PAPER
        elif share:
            ink = INK
        x, y = corner[0] + j * cell, corner[1] + i * cell
        box = (x, y, x + cell - 3, y + cell - 3)
        draw.rectangle(box, fill=color if total else (244, 244, 244))
        center_x, center_y = x + (cell - 3) / 2, y + (cell - 3) / 2
        text = format_percent(share) if total else "-"
        if cell <= 50 or not pixels:
            text = text.rstrip("% ")
            draw.text((center_x, center_y), text, ink, font=_font(size), anchor="mm")
            continue
        draw.text(
            (center_x, center_y - size * 0.45),
            text,
            ink,
            font=_font(size),
            anchor="mm",
        )
        draw.text(
            (center_x, center_y + size * 0.75),
            format_count(int(pixels)),
            ink,
            font=_font(size * 2 // 3),
            anchor="mm",
        )


def _describe_example(example: Example) -> str:
    """Describe the scores of a plane, or its agreement with strokes."""
    confusion = example.confusion
    if (example.truth != IGNORE).mean() < SPARSE:
        pixels = int(confusion.counts.sum())
        return describe_agreement(confusion.pixel_accuracy, pixels)
    return _describe_scores(confusion)


def _describe_scores(confusion: ConfusionMatrix) -> str:
    accuracy = format_score(confusion.pixel_accuracy)
    return f"{confusion.describe_mean_iou()}   pixel accuracy {accuracy}"


def _legend(example: Example) -> list[tuple[str, Color | None]]:
    """Return text and colour of the classes in a plane; unlabelled has no colour."""
    classes, confusion = example.confusion.classes, example.confusion
    indices = set(np.unique(example.truth).tolist())
    indices |= set(np.unique(example.prediction).tolist())
    entries: list[tuple[str, Color | None]] = []
    for k, name in enumerate(classes.names):
        if k in indices or confusion.support[k]:
            short_name = shorten(name, MEDIUM, NAME_WIDTH)
            text = f"{short_name}   IoU {format_score(confusion.iou[k])}"
            entries.append((text, _rgb(classes.colors[k])))
    if IGNORE in indices:
        entries.append(("unlabelled", None))
    return entries


def _subsample(indices: Array, step: int) -> Array:
    """Take the middle pixel of each block of `step` x `step` pixels."""
    return indices[step // 2 :: step, step // 2 :: step].copy()


def to_picture(image: Array, step: int) -> Array:
    """Reduce grey values (C, H, W) to a picture uint8 (h, w, 3).

    Blocks are averaged and stretched between robust percentiles. One channel is grey,
    two are green and magenta, the first three of more are red, green and blue.
    """
    channels = [_average_blocks(channel, step) for channel in image[:3]]
    if len(channels) == 3 and image.dtype == np.uint8:
        return _to_uint8(np.stack(channels, axis=-1))
    stretched = [_stretch(channel) for channel in channels]
    if len(stretched) == 1:
        stretched = stretched * 3
    elif len(stretched) == 2:
        stretched = [stretched[1], stretched[0], stretched[1]]
    return np.stack(stretched, axis=-1)


def _average_blocks(channel: Array, step: int) -> Array:
    height, width = channel.shape
    rows, columns = min(step, height), min(step, width)
    blocks = channel.astype(np.float64).reshape(
        height // rows, rows, width // columns, columns
    )
    return np.asarray(blocks.mean(axis=(1, 3)))


def _stretch(channel: Array) -> Array:
    finite = channel[np.isfinite(channel)]
    low, high = np.percentile(finite, (0.5, 99.5)) if finite.size else (0.0, 1.0)
    values = (channel - low) / max(high - low, 1e-12)
    return _to_uint8(np.nan_to_num(values, nan=0.0, posinf=1.0, neginf=0.0) * 255)


def _colorize(picture: Array, indices: Array, colors: Sequence[str]) -> Array:
    """Paint class colours over a picture: shaded slightly, hatched where unlabelled."""
    grey = picture.astype(np.float64).mean(axis=-1, keepdims=True)
    table = np.full((256, 3), 128.0)
    table[: len(colors)] = [_rgb(color) for color in colors]
    painted = table[indices] + 0.25 * (grey - 128)
    unlabelled = indices == IGNORE
    rows, columns = np.indices(indices.shape)
    period = max(4, max(indices.shape) // 40)
    stripes = (rows + columns) % period < max(1, period // 4)
    painted[unlabelled] = np.repeat(0.6 * grey + 90, 3, axis=-1)[unlabelled]
    painted[unlabelled & stripes] = 250
    return _to_uint8(painted)


def _to_uint8(values: Array) -> Array:
    return np.asarray(values).clip(0, 255).round().astype(np.uint8)


def _enlarge(array: Array) -> Pillow.Image:
    picture = Pillow.fromarray(array)
    factor = max(1, -(-PANEL[0] // max(picture.size)))
    size = (picture.width * factor, picture.height * factor)
    return picture.resize(size, Pillow.Resampling.NEAREST)


def _draw_swatch(
    canvas: Pillow.Image, corner: tuple[int, int], color: Color | None
) -> None:
    """Draw a square of a colour; a hatched one without a colour."""
    side = 20
    square = np.full((side, side, 3), color or (150, 150, 150), np.uint8)
    if color is None:
        rows, columns = np.indices((side, side))
        square[(rows + columns) % 6 < 2] = 250
    canvas.paste(Pillow.fromarray(square), corner)


def _break_lines(widths: Sequence[int], limit: int) -> list[list[tuple[int, int]]]:
    """Arrange entries in lines of at most `limit` pixels.

    Returns
    -------
    list
        Number and width of each entry, for each line.
    """
    rows: list[list[tuple[int, int]]] = [[]]
    for number, width in enumerate(widths):
        filled = sum(taken for _, taken in rows[-1])
        if rows[-1] and filled + width > limit:
            rows.append([])
        rows[-1].append((number, width))
    return rows


def _draw_vertical(
    canvas: Pillow.Image,
    text: str,
    position: tuple[int, int],
    color: Color,
    *,
    above: bool = False,
) -> None:
    """Draw text that reads upwards, centred on a position or ending above it."""
    width = text_width(text, MEDIUM) + 4
    strip = Pillow.new("RGB", (width, 24), PAPER)
    draw = ImageDraw.Draw(strip)
    draw.text((2, 12), text, color, font=_font(MEDIUM), anchor="lm")
    x, y = position
    rise = width if above else width // 2
    canvas.paste(strip.rotate(90, expand=True), (x - 12, y - rise))


@cache
def _font(size: int) -> Font:
    return ImageFont.load_default(size)


def text_width(text: str, size: int) -> int:
    """Return the width of a text in pixels."""
    return int(_font(size).getlength(text)) + 1


def shorten(text: str, size: int, width: int) -> str:
    """Cut a text to a width in pixels; dots show that it was cut."""
    if text_width(text, size) <= width:
        return text
    while text and text_width(text + "...", size) > width:
        text = text[:-1]
    return text + "..."


def _rgb(color: str) -> Color:
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)


def _mix(first: Color, second: Color, share: float) -> Color:
    """Mix two colours; a share of 1 gives the second."""
    red, green, blue = (
        round(a + (b - a) * share) for a, b in zip(first, second, strict=True)
    )
    return red, green, blue


def format_count(count: int) -> str:
    """Format a count in at most five characters: 950, 12.3k, 4.56M."""
    for limit, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= limit:
            return f"{count / limit:.3g}{unit}"
    return str(count)
