# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Where the marks of the cohort's box plots and of a case's curve lie; the template draws them."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.ticker import MaxNLocator

__all__ = ["CURVE", "BoxPlot", "Curve", "Row", "box_plot", "curve"]

WIDTH, ROW = 300, 30  # of a plot, and the height of a row, in SVG units
CURVE = (250, 100)  # width and height of a curve


@dataclass(frozen=True)
class Row:
    """One row of a box plot, positions in SVG units.

    Attributes:
        name: what is shown.
        y: the middle of the row.
        box: fifth percentile, quartile, median, quartile, 95th percentile.
        points: case, x, y and value as text.
    """

    name: str
    y: float
    box: list[float]
    points: list[tuple[str, float, float, str]]


@dataclass(frozen=True)
class BoxPlot:
    """Box plots with every case as a point, over a common axis.

    Attributes:
        title: what is measured, with its unit.
        height: in SVG units.
        rows: one per series.
        ticks: x and text.
    """

    title: str
    height: float
    rows: list[Row]
    ticks: list[tuple[float, str]]


@dataclass(frozen=True)
class Curve:
    """A curve over iterations.

    Attributes:
        path: points of an SVG polyline.
        first: value at the start.
        last: least value.
        iterations: x and text of the ticks.
        values: y and text of the ticks.
    """

    path: str
    first: str
    last: str
    iterations: list[tuple[float, str]]
    values: list[tuple[float, str]]


def box_plot(title: str, series: Mapping[str, Mapping[str, float]]) -> BoxPlot | None:
    """Lay out box plots.

    Args:
        title: what is measured.
        series: name of a row → case → value; values that are not finite are left out.

    Returns:
        The plot; None where there are no two different values.
    """
    finite = {name: {c: v for c, v in row.items() if math.isfinite(v)} for name, row in series.items()}
    finite = {name: row for name, row in finite.items() if row}
    values = {value for row in finite.values() for value in row.values()}
    if len(values) < 2:
        return None
    margin = 0.04 * (max(values) - min(values))
    low, high = min(values) - margin, max(values) + margin

    def place(value: float) -> float:
        return round(WIDTH * (value - low) / (high - low), 1)

    rows = []
    for number, (name, row) in enumerate(finite.items()):
        middle = ROW * (number + 0.5)
        box = [place(float(q)) for q in np.percentile(list(row.values()), (5, 25, 50, 75, 95))]
        points = [(case, place(v), round(middle + _jitter(case), 1), f"{v:.4g}") for case, v in row.items()]
        rows.append(Row(name, middle, box, points))
    return BoxPlot(title, ROW * len(rows), rows, _ticks(low, high, 6, place))


def curve(values: Sequence[float]) -> Curve:
    """Lay out a falling curve."""
    low, high = min(values), max(values)
    margin = 0.05 * (high - low or abs(high) or 1.0)
    low, high = low - margin, high + margin
    steps = max(len(values) - 1, 1)
    width, height = CURVE

    def across(step: float) -> float:
        return round(width * step / steps, 1)

    def down(value: float) -> float:
        return round(height * (high - value) / (high - low), 1)

    path = " ".join(f"{across(step)},{down(value)}" for step, value in enumerate(values))
    first, last = f"{values[0]:.3g}", f"{min(values):.3g}"
    return Curve(path, first, last, _ticks(0, steps, 6, across, integer=True), _ticks(low, high, 6, down))


def _ticks(
    low: float, high: float, count: int, place: Callable[[float], float], integer: bool = False
) -> list[tuple[float, str]]:
    """Round values within a range, at most ``count`` steps of them: where they lie, and as text."""
    found = MaxNLocator(count, steps=[1, 2, 2.5, 5, 10], integer=integer).tick_values(low, high)
    return [(place(tick), f"{tick:g}") for tick in found if low <= tick <= high]


def _jitter(case: str) -> float:
    """A shift within the row that is always the same for a case."""
    return (zlib.crc32(case.encode()) % 1000 / 1000 - 0.5) * 0.6 * ROW
