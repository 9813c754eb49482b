# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""One page that tells of a case: the contours of its results in three planes, and its quality figures.

No identifier of the patient is in it.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure

from .. import __version__
from .palette import LETTERS, label_colour
from .panels import draw_outlines, mark_sides, show_image
from .planes import choose_planes

__all__ = ["NOTICE", "draw_page", "page_text"]

Array = npt.NDArray[Any]

NOTICE = "Research use only. Not a medical device."
_SIZE = (12.8, 9.6)  # inches at 100 dots each
_WIDTH = 40  # characters of a line of text
_COLOUR = "white"


def draw_page(
    image: Array, spacing: Sequence[float], results: Mapping[str, Array], report: Mapping[str, Any]
) -> npt.NDArray[np.uint8]:
    """Draw the contours of the results on the image, in three planes as radiologists see them, and the figures.

    Each plane is the one that holds most of the last result.

    Args:
        image: ``[X, Y, Z]``, axes towards right, anterior and superior.
        spacing: millimetres per voxel along each axis.
        results: title → label map on the same grid; the last is that of the full method.
        report: quality figures of the case and the label values, as inference writes them.

    Returns:
        RGB ``[H, W, 3]``.
    """
    figure = Figure(figsize=_SIZE, dpi=100, layout="constrained", facecolor="black")
    halves: Any = figure.subfigures(1, 2, width_ratios=(3, 1), facecolor="black")  # its type does not tell how many
    pictures, text = halves
    full = list(results.values())[-1]
    colours = {value: label_colour(number) for number, value in enumerate(report["labels"].values())}
    columns = {"image": None, **results}
    planes = choose_planes(full, spacing)
    rows = pictures.subplots(3, len(columns), height_ratios=[plane.size[1] for plane in planes], squeeze=False)
    low, high = np.percentile(image, (1, 99))
    for row, plane in zip(rows, planes, strict=True):
        for axes, (title, labels) in zip(row, columns.items(), strict=True):
            show_image(axes, plane.cut(image), plane, vmin=low, vmax=high)
            axes.set_axis_off()
            mark_sides(axes, plane)
            axes.set_title(f"{plane.name}, {title}", color=_COLOUR, fontsize=9)
            if labels is not None:
                draw_outlines(axes, plane.cut(labels), colours)
    _write_text(text, page_text(full, spacing, report))
    figure.suptitle(f"Atlas-ISTN {__version__}. {NOTICE}", color=LETTERS, fontsize=11)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])


def page_text(labelmap: Array, spacing: Sequence[float], report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Write the figures of a case as lines with their colours; those of a label have the colour of its contours.

    Args:
        labelmap: ``[X, Y, Z]``, from which the volumes are taken.
        spacing: millimetres per voxel along each axis.
        report: quality figures of the case and the label values, as inference writes them.
    """
    known = {
        "loss_before": "objective, 1-pass: {:.4g}",
        "loss_after": "objective, refined: {:.4g}",
        "iterations": "iterations: {}",
        "seconds": "seconds: {:.1f}",
        "min_jacobian": "minimal Jacobian: {:.2f}",
        "folded_fraction": "folded fraction: {:.2%}",
    }
    figures = [text.format(report[name]) for name, text in known.items() if name in report]
    figures += [f"quality: {report.get('quality', 'not judged')}", f"warnings: {len(report['warnings']) or 'none'}"]
    predicted = report.get("predicted_dice", {})
    if isinstance(predicted, str):
        figures.append(f"predicted Dice: {predicted}")
        predicted = {}
    lines = [(line, _COLOUR) for line in figures]
    voxel = float(np.prod(spacing)) / 1000  # ml
    for number, (name, value) in enumerate(report["labels"].items()):
        volume, components = int((labelmap == value).sum()) * voxel, report["topology"][name]["components"]
        lines.append((f"{name}: {volume:.2f} ml, components: {components}", label_colour(number)))
        if name in predicted:
            text = "  predicted Dice {dice:.2f} ({low:.2f} to {high:.2f})".format(**predicted[name])
            lines.append((text, label_colour(number)))
    alarms = [*report["warnings"], *report.get("quality_reasons", [])]
    return lines + [(f"! {alarm}", LETTERS) for alarm in alarms]


def _write_text(column: SubFigure, lines: Sequence[tuple[str, str]]) -> None:
    """Fill the column of text, from the top down."""
    wrapped = [(part, colour) for line, colour in lines for part in textwrap.wrap(line, _WIDTH)]
    for number, (line, colour) in enumerate(wrapped):
        column.text(0.02, 0.96 - 0.026 * number, line, color=colour, fontsize=9, va="top")
