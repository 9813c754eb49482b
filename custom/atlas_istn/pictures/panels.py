# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""A plane in a diagram of Matplotlib: its pixels in their physical shape, the outlines of labels, the sides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from .palette import LETTERS
from .planes import Picture, Plane

__all__ = ["draw_legend", "draw_outlines", "mark_sides", "show_image"]

_EDGES = (
    (0.02, 0.5, "left", "center"),
    (0.98, 0.5, "right", "center"),
    (0.5, 0.98, "center", "top"),
    (0.5, 0.02, "center", "bottom"),
)


def show_image(axes: Axes, picture: Picture, plane: Plane, **style: Any) -> None:
    """Show a cut in grey, its darkest and brightest percent clipped unless ``vmin`` and ``vmax`` say otherwise."""
    low, high = np.percentile(picture, (1, 99))
    style = {"cmap": "gray", "vmin": low, "vmax": high, "interpolation": "nearest", **style}
    axes.imshow(picture, origin="upper", aspect=plane.aspect, **style)


def draw_outlines(axes: Axes, labels: Picture, colours: Mapping[int, str], **style: Any) -> None:
    """Draw the border of every label that a cut shows; ``colours`` maps values to colours."""
    for value, colour in colours.items():
        inside = labels == value
        if inside.any() and not inside.all():
            axes.contour(inside, levels=[0.5], colors=colour, **{"linewidths": 1.2, **style})


def mark_sides(axes: Axes, plane: Plane, upon_white: bool = False) -> None:
    """Write at the four edges which side of the patient lies there; of a 2D image nobody knows."""
    for letter, (x, y, ha, va) in zip(plane.letters, _EDGES, strict=False):
        placed: dict[str, Any] = {"transform": axes.transAxes, "ha": ha, "va": va}
        if not upon_white:
            placed["path_effects"] = [withStroke(linewidth=2, foreground="black")]
        axes.text(x, y, letter, color="black" if upon_white else LETTERS, fontsize=8, **placed)


def draw_legend(figure: Figure, handles: Sequence[Artist], **style: Any) -> None:
    """Say below the panels what the colours are, six to a line."""
    columns = min(len(handles), 6)
    figure.legend(
        handles=handles, **{"loc": "outside lower center", "frameon": False, "fontsize": 9, "ncols": columns, **style}
    )
