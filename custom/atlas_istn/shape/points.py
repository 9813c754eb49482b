# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Files of points: CSV tables and the markups of 3D Slicer, ``.mrk.json`` and ``.fcsv``.

A file is read, its coordinates are replaced, and it is written again: names, colours and all other columns stay.
"""

from __future__ import annotations

import copy
import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from ..files import write_whole

__all__ = ["POINT_SUFFIXES", "PointFile", "read_points"]

POINT_SUFFIXES = (".csv", ".fcsv", ".mrk.json")
Points = npt.NDArray[np.float64]

_FLIP = np.array([-1.0, -1.0, 1.0])
_FROM_CONTROL_POINTS = ("Fiducial", "Line", "Angle", "Curve", "ClosedCurve")


class PointFile:
    """Points of a file, and how to write others in their place.

    Attributes:
        points: ``[N, 3]`` in LPS millimetres; z is 0 where a table has none.
    """

    def __init__(self, points: Points, render: Callable[[Points], str]) -> None:
        self.points = points
        self._render = render

    def write(self, points: Points, path: str | Path) -> None:
        """Write ``[N, 3]`` LPS points in the format, order and coordinate system of the file that was read.

        Raises:
            InputError: the file cannot be written.
        """
        text = self._render(points)
        write_whole(path, lambda part: part.write_text(text, encoding="utf-8", newline=""))


def read_points(path: str | Path) -> PointFile:
    """Read a file of points.

    - ``.csv``: columns ``x``, ``y`` and, in 3D, ``z`` in LPS millimetres, as ANTs has them; other columns are kept.
    - ``.mrk.json``: markups of 3D Slicer that consist of control points (points, lines, angles, curves).
    - ``.fcsv``: the older format of 3D Slicer.

    Raises:
        InputError: the file is missing, no such file, or holds no points.
    """
    source = Path(path)
    try:
        text = source.read_text(encoding="utf-8-sig")
        if source.name.lower().endswith(".mrk.json"):
            content = _read_markups(text)
        elif source.suffix.lower() == ".fcsv":
            content = _read_fcsv(text)
        else:
            content = _read_csv(text)
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        reason = f"lacks {error}" if isinstance(error, KeyError) else " ".join(str(error).split())[:200]
        raise InputError(
            f"{source}: not readable as points ({reason}). Expected a CSV file with the columns x, y, z, or points "
            "that 3D Slicer saved as .mrk.json or .fcsv."
        ) from error
    if not len(content.points) or not np.isfinite(content.points).all():
        found = "no points" if not len(content.points) else "coordinates that are not finite"
        raise InputError(f"{source}: expected at least one point with finite coordinates, found {found}.")
    return content


def _read_csv(text: str) -> PointFile:
    reader = csv.DictReader(io.StringIO(text))
    rows, columns = list(reader), list(reader.fieldnames or [])
    axes = [axis for axis in "xyz" if axis in columns]
    if axes not in (["x", "y"], ["x", "y", "z"]):
        raise ValueError(f"its columns are {columns}")
    points = np.zeros((len(rows), 3))
    points[:, : len(axes)] = [[float(row[axis]) for axis in axes] for row in rows] or np.zeros((0, len(axes)))

    def render(moved: Points) -> str:
        stream = io.StringIO()
        writer = csv.DictWriter(stream, columns, lineterminator="\n")
        writer.writeheader()
        for row, point in zip(rows, moved, strict=True):
            writer.writerow({**row, **{axis: f"{value:.6f}" for axis, value in zip(axes, point, strict=False)}})
        return stream.getvalue()

    return PointFile(points, render)


def _read_fcsv(text: str) -> PointFile:
    lines = text.splitlines()
    header = next((line for line in lines if line.startswith("# CoordinateSystem")), "# CoordinateSystem = RAS")
    system = header.partition("=")[2].strip()
    sign = _sign({"0": "RAS", "1": "LPS"}.get(system, system))
    where = [index for index, line in enumerate(lines) if line.strip() and not line.startswith("#")]
    fields = [lines[index].split(",") for index in where]
    points = np.array([[float(value) for value in row[1:4]] for row in fields]).reshape(-1, 3) * sign

    def render(moved: Points) -> str:
        result = list(lines)
        for index, row, point in zip(where, fields, moved * sign, strict=True):
            result[index] = ",".join([row[0], *(f"{value:.6f}" for value in point), *row[4:]])
        return "\n".join(result) + "\n"

    return PointFile(points, render)


def _read_markups(text: str) -> PointFile:
    content = json.loads(text)
    signs, placed = [], []
    for markup in content["markups"]:
        if markup["type"] not in _FROM_CONTROL_POINTS:
            raise ValueError(f"a markup of the type {markup['type']} is more than its control points")
        for point in markup["controlPoints"]:
            if point.get("positionStatus", "defined") == "defined":
                placed.append(point)
                signs.append(_sign(markup.get("coordinateSystem", "LPS")))
    points = np.array([[float(value) for value in point["position"]] for point in placed]).reshape(-1, 3)

    def render(moved: Points) -> str:
        for point, position, sign in zip(placed, moved, signs, strict=True):
            point["position"] = [round(float(value), 6) for value in position * sign]
        result: dict[str, Any] = copy.deepcopy(content)
        for markup in result["markups"]:
            markup.pop("measurements", None)  # lengths and angles of the points that were read
        return json.dumps(result, indent=2) + "\n"

    return PointFile(points * np.array(signs).reshape(-1, 3), render)


def _sign(system: str) -> npt.NDArray[np.float64]:
    """Factors from a coordinate system to LPS."""
    if system not in ("LPS", "RAS"):
        raise ValueError(f"its coordinate system is {system}")
    return _FLIP if system == "RAS" else np.ones(3)
