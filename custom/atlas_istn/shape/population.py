# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""The command that describes a cohort: volumes, mean shape, modes of variation, local volumes and groups."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from ..errors import InputError
from ..io.outputs import atlas_grid_affine, write_csv, write_image, write_labelmap
from ..io.registration import Registration
from ..spatial import Transform, jacobian_determinant, warp
from .groups import compare_groups, read_groups
from .mesh import atlas_surfaces
from .modes import ShapeModes, shape_modes
from .pictures import draw_groups, draw_modes
from .run import Run, check_count
from .surfaces import Surface, write_surface

__all__ = ["label_volumes", "log_jacobian", "population"]

logger = logging.getLogger(__name__)

Array = npt.NDArray[np.float64]
AMOUNTS = (-2.0, 2.0)
"""Standard deviations at which a mode is shown."""


def population(
    output_dir: str | Path,
    cases: str | tuple[str, ...] = "all",
    modes: int = 3,
    size: bool = True,
    groups: str | Path = "",
    to: str | Path = "",
) -> None:
    """Describe the shapes of a cohort, from the registrations of an inference run.

    Writes into TO:

    volumes.csv                     volume of each label and case in mm3 (2D: area in mm2, or in pixels: see below)
    mean/                           mean shape: label map and a surface per label
    modes.csv, scores.csv           deviation (mm) and explained variance of each mode; scores of the cases in SD
    modes/mode_K_velocity.nii.gz    velocity of mode K for 1 SD: RAS vectors in mm on the atlas's extent
    modes/mode_K_minus_LABEL.vtp    surface of the mean - 2 SD of mode K, and _plus_ for + 2 SD; same vertices as mean/
    modes.png                       the outlines of these shapes
    jacobian/CASE_log_jacobian.nii.gz  log of the local volume of the subject relative to the atlas, in atlas space
    groups.csv, groups_*.nii.gz, groups.png  comparison of two groups, with --groups

    Modes are principal components of velocity fields and scales in the log domain. Of PNG images whose pixel size the
    run was not told, all lengths are in pixels.

    Args:
        output_dir: folder of an inference run.
        cases: "all", or names of cases with commas between them; at least 3.
        modes: number of modes.
        size: size is part of the shape, beside position and orientation, which never are.
        groups: CSV file with the columns case and group, two groups: compared by Welch's t-test in local volumes,
            volumes and scores, with the false discovery rate controlled. Differences are second group less first, in
            alphabetical order of their names.
        to: folder to write to; default OUTPUT_DIR/population.

    Raises:
        InputError: unknown or too few cases, a bad number of modes, bad groups, or a file that cannot be read.
    """
    run = Run.open(output_dir)
    chosen = run.choose(cases)
    check_count(chosen, 3, "population")
    repeated = [case for case in dict.fromkeys(chosen) if chosen.count(case) > 1]
    if repeated:
        raise InputError(f"cases: expected each case once, found '{repeated[0]}' again. Name it once.")
    if isinstance(modes, bool) or not isinstance(modes, int) or modes < 1:
        raise InputError(f"modes: expected a positive number, found {modes!r}.")
    group_places = read_groups(groups, chosen) if groups else {}
    folder = Path(to or run.folder / "population")
    transforms = Transform.cat([run.registration(case).transform for case in chosen])
    probabilities = torch.from_numpy(np.ascontiguousarray(run.probabilities()))

    surfaces = atlas_surfaces(run)
    volumes = label_volumes(run, chosen)
    result = shape_modes(transforms, 1 - probabilities[0], modes, size)
    if not len(result.deviations):
        raise InputError(f"{run.folder}: all {len(chosen)} cases have the same shape. Choose cases that differ.")
    write_csv([{"case": case, **row} for case, row in zip(chosen, volumes, strict=True)], folder / "volumes.csv")
    _write_tables(result, chosen, run.unit, folder)
    _write_shapes(result, surfaces, [0, *run.label_values()], probabilities, folder)
    draw_modes(result, probabilities, run.label_names(), run.unit, folder / "modes.png")
    maps = _write_jacobians(run, chosen, folder / "jacobian")
    if groups:
        measures = {name: np.array([row[name] for row in volumes]) for name in volumes[0]}
        measures |= {f"mode {k + 1}": scores for k, scores in enumerate(result.scores.T)}
        _compare(run, maps, measures, group_places, probabilities, folder)
    logger.info("%d cases described in %s", len(chosen), folder)


def label_volumes(run: Run, cases: list[str]) -> list[dict[str, float]]:
    """For each case label name → volume in mm³, or area in mm² (or pixels) of a 2D image, of its refined labelmap.

    Raises:
        InputError: a labelmap cannot be read.
    """
    names, values = run.label_names(), run.label_values()
    rows = []
    for case in cases:
        grid = run.grid(case)
        size = float(np.prod(np.asarray(grid.pixdim)[: run.dim]))
        labels = grid[0].numpy().round()
        rows.append({n: float((labels == v).sum()) * size for n, v in zip(names, values, strict=True)})
    return rows


def log_jacobian(registration: Registration) -> Array:
    """Logarithm of the local volume of a subject relative to the atlas, on the atlas's grid ``[*shape]``.

    The determinant of Φ's Jacobian: size included. Both grids have the same voxels, so it needs no unit.
    """
    determinant = jacobian_determinant(registration.transform.fixed_to_moving())[0]
    return np.asarray(determinant.clamp_min(1e-3).log())


def _write_tables(result: ShapeModes, cases: list[str], unit: str, folder: Path) -> None:
    rows = [
        {"mode": k + 1, f"deviation_{unit}": _rounded(d), "explained_variance": _rounded(e), "cumulative": _rounded(c)}
        for k, (d, e, c) in enumerate(
            zip(result.deviations, result.explained, np.cumsum(result.explained), strict=True)
        )
    ]
    write_csv(rows, folder / "modes.csv")
    scores = [
        {"case": case, **{f"mode {k + 1}": _rounded(value) for k, value in enumerate(row)}}
        for case, row in zip(cases, result.scores, strict=True)
    ]
    write_csv(scores, folder / "scores.csv")


def _rounded(value: float) -> float:
    return round(float(value), 6)


def _write_shapes(
    result: ShapeModes, surfaces: dict[str, Surface], values: list[int], probabilities: torch.Tensor, folder: Path
) -> None:
    """The mean shape, and the surfaces and velocities of the modes; ``values`` are those of the labels in files."""
    transform = result.mean
    affine = atlas_grid_affine(transform.shape, transform.spacing)
    mean_labels = warp(probabilities[None], transform.moving_to_fixed())[0].argmax(dim=0).numpy()
    write_labelmap(mean_labels, affine, values, folder / "mean" / "mean_labelmap.nii.gz")
    _write_moved(surfaces, transform, folder / "mean", "mean")
    half = transform.velocity.shape[2:]
    steps = [s * (n - 1) / (m - 1) for s, n, m in zip(transform.spacing, transform.shape, half, strict=True)]
    for mode, velocity in enumerate(result.velocities):
        name = f"mode_{mode + 1}"
        millimetres = np.moveaxis(velocity.numpy(), 0, -1) * np.asarray(steps)
        write_image(
            millimetres.astype(np.float32), atlas_grid_affine(half, steps), folder / "modes" / f"{name}_velocity.nii.gz"
        )
        for amount, sign in zip(AMOUNTS, ("minus", "plus"), strict=True):
            _write_moved(surfaces, result.shape(mode, amount), folder / "modes", f"{name}_{sign}")


def _write_moved(surfaces: dict[str, Surface], transform: Transform, folder: Path, name: str) -> None:
    """Surfaces of the atlas where a transform takes them, in the world of the atlas."""
    registration = Registration(transform, atlas_grid_affine(transform.shape, transform.spacing))
    for label, surface in surfaces.items():
        points = surface.points.copy()
        points[:, : registration.dim] = registration.to_subject(points[:, : registration.dim])
        write_surface(surface.moved(points), folder / f"{name}_{label}.vtp")


def _write_jacobians(run: Run, cases: list[str], folder: Path) -> Array:
    """Write the map of each case, their mean and standard deviation; returns ``[N, *shape]``."""
    registrations = [run.registration(case) for case in cases]
    maps = np.stack([log_jacobian(registration) for registration in registrations])
    affine = registrations[0].atlas_affine
    named = {f"{case}_log_jacobian": values for case, values in zip(cases, maps, strict=True)}
    named |= {"mean_log_jacobian": maps.mean(axis=0), "sd_log_jacobian": maps.std(axis=0, ddof=1)}
    for name, values in named.items():
        write_image(values.astype(np.float32), affine, folder / f"{name}.nii.gz")
    return maps


def _compare(
    run: Run,
    maps: Array,
    measures: dict[str, Array],
    groups: dict[str, list[int]],
    probabilities: torch.Tensor,
    folder: Path,
) -> None:
    """Compare two groups in the tables and, within the anatomy, voxel by voxel."""
    table = compare_groups(np.stack(list(measures.values()), axis=1), groups)
    first, second = groups
    rows = [
        {
            "measure": name,
            f"mean {first}": _rounded(values[groups[first]].mean()),
            f"mean {second}": _rounded(values[groups[second]].mean()),
            f"difference ({second} - {first})": _rounded(table.difference[i]),
            "p": float(table.p[i]),
            "p_fdr": float(table.adjusted[i]),
        }
        for i, (name, values) in enumerate(measures.items())
    ]
    write_csv(rows, folder / "groups.csv")
    anatomy = (probabilities[0] < 0.5).numpy()
    found = compare_groups(maps[:, anatomy], groups)
    spacing = run.registration(run.cases[0]).transform.spacing
    affine = atlas_grid_affine(maps.shape[1:], spacing)
    pictures = {}
    for name, values, outside in (("difference", found.difference, 0.0), ("p_fdr", found.adjusted, 1.0)):
        image = np.full(maps.shape[1:], outside, dtype=np.float32)
        image[anatomy] = values
        write_image(image, affine, folder / f"groups_{name}.nii.gz")
        pictures[name] = image
    draw_groups(
        pictures["difference"],
        pictures["p_fdr"],
        probabilities,
        spacing,
        (first, second),
        run.unit,
        folder / "groups.png",
    )
    significant = float((found.adjusted < 0.05).mean())
    logger.info("%s against %s: %.1f %% of the anatomy at p_fdr < 0.05", second, first, 100 * significant)
