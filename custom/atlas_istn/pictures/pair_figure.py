# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""A picture of one registered pair: how alike both images are, before and after, and how the map deforms."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import zoom
from torch import Tensor

from ..spatial import Transform, identity_grid
from .planes import Plane, middle_planes

__all__ = ["pair_figure"]

Array = npt.NDArray[np.float64]

_HEIGHT = 180  # pixels of a tile
_GAP, _TITLE = 4, 20
_SQUARES = 8  # of the checkerboard, along the longer side
_LINES = 16  # of the deformed grid, likewise
_LIMITS = (0.5, 99.5)  # percentiles of the fixed image that are drawn black and white
_TITLES = ("fixed", "warped", "checkerboard", "difference before", "difference after", "deformed grid", "Jacobian")
_DOUBLED = np.array([178.0, 24.0, 43.0])  # volume in the moving image per volume in the fixed one: 2
_HALVED = np.array([33.0, 102.0, 172.0])  # and one half
_FOLDED = np.array([255.0, 0.0, 255.0])


def pair_figure(moving: Tensor, fixed: Tensor, transform: Transform) -> Image.Image:
    """Draw a registered pair on the model's grid, a row for each plane.

    From left to right: the fixed image, the warped moving image, a checkerboard of both, their difference before and
    after, the lines of the moving image's grid, and the determinant of Φ⁻¹'s Jacobian: red where the moving image is
    shrunk (2), white where it keeps its size, blue where it is stretched (1/2), magenta where the map folds.

    Args:
        moving: ``[1, C, *shape]``; the first channel is drawn.
        fixed: likewise.
        transform: a batch of one.
    """
    grey = [image[0, 0].double().cpu().numpy() for image in (moving, fixed, transform.to_fixed(moving))]
    low, high = np.percentile(grey[1], _LIMITS)
    first, still, warped = (np.clip((image - low) / max(high - low, 1e-6), 0, 1) for image in grey)
    displacement = transform.moving_to_fixed()
    places = (identity_grid(list(transform.shape), displacement.device) + displacement)[0].double().cpu().numpy()
    volume = torch.as_tensor(transform.jacobian_determinant())[0].double().cpu().numpy()
    rows = []
    for plane in middle_planes(transform.shape, transform.spacing):
        cut: Callable[[Array], Array] = plane.cut
        tiles = [
            _grey(plane, cut(still)),
            _grey(plane, cut(warped)),
            _grey(plane, _checkerboard(cut(still), cut(warped))),
            _grey(plane, np.abs(cut(first) - cut(still))),
            _grey(plane, np.abs(cut(warped) - cut(still))),
            _grid(plane, cut(places[plane.across]), cut(places[plane.down])),
            _jacobian(plane, cut(volume)),
        ]
        rows.append(tiles)
    return _joined(rows)


def _size(plane: Plane) -> tuple[int, int]:
    width, height = plane.size
    return max(1, round(_HEIGHT * width / height)), _HEIGHT


def _grey(plane: Plane, values: Array) -> Image.Image:
    picture = Image.fromarray((255 * np.clip(values, 0, 1)).round().astype(np.uint8)).convert("RGB")
    return picture.resize(_size(plane), Image.Resampling.BILINEAR)


def _checkerboard(first: Array, second: Array) -> Array:
    side = max(1, max(first.shape) // _SQUARES)
    row, column = np.indices(first.shape) // side
    return np.where((row + column) % 2 == 0, first, second)


def _grid(plane: Plane, across: Array, down: Array) -> Image.Image:
    """Lines on which a coordinate of the moving image is constant."""
    columns, rows = _size(plane)
    step = max(across.shape) / _LINES
    lines = np.zeros((rows, columns), dtype=bool)
    for coordinate in (across, down):
        fine = zoom(coordinate, (rows / coordinate.shape[0], columns / coordinate.shape[1]), order=1, grid_mode=False)
        cell = np.floor(fine[:rows, :columns] / step)
        lines[1:] |= np.diff(cell, axis=0) != 0
        lines[:, 1:] |= np.diff(cell, axis=1) != 0
    return Image.fromarray(np.where(lines, 40, 255).astype(np.uint8)).convert("RGB")


def _jacobian(plane: Plane, volume: Array) -> Image.Image:
    power = np.clip(np.log2(np.maximum(volume, 1e-9)), -1, 1)[..., None]
    white = np.full(3, 255.0)
    colours = np.where(power > 0, white + power * (_DOUBLED - white), white - power * (_HALVED - white))
    colours = np.where(volume[..., None] <= 0, _FOLDED, colours)
    return Image.fromarray(colours.round().astype(np.uint8)).resize(_size(plane), Image.Resampling.NEAREST)


def _joined(rows: list[list[Image.Image]]) -> Image.Image:
    """Tiles side by side, a row below another, with a title above each of the first."""
    widths = [max(row[column].width for row in rows) for column in range(len(rows[0]))]
    size = (sum(widths) + _GAP * (len(widths) - 1), _TITLE + len(rows) * (_HEIGHT + _GAP) - _GAP)
    sheet = Image.new("RGB", size, "black")
    pen, font = ImageDraw.Draw(sheet), ImageFont.truetype(findfont("DejaVu Sans"), 13)
    for column, title in enumerate(_TITLES):
        left = sum(widths[:column]) + _GAP * column
        pen.text((left + 2, 2), title, fill="white", font=font)
        for number, row in enumerate(rows):
            sheet.paste(row[column], (left, _TITLE + number * (_HEIGHT + _GAP)))
    return sheet
