# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""The command that makes the surfaces of the atlas and their counterparts in every subject."""

from __future__ import annotations

import logging
from pathlib import Path

from ..errors import InputError
from ..io.outputs import atlas_grid_affine
from .propagate import move_points
from .run import ATLAS, Run, counted
from .surfaces import MESH_SUFFIXES, Surface, label_surface, write_surface

__all__ = ["atlas_surfaces", "mesh"]

logger = logging.getLogger(__name__)


def mesh(
    output_dir: str | Path, cases: str | tuple[str, ...] = "all", file_format: str = "vtp", to: str | Path = ""
) -> None:
    """Make the surface of each label of the atlas, and the corresponding surface of each subject.

    Vertex i is the same anatomical place in every file of a label. Files are TO/atlas/atlas_LABEL.vtp and
    TO/CASE/CASE_LABEL.vtp, in LPS millimetres. For 2D images they hold closed lines. (STL files repeat a vertex for
    each triangle; the order of triangles corresponds.)

    Args:
        output_dir: folder of an inference run.
        cases: "all", or names of cases with commas between them.
        file_format: vtp, ply or stl; for 2D images vtp.
        to: folder to write to; default OUTPUT_DIR/meshes.

    Raises:
        InputError: an unknown case or format, or a file that cannot be read or written.
    """
    run = Run.open(output_dir)
    chosen = list(dict.fromkeys(run.choose(cases)))
    suffix = f".{file_format.lower()}"
    if suffix not in MESH_SUFFIXES:
        raise InputError(f"file_format: expected vtp, ply or stl, found '{file_format}'.")
    if run.dim == 2 and suffix != ".vtp":
        raise InputError(f"file_format: expected vtp for the lines of 2D images, found '{file_format}' without lines.")
    surfaces = atlas_surfaces(run)
    run.check(chosen)
    folder = Path(to or run.folder / "meshes")
    for label, surface in surfaces.items():
        write_surface(surface, folder / ATLAS / f"{ATLAS}_{label}{suffix}")
    for case in chosen:
        for label, surface in surfaces.items():
            moved = surface.moved(move_points(run, surface.points, ATLAS, case))
            write_surface(moved, folder / case / f"{case}_{label}{suffix}")
    labels, subjects = counted(len(surfaces), "label"), counted(len(chosen), "case")
    logger.info("%s of the atlas and of %s in %s", labels, subjects, folder)


def atlas_surfaces(run: Run) -> dict[str, Surface]:
    """Label name → surface of the atlas.

    Raises:
        InputError: the atlas cannot be read, or holds no label.
    """
    transform = run.registration(run.cases[0]).transform
    affine = atlas_grid_affine(transform.shape, transform.spacing)
    probabilities = run.probabilities()
    surfaces = {}
    for label, name in enumerate(run.label_names(), start=1):
        surface = label_surface(probabilities, label, affine)
        if surface is None:
            logger.warning("the atlas has no voxel of %s: no surface", name)
        else:
            surfaces[name] = surface
    if not surfaces:
        raise InputError(f"{run.atlas_file('probabilities')}: the atlas holds no label. Train it longer.")
    return surfaces
