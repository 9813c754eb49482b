# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Pictures of modes of variation, group differences and motion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from ..files import write_whole
from ..spatial import warp
from .modes import ShapeModes

__all__ = ["draw_curves", "draw_groups", "draw_modes"]

COLOURS = ("#d62728", "#1f77b4", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf")
SHOWN = (-2.0, -1.0, 0.0, 1.0, 2.0)  # standard deviations


def draw_modes(result: ShapeModes, probabilities: Tensor, path: str | Path) -> None:
    """Draw, one row per mode, the labels at −2 … +2 standard deviations over the dashed outline of the mean.

    In 3D, the plane through the middle of the anatomy that is widest.

    Args:
        result: the modes.
        probabilities: soft labelmap of the atlas ``[Nc, *shape]``.
        path: picture.
    """
    count = len(result.deviations)
    figure = Figure(figsize=(2 * len(SHOWN), 2.2 * count + 0.3), layout="constrained")
    rows = figure.subplots(count, len(SHOWN), squeeze=False)
    mean = _warped(probabilities, result, 0, 0.0)
    cut = _Plane(1 - mean[0])
    for mode, row in enumerate(rows):
        for axes, amount in zip(row, SHOWN, strict=True):
            shape = _warped(probabilities, result, mode, amount)
            cut.prepare(axes, result.mean.spacing)
            for label in range(1, len(shape)):
                colour = COLOURS[(label - 1) % len(COLOURS)]
                cut.outline(axes, _margin(mean, label), colors="grey", linewidths=0.8, linestyles="dashed")
                cut.outline(axes, _margin(shape, label), colors=colour, linewidths=1.5)
            axes.set_title(f"{amount:+g} SD" if amount else "mean", fontsize=9)
        row[0].set_ylabel(f"mode {mode + 1}\n{100 * result.explained[mode]:.0f} % of variance", fontsize=9)
    write_whole(path, lambda part: figure.savefig(part, dpi=100))


def draw_groups(
    difference: npt.NDArray[np.floating],
    p: npt.NDArray[np.floating],
    spacing: Sequence[float],
    title: str,
    path: str | Path,
) -> None:
    """Draw the difference of two groups in log local volume, and outline where p < 0.05.

    Args:
        difference: ``[*shape]``, 0 outside of the anatomy.
        p: adjusted p-values ``[*shape]``, 1 outside of the anatomy.
        spacing: voxel size.
        title: of the difference.
        path: picture.
    """
    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.subplots()
    cut = _Plane(np.asarray(p < 1, dtype=float))
    limit = float(max(np.abs(difference).max(), 1e-6))
    picture = cut.show(axes, difference, cmap="RdBu_r", vmin=-limit, vmax=limit)
    if (cut.take(p) < 0.05).any():
        cut.outline(axes, 0.05 - p, colors="black", linewidths=1.0)
    cut.prepare(axes, spacing)
    axes.set_title(f"log local volume, {title}\n(outlined: p < 0.05 after FDR control)", fontsize=9)
    figure.colorbar(picture, ax=axes, shrink=0.8)
    write_whole(path, lambda part: figure.savefig(part, dpi=100))


def draw_curves(panels: Mapping[str, Mapping[str, Sequence[float]]], frames: Sequence[str], path: str | Path) -> None:
    """Draw curves over the frames of a series.

    Args:
        panels: title → name of a curve → value in each frame.
        frames: names of the frames.
        path: picture.
    """
    figure = Figure(figsize=(4 * len(panels), 3), layout="constrained")
    for axes, (title, curves) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for index, (name, values) in enumerate(curves.items()):
            axes.plot(range(len(frames)), values, marker="o", markersize=3, label=name, color=COLOURS[index % 6])
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("frame")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(fontsize=8)
    write_whole(path, lambda part: figure.savefig(part, dpi=100))


class _Plane:
    """The plane of a volume that is shown: all of a 2D image; else through the middle, across the shortest extent."""

    def __init__(self, foreground: npt.NDArray[np.floating]) -> None:
        self.flat = foreground.ndim == 2
        inside = np.argwhere(foreground > 0.5)
        if not len(inside):
            inside = np.argwhere(np.ones(foreground.shape))
        low, high = inside.min(axis=0), inside.max(axis=0)
        self.axis = 2 if self.flat else int(np.argmin(high - low))
        middle = (low + high) // 2
        self.index = 0 if self.flat else int(middle[self.axis])
        self.kept = [axis for axis in range(foreground.ndim) if axis != self.axis]
        margin = 0.15 * (high - low).max() + 1
        self.low, self.high = low[self.kept] - margin, high[self.kept] + margin

    def take(self, volume: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
        """``[rows, columns]``: the first of the two axes runs to the right."""
        return (volume if self.flat else np.take(volume, self.index, axis=self.axis)).T

    def prepare(self, axes: Axes, spacing: Sequence[float]) -> None:
        axes.set_aspect(spacing[self.kept[1]] / spacing[self.kept[0]])
        axes.set_xlim(self.low[0], self.high[0])
        # Atlas axes point right, anterior, superior; the rows of a 2D image run downwards in files, as do its worlds.
        axes.set_ylim(*((self.high[1], self.low[1]) if self.flat else (self.low[1], self.high[1])))
        axes.set_xticks([])
        axes.set_yticks([])

    def show(self, axes: Axes, volume: npt.NDArray[np.floating], **style: Any) -> Any:
        return axes.imshow(self.take(volume), origin="upper" if self.flat else "lower", **style)

    def outline(self, axes: Axes, margin: npt.NDArray[np.floating], **style: Any) -> None:
        plane = self.take(margin)
        if plane.min() < 0 < plane.max():
            axes.contour(plane, levels=[0.0], **style)


def _warped(probabilities: Tensor, result: ShapeModes, mode: int, amount: float) -> npt.NDArray[np.float64]:
    with torch.no_grad():
        displacement = result.shape(mode, amount).atlas_to_subject()
        return np.asarray(warp(probabilities[None], displacement)[0])


def _margin(probabilities: npt.NDArray[np.float64], label: int) -> npt.NDArray[np.float64]:
    """Positive where a label is the likeliest."""
    return np.asarray(probabilities[label] - np.delete(probabilities, label, axis=0).max(axis=0))
