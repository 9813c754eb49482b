# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""The picture of a plan: the labels of all cases in the grid, and what the grid cuts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from scipy.ndimage import grey_closing

from ..io.files import write_whole
from ..pictures.palette import label_colour
from ..pictures.panels import draw_legend, mark_sides
from ..pictures.planes import choose_planes
from .decide import Grid
from .survey import Anatomy

__all__ = ["draw_plan", "mean_labels"]

_GAP = 3  # voxels of the grid, within which another size of the images' voxels leaves some out
_SEEN = 0.2  # of the mean labels, from which a plane is worth showing


def mean_labels(anatomies: Sequence[Anatomy], grid: Grid, classes: int) -> np.ndarray:
    """Average the labels of all cases where the grid has them, ``[classes - 1, *size]``, each from 0 to 1.

    For a picture only: voxels of another size than the grid's leave gaps, which are closed.
    """
    total = np.zeros((classes - 1, *grid.size))
    for case in anatomies:
        places = np.floor((grid.points(case) + grid.half) / grid.spacing).astype(int)
        inside = ((places >= 0) & (places < grid.size)).all(axis=1)
        here = np.zeros_like(total)
        here[(case.classes[inside] - 1, *places[inside].T)] = 1
        total += grey_closing(here, (1, *[_GAP] * len(grid.size)))
    return total / max(len(anatomies), 1)


def draw_plan(
    mean: np.ndarray, names: Sequence[str], grid: Grid, lost: Sequence[tuple[float, float]], unit: str, path: Path
) -> None:
    """Draw the mean labels in three planes, and two histograms: share of the foreground outside, greatest distance.

    Args:
        mean: see `mean_labels`.
        names: of these labels.
        grid: of the model.
        lost: share and distance of each case, see `outside`.
        unit: of lengths.
        path: ``.png``.
    """
    planes = choose_planes(mean.sum(axis=0) > _SEEN, grid.spacing)
    figure = Figure(figsize=(3.2 * len(planes) + 6.4, 3.6), layout="constrained")
    axes = figure.subplots(1, len(planes) + 2)
    for place, plane in zip(axes, planes, strict=False):
        picture = np.zeros((*plane.cut(mean[0]).shape, 3))
        for number, share in enumerate(mean):
            picture += plane.cut(share)[..., None] * np.asarray(to_rgb(label_colour(number)))
        place.imshow(picture.clip(0, 1), aspect=plane.aspect, interpolation="nearest")
        place.set(xticks=[], yticks=[], title=f"mean labels, {plane.name}" if plane.name else "mean labels")
        mark_sides(place, plane)
    shares, distances = 100 * np.array(lost).T[0], np.array(lost).T[1]
    for place, values, title, label in (
        (axes[-2], shares, "cut by the grid", "foreground outside, %"),
        (axes[-1], distances, "how far it reaches", f"greatest distance outside, {unit}"),
    ):
        place.hist(values, bins=20, range=(0, max(float(values.max()), 0.1)), color="0.4")
        place.set(title=title, xlabel=label, ylabel="cases")
    draw_legend(figure, [Patch(color=label_colour(number), label=name) for number, name in enumerate(names)])
    write_whole(path, lambda part: figure.savefig(part, dpi=110, format="png"))
