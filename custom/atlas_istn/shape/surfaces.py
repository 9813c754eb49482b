# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Surfaces (in 2D contours) of labels, and their files: VTP, PLY and STL by VTK, in LPS millimetres."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from skimage.measure import find_contours, marching_cubes

from ..errors import InputError
from ..io.files import muted, write_whole
from ..spatial.world import flip_points, homogeneous, transform_points

__all__ = ["MESH_SUFFIXES", "Surface", "label_surface", "read_surface", "write_surface"]

MESH_SUFFIXES = (".vtp", ".ply", ".stl")
_PLY_SIZES = {"short": 2, "ushort": 2, "int": 4, "uint": 4, "float": 4, "double": 8}
_PLY_SIZES |= {"int16": 2, "uint16": 2, "int32": 4, "uint32": 4, "float32": 4, "float64": 8}
_SPACE = "SPACE=LPS"  # 3D Slicer looks for this in the header; LPS is also its default


@dataclass(frozen=True)
class Surface:
    """A triangle mesh, or in 2D closed polylines.

    Attributes:
        points: ``[N, 3]`` in LPS millimetres; z is 0 in 2D.
        triangles: indices of points ``[M, 3]``, outward by the right-hand rule.
        lines: indices of the points of each polyline.
        values: name → value per point ``[N]`` or ``[N, k]``; only VTP keeps them.
    """

    points: npt.NDArray[np.float64]
    triangles: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 3), dtype=np.int64))
    lines: tuple[npt.NDArray[np.int64], ...] = ()
    values: dict[str, npt.NDArray[np.float64]] = field(default_factory=dict)

    def moved(self, points: npt.NDArray[np.float64], **values: npt.NDArray[np.float64]) -> Surface:
        """The same mesh with other points, and with values instead of its own."""
        return replace(self, points=points, values=dict(values))


def label_surface(
    probabilities: npt.NDArray[np.floating], label: int, affine: npt.NDArray[np.floating]
) -> Surface | None:
    """Surface of one label of a soft labelmap, where its probability equals that of the likeliest other label.

    So it encloses the voxels that have the label in the hard labelmap, without their steps.

    Args:
        probabilities: ``[Nc, *shape]``.
        label: channel.
        affine: voxel to RAS world map, ``[dim + 1, dim + 1]``.

    Returns:
        The surface, closed also at the border of the grid; None where the label is nowhere the likeliest.
    """
    dim = probabilities.ndim - 1
    margin = probabilities[label] - np.delete(probabilities, label, axis=0).max(axis=0)
    if margin.max() <= 0:
        return None
    padded = np.pad(np.asarray(margin, dtype=np.float64), 1, constant_values=-1.0)
    if dim == 2:
        # Inside lies to the left of a contour in (row, column), so holes run the other way round.
        curves = find_contours(padded, 0.0)
        points = np.concatenate([curve[:-1] for curve in curves]) - 1
        starts = np.cumsum([0, *(len(curve) - 1 for curve in curves)])
        lines = tuple(np.r_[start:end, start] for start, end in pairwise(starts))
        triangles = np.zeros((0, 3), dtype=np.int64)
    else:
        # "ascent" turns the triangles outwards in a right-handed world, which the tests check.
        points, triangles, _, _ = marching_cubes(padded, 0.0, gradient_direction="ascent")
        points, lines = points.astype(np.float64) - 1, ()
    world = transform_points(homogeneous(np.asarray(affine), dim), points)
    full = np.zeros((len(world), 3))
    full[:, :dim] = flip_points(world)
    return Surface(full, triangles.astype(np.int64), lines)


def write_surface(surface: Surface, path: str | Path) -> None:
    """Write a surface in the format of the suffix, ``.vtp``, ``.ply`` or ``.stl``.

    Raises:
        InputError: another suffix, lines in a format that has none, or the file cannot be written.
    """
    suffix = _mesh_suffix(path)
    if surface.lines and suffix != ".vtp":
        raise InputError(f"{path}: {suffix} files hold no lines, which contours in 2D are. Choose the format vtp.")
    writer = _writer(suffix)
    writer.SetInputData(_to_vtk(surface))

    def write(part: Path) -> None:
        writer.SetFileName(str(part))
        if not writer.Write():
            raise OSError("VTK could not write it")

    write_whole(path, write)


def read_surface(path: str | Path) -> Surface:
    """Read a ``.vtp``, ``.ply`` or ``.stl`` file; coordinates marked as RAS are brought to LPS.

    Raises:
        InputError: another suffix, or the file is missing, damaged or empty.
    """
    from vtkmodules.util.numpy_support import vtk_to_numpy

    suffix = _mesh_suffix(path)
    if not Path(path).is_file():
        found = "is a folder" if Path(path).is_dir() else "no such file"
        raise InputError(f"{path}: {found}. Expected the file of a mesh. Check the path.")
    reader = _reader(suffix)
    errors = [] if suffix != ".ply" or _is_complete_ply(Path(path)) else ["truncated"]
    reader.AddObserver("ErrorEvent", lambda *_: errors.append("damaged"))
    if not errors:
        reader.SetFileName(str(path))
        with muted():
            reader.Update()
    mesh = reader.GetOutput()
    if errors or not mesh.GetNumberOfPoints() or not _has_its_points(mesh):
        raise InputError(f"{path}: expected a surface with points, found none, or a damaged file. Export it again.")
    points = vtk_to_numpy(mesh.GetPoints().GetData()).astype(np.float64)
    if _is_ras(reader, mesh, suffix):
        points = flip_points(points)
    values = {}
    for index in range(mesh.GetPointData().GetNumberOfArrays()):
        array = mesh.GetPointData().GetArray(index)
        if array is not None and array.GetName():  # None: an array of strings
            values[array.GetName()] = vtk_to_numpy(array).astype(np.float64)
    return Surface(points, _triangles(mesh, path), _lines(mesh), values)


def _mesh_suffix(path: str | Path) -> str:
    suffix = Path(path).suffix.lower()
    if suffix not in MESH_SUFFIXES:
        raise InputError(f"{path}: unknown format of a mesh. Expected {', '.join(MESH_SUFFIXES)}.")
    return suffix


def _writer(suffix: str) -> Any:
    """A VTK writer whose files 3D Slicer reads as LPS."""
    if suffix == ".vtp":
        from vtkmodules.vtkIOXML import vtkXMLPolyDataWriter

        return vtkXMLPolyDataWriter()
    if suffix == ".ply":
        from vtkmodules.vtkIOPLY import vtkPLYWriter

        ply = vtkPLYWriter()
        ply.AddComment(_SPACE)
        return ply
    from vtkmodules.vtkIOGeometry import vtkSTLWriter

    stl = vtkSTLWriter()
    stl.SetHeader(f"surface of an Atlas-ISTN label. {_SPACE}")
    stl.SetFileTypeToBinary()
    return stl


def _reader(suffix: str) -> Any:
    if suffix == ".vtp":
        from vtkmodules.vtkIOXML import vtkXMLPolyDataReader

        return vtkXMLPolyDataReader()
    if suffix == ".ply":
        from vtkmodules.vtkIOPLY import vtkPLYReader

        return vtkPLYReader()
    from vtkmodules.vtkIOGeometry import vtkSTLReader

    return vtkSTLReader()


def _is_complete_ply(path: Path) -> bool:
    """Whether a PLY file is as long as its header promises; of less VTK's reader makes up the rest, or crashes."""
    head, _, body = path.read_bytes().partition(b"end_header")
    lines = [line.split() for line in head.decode("latin-1").splitlines() if len(line.split()) >= 3]
    if ["format", "ascii", "1.0"] in lines:
        count = sum(int(words[2]) for words in lines if words[0] == "element" and words[2].isdigit())
        return sum(bool(line.strip()) for line in body.splitlines()) >= count
    least = count = 0
    for words in lines:
        if words[0] == "element" and words[2].isdigit():
            count = int(words[2])
        elif words[0] == "property":
            sizes = [_PLY_SIZES.get(kind, 1) for kind in words[1:-1]]
            # A list is its length and its entries: at least three vertices.
            is_face = words[1] == "list" and words[-1].startswith("vert")
            least += count * (sizes[1] + 3 * sizes[2] * is_face if words[1] == "list" else sizes[0])
    return len(body) > least


def _has_its_points(mesh: Any) -> bool:
    """Whether all points exist that the cells of a mesh consist of."""
    from vtkmodules.util.numpy_support import vtk_to_numpy

    arrays = [cells.GetConnectivityArray() for cells in (mesh.GetPolys(), mesh.GetStrips(), mesh.GetLines())]
    corners = np.concatenate([vtk_to_numpy(array) for array in arrays])
    return not corners.size or bool(corners.min() >= 0 and corners.max() < mesh.GetNumberOfPoints())


def _to_vtk(surface: Surface) -> Any:
    from vtkmodules.util.numpy_support import numpy_to_vtk, numpy_to_vtkIdTypeArray
    from vtkmodules.vtkCommonCore import vtkPoints, vtkStringArray
    from vtkmodules.vtkCommonDataModel import vtkCellArray, vtkPolyData

    mesh, points, space = vtkPolyData(), vtkPoints(), vtkStringArray()
    points.SetData(numpy_to_vtk(np.ascontiguousarray(surface.points, dtype=np.float32), deep=True))
    mesh.SetPoints(points)
    for cells, add in ((surface.triangles, mesh.SetPolys), (surface.lines, mesh.SetLines)):
        if not len(cells):
            continue
        offsets = np.cumsum([0, *(len(cell) for cell in cells)]).astype(np.int64)
        array = vtkCellArray()
        array.SetData(
            numpy_to_vtkIdTypeArray(offsets, deep=True),
            numpy_to_vtkIdTypeArray(np.concatenate(list(cells)).astype(np.int64), deep=True),
        )
        add(array)
    for name, values in surface.values.items():
        data = numpy_to_vtk(np.ascontiguousarray(values, dtype=np.float32), deep=True)
        data.SetName(name)
        mesh.GetPointData().AddArray(data)
    space.SetName("SPACE")
    space.InsertNextValue("LPS")
    mesh.GetFieldData().AddArray(space)
    return mesh


def _is_ras(reader: Any, mesh: Any, suffix: str) -> bool:
    if suffix == ".stl":
        return "SPACE=RAS" in (reader.GetHeader() or "")
    if suffix == ".ply":
        comments = reader.GetComments()
        return any("SPACE=RAS" in comments.GetValue(i) for i in range(comments.GetNumberOfValues()))
    space = mesh.GetFieldData().GetAbstractArray("SPACE")
    return space is not None and space.GetVariantValue(0).ToString() == "RAS"


def _triangles(mesh: Any, path: str | Path) -> npt.NDArray[np.int64]:
    from vtkmodules.vtkFiltersCore import vtkTriangleFilter

    if not mesh.GetNumberOfPolys() and not mesh.GetNumberOfStrips():
        return np.zeros((0, 3), dtype=np.int64)
    split = vtkTriangleFilter()
    split.SetInputData(mesh)
    split.PassVertsOff()
    split.PassLinesOff()
    split.Update()
    cells = _cells(split.GetOutput().GetPolys())
    if any(len(cell) != 3 for cell in cells):
        raise InputError(f"{path}: the surface cannot be split into triangles. Export it again.")
    return np.array(cells, dtype=np.int64).reshape(-1, 3)


def _lines(mesh: Any) -> tuple[npt.NDArray[np.int64], ...]:
    return tuple(_cells(mesh.GetLines())) if mesh.GetNumberOfLines() else ()


def _cells(array: Any) -> list[npt.NDArray[np.int64]]:
    from vtkmodules.util.numpy_support import vtk_to_numpy

    offsets = vtk_to_numpy(array.GetOffsetsArray()).astype(np.int64)
    return np.split(vtk_to_numpy(array.GetConnectivityArray()).astype(np.int64), offsets[1:-1])
