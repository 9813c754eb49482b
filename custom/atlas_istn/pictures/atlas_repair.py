# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""A picture of what the repair of an atlas changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ..io.files import write_whole
from .palette import ALERT, label_colour
from .panels import draw_legend, mark_sides, show_image
from .planes import choose_planes

__all__ = ["draw_repair"]

MARGIN = 4  # pixels around the labels


def draw_repair(
    before: npt.NDArray[Any],
    after: npt.NDArray[Any],
    spacing: Sequence[float],
    path: str | Path,
    names: Mapping[int, str] | None = None,
) -> None:
    """Draw the atlas's labelmap before and after its repair, in 3D the axial slice with most changes, and what changed.

    Args:
        before: soft channels ``[Nc, *shape]``.
        after: the same, repaired.
        spacing: voxel size.
        path: picture.
        names: class index → name.
    """
    count = len(before)
    volumes = (before.argmax(axis=0), after.argmax(axis=0))
    changes = volumes[0] != volumes[1]
    plane = choose_planes(changes, spacing)[0]
    old, new, changed = (plane.cut(volume) for volume in (*volumes, changes))
    title = f"{int(changes.sum())} pixels changed"
    if changes.ndim == 3:
        title = f"axial slice {plane.index + 1} of {changes.shape[-1]}, with {int(changed.sum())} of the "
        title += f"{int(changes.sum())} voxels changed"
    rows, columns = _window((old > 0) | (new > 0) | changed)
    colours = ["black", *(label_colour(number) for number in range(count - 1)), ALERT]
    style: dict[str, Any] = {"cmap": ListedColormap(colours), "vmin": 0, "vmax": count}
    figure = Figure(figsize=(9, 3.9), layout="constrained")
    pictures = {"before": old, "after": new, "changed": np.where(changed, count, new)}
    for axes, (name, picture) in zip(figure.subplots(1, 3), pictures.items(), strict=True):
        show_image(axes, picture[rows, columns], plane, **style)
        mark_sides(axes, plane)
        axes.set_title(name, fontsize=10)
        axes.set_axis_off()
    labels = [(names or {}).get(label, f"label {label}") for label in range(1, count)]
    patches = [
        Patch(color=colour, label=label) for colour, label in zip(colours[1:], [*labels, "changed"], strict=True)
    ]
    draw_legend(figure, patches)
    figure.suptitle(title, fontsize=10)
    write_whole(path, lambda part: figure.savefig(part, dpi=100))


def _window(mask: npt.NDArray[np.bool_]) -> tuple[slice, slice]:
    """Rows and columns around all that is set."""
    inside = np.argwhere(mask)
    rows, columns = (
        slice(max(0, a - MARGIN), b + MARGIN + 1) for a, b in zip(inside.min(axis=0), inside.max(axis=0), strict=True)
    )
    return rows, columns
