# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Pictures of modes of variation, group differences and motion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import ScaledTranslation
from torch import Tensor

from ..io.files import write_whole
from ..pictures.palette import line_colour
from ..pictures.panels import draw_legend, mark_sides
from ..pictures.planes import choose_planes
from ..spatial import warp
from .modes import ShapeModes

__all__ = ["Panel", "draw_curves", "draw_groups", "draw_modes"]

SHOWN = (-2.0, -1.0, 0.0, 1.0, 2.0)  # standard deviations
CELL = 1.9  # width of a small picture in inches


@dataclass(frozen=True)
class Panel:
    """A diagram over the frames of a series.

    Attributes:
        title: what is shown.
        rest: the value where nothing has changed.
        curves: name → value in each frame.
    """

    title: str
    rest: float
    curves: Mapping[str, Sequence[float]]


def draw_modes(result: ShapeModes, probabilities: Tensor, names: Sequence[str], unit: str, path: str | Path) -> None:
    """Draw, one row per mode, the labels at −2 … +2 standard deviations over the dashed outline of the mean.

    In 3D, the plane through the middle of the anatomy that is widest.

    Args:
        result: the modes.
        probabilities: soft labelmap of the atlas ``[Nc, *shape]``.
        names: of the labels, without the background.
        unit: of lengths.
        path: picture.
    """
    mean = _warped(probabilities, result, 0, 0.0)
    cut = _Section(1 - mean[0], result.mean.spacing)
    middle = cut.take(mean)
    count = len(result.deviations)
    shapes = [[cut.take(_warped(probabilities, result, mode, amount)) for amount in SHOWN] for mode in range(count)]
    cut.frame([shape for row in shapes for shape in row])
    height = CELL * cut.aspect + 0.08
    figure = Figure(figsize=((CELL + 0.08) * len(SHOWN) + 1.2, height * count + (0.85 if cut.caption else 0.65)))
    figure.set_layout_engine("constrained", w_pad=0.04, h_pad=0.04, wspace=0, hspace=0)
    rows = figure.subplots(count, len(SHOWN), squeeze=False)
    for mode, (row, row_shapes) in enumerate(zip(rows, shapes, strict=True)):
        for axes, shape in zip(row, row_shapes, strict=True):
            cut.prepare(axes)
            for label in range(1, len(shape)):
                _outline(axes, middle, label, colors="grey", linewidths=0.8, linestyles="dashed")
                _outline(axes, shape, label, colors=_colour(label), linewidths=1.6)
        share, deviation = 100 * result.explained[mode], result.deviations[mode]
        text = f"mode {mode + 1}\n{share:.0f} % of variance\nSD {deviation:.2f} {unit}"
        row[0].set_ylabel(text, fontsize=9, rotation=0, ha="right", va="center")
    for axes, amount in zip(rows[0], SHOWN, strict=True):
        axes.set_title(f"{amount:+g} SD".replace("-", "−") if amount else "mean", fontsize=9)
    cut.mark_sides(rows[0, 0])
    cut.mark_scale(rows[-1, -1], unit)
    handles = [Line2D([], [], color=_colour(label), label=name) for label, name in enumerate(names, start=1)]
    handles.append(Line2D([], [], color="grey", linestyle="dashed", linewidth=0.8, label="mean"))
    draw_legend(figure, handles, title=cut.caption, title_fontsize=9)
    write_whole(path, lambda part: figure.savefig(part, dpi=110))


def draw_groups(
    difference: npt.NDArray[np.floating],
    p: npt.NDArray[np.floating],
    probabilities: Tensor,
    spacing: Sequence[float],
    groups: tuple[str, str],
    unit: str,
    path: str | Path,
) -> None:
    """Draw the difference of two groups in log local volume, the labels, and where p < 0.05.

    Args:
        difference: ``[*shape]``, 0 outside of the anatomy.
        p: adjusted p-values ``[*shape]``, 1 outside of the anatomy.
        probabilities: soft labelmap of the atlas ``[Nc, *shape]``.
        spacing: voxel size.
        groups: names of the first and the second; the difference is second − first.
        unit: of lengths.
        path: picture.
    """
    atlas = probabilities.numpy()
    cut = _Section(1 - atlas[0], spacing)
    cut.frame([cut.take(atlas)])
    width = 5.3 / max(cut.aspect, 1.0)
    figure = Figure(figsize=(max(width, 3.0) + 1.2, width * cut.aspect + 1.1), layout="constrained")
    axes = figure.subplots()
    limit = float(max(np.abs(difference).max(), 1e-6))
    style: dict[str, Any] = {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit, "interpolation": "nearest"}
    picture = axes.imshow(np.ma.masked_where(cut.take(atlas)[0] >= 0.5, cut.take(difference)), **style)
    for label in range(1, len(atlas)):
        _outline(axes, cut.take(atlas), label, colors="dimgrey", linewidths=1.0)
    handles = [Line2D([], [], color="dimgrey", linewidth=1.0, label="labels of the atlas")]
    significant = 0.05 - cut.take(p)
    if (significant > 0).any():
        axes.contour(significant, levels=[0.0], colors="black", linewidths=1.8)
        handles.append(Line2D([], [], color="black", linewidth=1.8, label="p < 0.05 after FDR control"))
    else:
        handles.append(Line2D([], [], linestyle="none", label="nowhere p < 0.05 in this plane after FDR control"))
    cut.prepare(axes)
    cut.mark_sides(axes)
    cut.mark_scale(axes, unit)
    measure = "local volume" if cut.plane.name else "local area"
    axes.set_title(f"{measure}, {groups[1]} against {groups[0]}", fontsize=10)
    bar = figure.colorbar(picture, ax=axes, shrink=0.9)
    bar.set_label(f"difference in log {measure}, {groups[1]} − {groups[0]}", fontsize=9)
    draw_legend(figure, handles, ncols=2, title=cut.caption, title_fontsize=9)
    write_whole(path, lambda part: figure.savefig(part, dpi=110))


def draw_curves(panels: Sequence[Panel], frames: Sequence[str], path: str | Path) -> None:
    """Draw curves over the frames of a series.

    Args:
        panels: side by side.
        frames: names of the frames.
        path: picture.
    """
    figure = Figure(figsize=(4 * len(panels), 3.6), layout="constrained")
    numbers = range(1, len(frames) + 1)
    every = -(-len(frames) // 16)  # names that fit below a diagram
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        axes.axhline(panel.rest, color="grey", linewidth=0.8, linestyle="dashed")
        for label, (name, values) in enumerate(panel.curves.items(), start=1):
            axes.plot(numbers, values, marker="o", markersize=3, label=name, color=_colour(label))
        axes.set_title(panel.title, fontsize=10)
        axes.set_xticks(numbers[::every], frames[::every], fontsize=8, rotation=45, ha="right", rotation_mode="anchor")
        axes.tick_params(axis="y", labelsize=8)
        axes.set_xlabel("frame", fontsize=9)
        axes.legend(fontsize=8)
    write_whole(path, lambda part: figure.savefig(part, dpi=110))


class _Section:
    """The part of a plane that is shown: all of a 2D image; else through the middle, where the anatomy is widest."""

    def __init__(self, foreground: npt.NDArray[np.floating], spacing: Sequence[float]) -> None:
        inside = foreground > 0.5
        widths = [np.prod(plane.size) for plane in choose_planes(inside, spacing, margin=0.0, middle=True)]
        self.plane = choose_planes(inside, spacing, middle=True)[int(np.argmax(widths))]
        self.caption = ""
        if self.plane.name:
            (count,) = (foreground.shape[i] for i in range(3) if i not in (self.plane.across, self.plane.down))
            self.caption = f"{self.plane.name} slice {self.plane.index + 1} of {count} of the atlas"
        self.low, self.high = np.zeros(2), np.zeros(2)

    def take(self, volume: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
        """``[..., rows, columns]`` of ``[..., *shape]``."""
        return self.plane.cut(volume)

    def frame(self, shapes: Sequence[npt.NDArray[np.floating]]) -> None:
        """Show all that is foreground in one of these planes ``[Nc, rows, columns]``, with a margin."""
        foreground = np.any([shape[0] < 0.5 for shape in shapes], axis=0)
        inside = np.argwhere(foreground if foreground.any() else np.ones_like(foreground))[:, ::-1]
        self.low, self.high = inside.min(axis=0) - 0.5, inside.max(axis=0) + 0.5
        margin = 0.08 * ((self.high - self.low) * self.plane.spacing).max()
        around = margin / np.asarray(self.plane.spacing)
        self.low, self.high = self.low - around, self.high + around

    @property
    def aspect(self) -> float:
        """Height by width of what is shown."""
        width, height = (self.high - self.low) * self.plane.spacing
        return float(height / width)

    def prepare(self, axes: Axes) -> None:
        """Set the limits; no ticks."""
        axes.set_aspect(self.plane.aspect)
        (left, top), (right, bottom) = self.low, self.high
        axes.set_xlim(left, right)
        axes.set_ylim(bottom, top)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_color("lightgrey")

    def mark_sides(self, axes: Axes) -> None:
        """Letters of the patient's sides at the edges."""
        mark_sides(axes, self.plane, upon_white=True)

    def mark_scale(self, axes: Axes, unit: str) -> None:
        """A bar of a round length, below the lower left corner."""
        width = (self.high[0] - self.low[0]) * self.plane.spacing[0]
        power = 10.0 ** np.floor(np.log10(0.3 * width))
        length = max(step * power for step in (1, 2, 5) if step * power <= 0.3 * width)
        below = axes.transAxes + ScaledTranslation(0, -0.1, axes.figure.dpi_scale_trans)  # inches
        axes.plot((0, length / width), (0, 0), color="black", linewidth=2, transform=below, clip_on=False)
        axes.text(length / width + 0.03, 0, f"{length:g} {unit}", transform=below, va="center", fontsize=8)


def _warped(probabilities: Tensor, result: ShapeModes, mode: int, amount: float) -> npt.NDArray[np.float64]:
    with torch.no_grad():
        displacement = result.shape(mode, amount).moving_to_fixed()
        return np.asarray(warp(probabilities[None], displacement)[0])


def _outline(axes: Axes, plane: npt.NDArray[np.floating], label: int, **style: Any) -> None:
    """Draw where a label of a plane ``[Nc, rows, columns]`` is the likeliest."""
    margin = plane[label] - np.delete(plane, label, axis=0).max(axis=0)
    if margin.min() < 0 < margin.max():
        axes.contour(margin, levels=[0.0], **style)


def _colour(label: int) -> str:
    return line_colour(label - 1)
