# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Points, meshes and images from one space of a run to another: atlas to subject, back, and subject to subject.

Points move with the map itself; images are resampled, which needs the map from the target's points to the source's.
Subject to subject goes through the atlas, ``(y_j ∘ Φ_j) ∘ Φ_i⁻¹`` (Atlas-ISTN, eq. 22-23).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from monai.data import MetaTensor
from scipy.optimize import linprog

from ..errors import InputError
from ..io.points import POINT_SUFFIXES, read_points
from ..io.warping import warp_labels, warp_volume, write_warped
from .run import ATLAS, Run, counted
from .surfaces import MESH_SUFFIXES, read_surface, write_surface

__all__ = ["move_points", "propagate", "resample"]

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".nii.gz", ".nii", ".png", ".nrrd", ".mha")
Points = npt.NDArray[np.float64]


def propagate(
    output_dir: str | Path,
    path: str | Path,
    source: str = ATLAS,
    target: str | tuple[str, ...] = "all",
    labels: bool = True,
    to: str | Path = "",
) -> None:
    """Take points, a mesh, a label map or an image from one space of an inference run to others.

    Points are .csv (columns x, y, z in LPS mm), .mrk.json or .fcsv of 3D Slicer; meshes .vtp, .ply or .stl; images
    .nii.gz, .nii, .png, .nrrd or .mha. Results keep the format, except that images of atlas space and volumes become
    .nii.gz. They are written as TO/TARGET/NAME_SOURCE_to_TARGET.SUFFIX.

    Args:
        output_dir: folder of an inference run.
        path: file to propagate, in the space of the source.
        source: "atlas", or the name of a case.
        target: "atlas", the name of a case, several names with commas between them, or "all" (every case).
        labels: an image is a label map (its labels are interpolated one by one); --labels false for grey values.
        to: folder to write to; default OUTPUT_DIR/propagated.

    Raises:
        InputError: an unknown case or format, content outside of the source, or a file that cannot be read or written.
    """
    run = Run.open(output_dir)
    sources = run.choose(source, atlas=True)
    if len(sources) != 1:
        raise InputError(f"source: expected {ATLAS} or the name of one case, found {len(sources)}. Choose one.")
    source = sources[0]
    targets = [name for name in dict.fromkeys(run.choose(target, atlas=True)) if name != source]
    if not targets:
        raise InputError(f"source and target are both '{source}': nothing to propagate. Choose another target.")
    suffix = _suffix_of(path)
    run.check([source, *targets], grids=suffix in IMAGE_SUFFIXES)
    folder = Path(to or run.folder / "propagated")
    stem = Path(path).name[: -len(suffix)]
    results = {name: folder / name / f"{stem}_{source}_to_{name}{suffix}" for name in targets}
    if suffix in POINT_SUFFIXES:
        _propagate_points(run, path, source, results)
    elif suffix in MESH_SUFFIXES:
        _propagate_mesh(run, path, source, results)
    else:
        _propagate_image(run, path, source, results, labels)
    logger.info("%s taken from %s to %s, in %s", path, source, counted(len(targets), "space"), folder)


def move_points(run: Run, points: Points, source: str, target: str) -> Points:
    """Take LPS points ``[N, dim]`` or, with z left as it is in 2D, ``[N, 3]`` from one space of a run to another.

    Args:
        run: the run.
        points: in millimetres of the source.
        source: ``"atlas"`` or a case.
        target: ``"atlas"`` or a case.
    """
    moved = points.astype(np.float64).copy()
    plane = moved[:, : run.dim]
    if source != ATLAS:
        plane = run.registration(source).to_atlas(plane)
    if target != ATLAS:
        plane = run.registration(target).to_subject(plane)
    moved[:, : run.dim] = plane
    return moved


def resample(run: Run, image: MetaTensor, source: str, target: str, labels: bool) -> npt.NDArray[np.floating]:
    """Resample an image of the source on the grid of the target; 0 where the source has nothing.

    Args:
        run: the run.
        image: ``[1, *shape]`` on any grid in the world of the source.
        source: ``"atlas"`` or a case.
        target: ``"atlas"`` or a case.
        labels: each label is interpolated by itself, and the largest wins.
    """
    grid = run.grid(target)

    def points(here: Points) -> Points:
        return move_points(run, here, target, source)

    return warp_labels(image, grid, points) if labels else warp_volume(image, grid, points)[0]


def _suffix_of(path: str | Path) -> str:
    known = (*POINT_SUFFIXES, *MESH_SUFFIXES, *IMAGE_SUFFIXES)
    suffix = next((end for end in known if str(path).lower().endswith(end)), "")
    if not suffix:
        raise InputError(f"{path}: unknown format. Expected one of {', '.join(known)}.")
    return str(path)[-len(suffix) :].lower()


def _propagate_points(run: Run, path: str | Path, source: str, results: Mapping[str, Path]) -> None:
    content = read_points(path, run.dim)
    _check_inside(run, content.points, source, path)
    for target, result in results.items():
        content.write(move_points(run, content.points, source, target), result)


def _propagate_mesh(run: Run, path: str | Path, source: str, results: Mapping[str, Path]) -> None:
    surface = read_surface(path)
    _check_inside(run, surface.points, source, path)
    for target, result in results.items():
        write_surface(surface.moved(move_points(run, surface.points, source, target), **surface.values), result)


def _propagate_image(run: Run, path: str | Path, source: str, results: Mapping[str, Path], labels: bool) -> None:
    image = run.read(path, source)
    content = image[0].numpy()
    if labels and (content != content.round()).any():
        raise InputError(f"{path}: expected a label map, found values that are no integers. Add --labels false.")
    _check_overlap(run, image, source, path)
    for target, result in results.items():
        voxels = resample(run, image, source, target, labels)
        write_warped(voxels, run.grid(target), str(result).removesuffix(_suffix_of(result)), labels)


def _check_inside(run: Run, points: Points, source: str, path: str | Path) -> None:
    of_atlas = source == ATLAS
    outside = run.registration(run.cases[0] if of_atlas else source).outside(points[:, : run.dim], of_atlas)
    if outside.any():
        first = np.round(points[outside][0], 2).tolist()
        raise InputError(
            f"{path}: {int(outside.sum())} of {len(points)} points lie outside of the region of '{source}' that the "
            f"model sees, the first at {first} (LPS, mm). Expected points in the space of '{source}'. Check the source "
            "and the coordinate system."
        )


def _check_overlap(run: Run, image: MetaTensor, source: str, path: str | Path) -> None:
    """Refuse an image all of which lies outside of what the model sees: two boxes with no point in common."""
    registration = run.registration(run.cases[0] if source == ATLAS else source)
    region = registration.atlas_affine if source == ATLAS else registration.subject_affine
    dim, affine = run.dim, image.affine.numpy()
    sizes = [*image.shape[1:], *registration.transform.shape]
    common = linprog(
        np.zeros(2 * dim),
        A_eq=np.hstack([affine[:dim, :dim], -region[:dim, :dim]]),
        b_eq=region[:dim, dim] - affine[:dim, 3],
        bounds=[(-0.5, size - 0.5) for size in sizes],
    )
    if not common.success:
        raise InputError(
            f"{path}: the image lies outside of the region of '{source}' that the model sees. Expected an image in the "
            f"space of '{source}'. Check the source and the image's geometry."
        )
