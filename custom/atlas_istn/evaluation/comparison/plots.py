# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Pictures of a comparison: box plots, the ITN against refinement, and a sweep over a setting."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ...errors import InputError
from ..scores import SCORES, score_title
from .results import Method, Scores
from .statistics import CONFIDENCE, SIGNIFICANCE, bootstrap_means
from .tables import HIGHER_IS_BETTER

__all__ = ["box_plots", "itn_against_refine", "sweep_plot"]

BETTER, WORSE, EQUAL = "#2e7d32", "#c62828", "#9e9e9e"
MARKERS = "osD^vPX*"
SHOWN = ("dice", "asd", "hd")
"""The metrics of the paper's figures; the box plots show all."""


def box_plots(scores: Scores) -> Figure:
    """A row per label, a column per metric, a box per method: quartiles, whiskers to 1.5 of their range, mean ▲."""
    figure, rows = _grid(scores.labels, tuple(SCORES), height=1.2 + 0.28 * len(scores.methods))
    for axes_row, label in zip(rows, scores.labels, strict=True):
        for axes, metric in zip(axes_row, SCORES, strict=True):
            values = [of_method[np.isfinite(of_method)] for of_method in scores.of(metric, label)]
            axes.boxplot(values, orientation="horizontal", showmeans=True, widths=0.6, flierprops={"markersize": 3})
            axes.invert_yaxis()
            axes.set_yticks(range(1, len(scores.methods) + 1), scores.methods if axes is axes_row[0] else [])
            axes.set_xlabel(_axis_title(metric, scores.unit))
            axes.grid(axis="x", alpha=0.3)
    return figure


def itn_against_refine(methods: Sequence[Method], scores: Scores) -> Figure | None:
    """Scatter of the ITN (x) against refinement (y) as in the Atlas-ISTN paper's Fig. 12.

    A row per evaluation, a column per metric, a point per case and label: green where refinement is better, red where
    it is worse; a marker per label.

    Args:
        methods: those of ``scores``.
        scores: the common cases.

    Returns:
        The figure; None if no evaluation has both results.
    """
    found = {(method.source, method.result): method.name for method in methods}
    sources = [source for source, result in found if result == "refine" and (source, "itn") in found]
    if not sources:
        return None
    labels = scores.labels[:-1] if len(scores.labels) > 1 else scores.labels  # without their mean
    markers = dict(zip(labels, MARKERS * len(labels), strict=False))
    figure, rows = _grid(sources, SHOWN, height=3.0)
    for axes_row, source in zip(rows, sources, strict=True):
        itn, refine = (scores.methods.index(found[source, result]) for result in ("itn", "refine"))
        for axes, metric in zip(axes_row, SHOWN, strict=True):
            for label, marker in markers.items():
                values = scores.of(metric, label)
                _scatter(axes, values[itn], values[refine], HIGHER_IS_BETTER[metric], marker)
            axes.set_xlabel(f"ITN: {_axis_title(metric, scores.unit)}")
            axes.set_ylabel("refine")
    if len(labels) > 1:
        handles = [Line2D([], [], color=EQUAL, marker=marker, linestyle="") for marker in markers.values()]
        rows[0][0].legend(handles, labels, fontsize=7)
    return figure


def _scatter(axes: Axes, itn: np.ndarray, refine: np.ndarray, higher_is_better: bool, marker: str) -> None:
    finite = np.isfinite(itn) & np.isfinite(refine)
    itn, refine = itn[finite], refine[finite]
    gain = np.sign(refine - itn) * (1 if higher_is_better else -1)
    colours = np.select([gain > 0, gain < 0], [BETTER, WORSE], EQUAL)
    axes.scatter(itn, refine, c=colours, marker=marker, s=14, alpha=0.8, linewidths=0)
    if finite.any():
        ends = [min(itn.min(), refine.min()), max(itn.max(), refine.max())]
        axes.plot(ends, ends, color="black", linewidth=0.8, zorder=0)


def _sweep_value(method: Method) -> float:
    """The value of the swept setting: the number at the end of the evaluation's name, as in ``lambda_0.1``, ``0.1``."""
    match = re.search(r"\d*\.?\d+(?:e[+-]?\d+)?$", method.source.lower())
    if not match:
        raise InputError(
            f"'{method.source}': a sweep needs the value of its setting at the end of the name. Give each folder its "
            "value, as in 0.1=PATH."
        )
    return float(match.group())


def sweep_plot(methods: Sequence[Method], scores: Scores, setting: str) -> Figure:
    """Each metric against a setting such as λ, as in the Atlas-ISTN paper's Fig. 8 and 15: a line per result.

    A row per label, a column per metric; the mean over the common cases in its bootstrap interval.

    Args:
        methods: those of ``scores``, of evaluations whose names end in the value of the setting.
        scores: the common cases.
        setting: its name.

    Returns:
        The figure.

    Raises:
        InputError: a name does not end in a number, or two evaluations have the same value.
    """
    points = {(method.result, _sweep_value(method)): index for index, method in enumerate(methods)}
    if len(points) < len(methods):
        raise InputError("two evaluations have the same value of the setting: give every folder its own, as 0.1=PATH.")
    figure, rows = _grid(scores.labels, SHOWN, height=2.4)
    for axes_row, label in zip(rows, scores.labels, strict=True):
        for axes, metric in zip(axes_row, SHOWN, strict=True):
            for result in dict.fromkeys(method.result for method in methods):
                settings = sorted(value for name, value in points if name == result)
                values = scores.of(metric, label)[[points[result, value] for value in settings]]
                _line_with_interval(axes, settings, values, result)
            axes.set_xscale("log" if all(value > 0 for _, value in points) else "symlog")
            axes.set_xlabel("λ" if setting == "lambda" else setting)
            axes.set_ylabel(_axis_title(metric, scores.unit))
            axes.grid(alpha=0.3)
    rows[0][0].legend(fontsize=7, title=f"mean, {CONFIDENCE:.0%} interval", title_fontsize=7)
    return figure


def _line_with_interval(axes: Axes, settings: Sequence[float], values: np.ndarray, label: str) -> None:
    finite = np.isfinite(values).all(axis=0)  # an infinite distance has no place in a picture
    if not finite.any():
        return
    means = np.stack([bootstrap_means(of_setting) for of_setting in values[:, finite]])
    low, high = np.quantile(means, [SIGNIFICANCE, 1 - SIGNIFICANCE], axis=1)
    (line,) = axes.plot(settings, values[:, finite].mean(axis=1), marker="o", markersize=3, label=label)
    axes.fill_between(settings, low, high, color=line.get_color(), alpha=0.2, linewidth=0)


def _grid(rows: Sequence[str], metrics: Sequence[str], height: float) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=(1.5 + 2.6 * len(metrics), height * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), len(metrics), squeeze=False)
    for axes_row, title in zip(axes, rows, strict=True):
        axes_row[0].set_title(title, loc="left", fontsize=9, fontweight="bold")
    return figure, axes


def _axis_title(metric: str, unit: str) -> str:
    return f"{score_title(metric, unit)} {'↑' if HIGHER_IS_BETTER[metric] else '↓'}"
