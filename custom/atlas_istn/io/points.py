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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from ..spatial.world import LPS
from .files import write_whole

__all__ = ["POINT_SUFFIXES", "PointFile", "read_points"]

POINT_SUFFIXES = (".csv", ".fcsv", ".mrk.json")
Points = npt.NDArray[np.float64]

_FCSV_LABEL = 11  # column of a point's name
_FROM_CONTROL_POINTS = ("Fiducial", "Line", "Angle", "Curve", "ClosedCurve")


class PointFile:
    """Points of a file, and how to write others in their place.

    Attributes:
        points: ``[N, 3]`` in LPS millimetres; z is 0 where a table has none.
        names: of the points, as many; empty where the file gives none, or gives one twice.
    """

    def __init__(self, points: Points, render: Callable[[Points], str], names: Sequence[str] = ()) -> None:
        self.points = points
        self.names = tuple(names) if all(names) and len(set(names)) == len(points) else ()
        self._render = render

    def reordered(self, order: Sequence[int]) -> PointFile:
        """The same points in another order; not to be written."""

        def refuse(_: Points) -> str:
            raise ValueError("points in another order than that of their file cannot be written in its form.")

        return PointFile(self.points[order], refuse, [self.names[index] for index in order])

    def write(self, points: Points, path: str | Path) -> None:
        """Write ``[N, 3]`` LPS points in the format, order and coordinate system of the file that was read.

        Raises:
            InputError: the file cannot be written.
        """
        text = self._render(points)
        write_whole(path, lambda part: part.write_text(text, encoding="utf-8", newline=""))


def read_points(path: str | Path, dim: int) -> PointFile:
    """Read a file of points.

    - ``.csv``: columns ``x``, ``y`` and, in 3D, ``z`` in LPS millimetres, as ANTs has them; other columns are kept.
    - ``.mrk.json``: markups of 3D Slicer that consist of control points (points, lines, angles, curves).
    - ``.fcsv``: the older format of 3D Slicer.

    Args:
        path: the file.
        dim: 2 or 3.

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
            content = _read_csv(text, dim)
        if not len(content.points):
            raise InputError("expected at least one point, found no points. Check what was saved.")
    except OSError as error:
        raise InputError(f"{source}: the file cannot be read ({error.strerror}). Check the path.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{source}: expected text in UTF-8, found other bytes. Save it again as UTF-8.") from error
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    return content


def _read_csv(text: str, dim: int) -> PointFile:
    reader = csv.reader(io.StringIO(text, newline=""))
    try:
        lines = [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise InputError(f"line {reader.line_num}: no CSV ({error}). Save the table again.") from error
    columns = lines[0][1] if lines else []
    axes = [axis for axis in "xyz" if dim == 3 or axis in columns or axis != "z"]
    if any(columns.count(axis) != 1 for axis in axes):
        raise InputError(
            f"expected the columns {', '.join(axes)} once each, in LPS millimetres, found the columns "
            f"{', '.join(columns) or 'of an empty file'}. Correct the header."
        )
    places = [columns.index(axis) for axis in axes]
    points = np.zeros((len(lines) - 1, 3))
    for point, (number, row) in zip(points, lines[1:], strict=True):
        if len(row) != len(columns):
            raise InputError(f"line {number} has {len(row)} fields, the header {len(columns)}. Correct the line.")
        point[: len(axes)] = _coordinates([row[place] for place in places], f"line {number}", len(axes))

    def render(moved: Points) -> str:
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(columns)
        for (_, row), point in zip(lines[1:], moved, strict=True):
            values = dict(zip(places, point, strict=False))
            writer.writerow([f"{values[k]:.6f}" if k in values else field for k, field in enumerate(row)])
        return stream.getvalue()

    named = next((columns.index(title) for title in ("name", "label") if title in columns), None)
    return PointFile(points, render, [] if named is None else [row[named] for _, row in lines[1:]])


def _read_fcsv(text: str) -> PointFile:
    lines = text.splitlines()
    header = next((line for line in lines if line.startswith("# CoordinateSystem")), "# CoordinateSystem = RAS")
    system = header.partition("=")[2].strip()
    sign = _sign({"0": "RAS", "1": "LPS"}.get(system, system))
    where = [index for index, line in enumerate(lines) if line.strip() and not line.startswith("#")]
    fields = [lines[index].split(",") for index in where]
    found = [_coordinates(row[1:4], f"line {index + 1}") for index, row in zip(where, fields, strict=True)]
    points = np.array(found).reshape(-1, 3) * sign

    def render(moved: Points) -> str:
        result = list(lines)
        for index, row, point in zip(where, fields, moved * sign, strict=True):
            result[index] = ",".join([row[0], *(f"{value:.6f}" for value in point), *row[4:]])
        return "\n".join(result) + "\n"

    return PointFile(points, render, [row[_FCSV_LABEL] if len(row) > _FCSV_LABEL else "" for row in fields])


def _read_markups(text: str) -> PointFile:
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"line {error.lineno}: no JSON. Save the markups again from 3D Slicer.") from error
    signs, placed, found = [], [], []
    for number, markup in enumerate(_entries(content, "markups", "the file"), start=1):
        name = f"markup {number}"
        kind = markup.get("type")
        if kind not in _FROM_CONTROL_POINTS:
            raise InputError(
                f"{name} is of the type {kind}. Expected {', '.join(_FROM_CONTROL_POINTS)}, which consist of points "
                "alone. Save such markups only."
            )
        units = markup.get("coordinateUnits", "mm")  # or [code, coding scheme, meaning]
        if (units[:1] if isinstance(units, list) else [units]) != ["mm"]:
            raise InputError(f"{name}: expected coordinateUnits mm, found {units}. Save it in millimetres.")
        for place, point in enumerate(_entries(markup, "controlPoints", name), start=1):
            if point.get("positionStatus", "defined") == "defined":
                where = f"{name}, point {place} ('{point.get('label', '')}')"
                found.append(_coordinates(point.get("position"), where))
                placed.append(point)
                signs.append(_sign(markup.get("coordinateSystem", "LPS")))

    def render(moved: Points) -> str:
        for point, position, sign in zip(placed, moved, signs, strict=True):
            point["position"] = [round(float(value), 6) for value in position * sign]
        result: dict[str, Any] = copy.deepcopy(content)
        for markup in result["markups"]:
            markup.pop("measurements", None)  # lengths and angles of the points that were read
        return json.dumps(result, indent=2) + "\n"

    names = [str(point.get("label", "")) for point in placed]
    return PointFile(np.array(found).reshape(-1, 3) * np.array(signs).reshape(-1, 3), render, names)


def _entries(parent: Any, key: str, name: str) -> list[dict[str, Any]]:
    """A list of JSON objects."""
    entries = parent.get(key) if isinstance(parent, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise InputError(f"{name} lacks the list {key}. Expected markups as 3D Slicer saves them. Save them again.")
    return entries


def _coordinates(values: Any, where: str, count: int = 3) -> list[float]:
    """The coordinates of one point, finite numbers."""
    entries = values if isinstance(values, list) else []
    try:
        numbers = [float(entry) for entry in entries]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) != count or not np.isfinite(numbers).all():
        found = ", ".join(map(str, entries)) or "none"
        raise InputError(f"{where}: expected coordinates, {count} finite numbers, found {found}. Correct them.")
    return numbers


def _sign(system: str) -> npt.NDArray[np.float64]:
    """Factors from a coordinate system to LPS."""
    if system not in ("LPS", "RAS"):
        raise InputError(f"expected the coordinate system LPS or RAS, found {system}. Save the points again.")
    return LPS.diagonal()[:3] if system == "RAS" else np.ones(3)
