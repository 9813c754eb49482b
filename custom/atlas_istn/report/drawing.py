# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Pictures small enough for two hundred cases in one page: pixels as WebP data URIs, lines as SVG paths."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from contourpy import LineType, contour_generator
from matplotlib.path import Path
from PIL import Image, ImageColor

from ..pictures.palette import ALERT
from ..pictures.planes import Picture, Plane

__all__ = ["difference", "gradient", "grey", "grid", "local_volume", "outlines", "tinted", "uncertainty"]

VOLUME_COLOURS, UNCERTAINTY_COLOURS = "RdBu_r", "magma"
GRID_LINES = 16  # over the longer side of a plane
PIXELS = 320  # longest side of a picture; what is larger is shown smaller
TOLERANCE = 0.1  # pixels by which a line may be simplified


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


def difference(first: Picture, second: Picture, colours: tuple[str, str]) -> str:
    """Data URI of where two labelmaps differ: foreground in one only, in its colour, or of another label."""
    kinds = np.where(first == second, 0, 1 + (second > 0) + ((first > 0) & (second > 0)))
    return tinted(kinds, {1: colours[0], 2: colours[1], 3: ALERT})


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
        paths += [_path(line - 1, plane_of, closed=True) for line in _contours(padded, [0.5])]
    return "".join(paths)


def grid(coordinates: tuple[Picture, Picture], plane_of: Plane) -> str:
    """SVG path of the lines on which an atlas coordinate (across or down, in mm) is constant, in millimetres."""
    step = max(np.ptp(coordinate) for coordinate in coordinates) / GRID_LINES
    paths = []
    for coordinate in coordinates:
        levels = np.arange(coordinate.min() + step / 2, coordinate.max(), step)
        paths += [_path(line, plane_of, closed=False) for line in _contours(coordinate, levels)]
    return "".join(paths)


def _contours(values: Picture, levels: Iterable[float]) -> Iterator[Picture]:
    """Lines ``[points, 2]`` (column, row) on which values are a level."""
    contours = contour_generator(z=values, line_type=LineType.Separate)
    for level in levels:
        yield from map(np.asarray, contours.lines(level))


def _path(line: npt.NDArray[Any], plane_of: Plane, closed: bool) -> str:
    """SVG path through points (column, row), of which those that hardly matter are left out."""
    path = Path(line)
    path.simplify_threshold = TOLERANCE
    vertices = np.asarray(path.cleaned(simplify=True).vertices)[:-1]  # the last one only ends the path
    points = (vertices + 0.5) * np.asarray(plane_of.spacing)
    steps = " ".join(f"{x:.4g},{y:.4g}" for x, y in points)
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
