# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Pictures small enough for two hundred cases in one page: pixels as WebP data URIs, lines as SVG paths."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageColor
from skimage.measure import approximate_polygon, find_contours

from ..pictures.conventions import RESULT_COLOURS
from .planes import Picture, Plane

__all__ = ["difference", "gradient", "grey", "grid", "local_volume", "outlines", "tinted", "uncertainty"]

VOLUME_COLOURS, UNCERTAINTY_COLOURS = "RdBu_r", "magma"
GRID_LINES = 16  # over the longer side of a plane
PIXELS = 320  # longest side of a picture; what is larger is shown smaller
ITN_ONLY, REFINED_ONLY, OTHER_LABEL = RESULT_COLOURS["itn"], RESULT_COLOURS["refine"], "#ff4fd8"


def grey(plane: Picture) -> str:
    """Data URI of an image, its darkest and brightest percent clipped."""
    low, high = np.percentile(plane, (1, 99))
    scaled = np.clip((plane - low) / max(high - low, 1e-6), 0, 1) * 255
    return _uri(Image.fromarray(scaled.astype(np.uint8)), quality=70)


def tinted(plane: Picture, colours: Mapping[int, str]) -> str:
    """Data URI of a labelmap, each value in its colour and the background clear."""
    pixels = np.zeros((*plane.shape, 4), dtype=np.uint8)
    for value, colour in colours.items():
        pixels[plane == value] = (*ImageColor.getrgb(colour)[:3], 255)
    return _uri(Image.fromarray(pixels))


def difference(itn: Picture, refined: Picture) -> str:
    """Data URI of where two labelmaps differ: foreground in the first only, in the second only, or of another label."""
    kinds = np.where(itn == refined, 0, 1 + (refined > 0) + ((itn > 0) & (refined > 0)))
    return tinted(kinds, {1: ITN_ONLY, 2: REFINED_ONLY, 3: OTHER_LABEL})


def local_volume(determinant: Picture) -> str:
    """Data URI of a subject's local volume relative to the atlas, the inverse of a Jacobian determinant of Φ⁻¹.

    Blue a quarter and less, white equal, red four times and more; folds are black.
    """
    ratio = -np.log2(np.maximum(determinant, 1e-6))
    colours = matplotlib.colormaps[VOLUME_COLOURS]((ratio + 2) / 4, bytes=True)[..., :3]
    colours[determinant <= 0] = 0
    return _uri(Image.fromarray(np.ascontiguousarray(colours)), quality=70)


def uncertainty(entropy: Picture) -> str:
    """Data URI of an entropy: black where it is 0, white where it is 1."""
    colours = matplotlib.colormaps[UNCERTAINTY_COLOURS](entropy, bytes=True)[..., :3]
    return _uri(Image.fromarray(colours.copy()), quality=70)


def gradient(colours: str) -> str:
    """A colour map as CSS has it, from its least to its greatest value."""
    stops = matplotlib.colormaps[colours](np.linspace(0, 1, 9))
    return f"linear-gradient(90deg, {', '.join(matplotlib.colors.to_hex(stop) for stop in stops)})"


def outlines(plane: Picture, plane_of: Plane) -> str:
    """SVG path of the borders of every label, in millimetres."""
    paths = []
    for value in np.unique(plane[plane > 0]):
        padded = np.pad(plane == value, 1).astype(float)  # so that a label at the border is closed
        paths += [_path(line - 1, plane_of, closed=True) for line in find_contours(padded, 0.5)]
    return "".join(paths)


def grid(coordinates: tuple[Picture, Picture], plane_of: Plane) -> str:
    """SVG path of the lines on which an atlas coordinate (across or down, in mm) is constant, in millimetres."""
    step = max(np.ptp(coordinate) for coordinate in coordinates) / GRID_LINES
    paths = []
    for coordinate in coordinates:
        for level in np.arange(coordinate.min() + step / 2, coordinate.max(), step):
            paths += [_path(line, plane_of, closed=False) for line in find_contours(coordinate, level)]
    return "".join(paths)


def _path(line: npt.NDArray[Any], plane_of: Plane, closed: bool) -> str:
    """SVG path through points (row, column), of which those that hardly matter are left out."""
    points = approximate_polygon(line, tolerance=0.1)
    x = (points[:, 1] + 0.5) * plane_of.spacing[0]
    y = (points[:, 0] + 0.5) * plane_of.spacing[1]
    steps = " ".join(f"{a:.4g},{b:.4g}" for a, b in zip(x, y, strict=True))
    return f"M{steps}{'z' if closed else ''}"


def _uri(image: Image.Image, quality: int | None = None) -> str:
    """WebP, lossless unless a quality is given."""
    if max(image.size) > PIXELS:
        factor = PIXELS / max(image.size)
        method = Image.Resampling.NEAREST if quality is None else Image.Resampling.BOX
        image = image.resize((max(1, round(image.width * factor)), max(1, round(image.height * factor))), method)
    stream = io.BytesIO()
    image.save(stream, "WEBP", lossless=quality is None, quality=quality or 80, method=4)
    return "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
