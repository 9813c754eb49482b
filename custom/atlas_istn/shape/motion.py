# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""The command that follows one subject over time: strain and volume from the registrations of its frames.

Every frame is a case of one inference run. A point p of the atlas is at ``X_0 = Φ_0(p)`` in the reference frame and at
``X_t = Φ_t(p)`` in frame t, so that ``F = ∂X_t/∂X_0 = (∂X_t/∂p) (∂X_0/∂p)⁻¹`` is the gradient of the motion.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..io.outputs import write_csv, write_image
from ..io.registration import Registration
from ..spatial import displacement_gradient
from .pictures import Panel, draw_curves
from .population import label_volumes
from .run import Run, check_count

__all__ = ["deformation_gradient", "motion", "principal_strains", "world_gradient"]

logger = logging.getLogger(__name__)

Array = npt.NDArray[np.float64]


def motion(output_dir: str | Path, cases: str | tuple[str, ...] = "all", to: str | Path = "") -> None:
    """Follow one subject over time: local strain and volumes, relative to the first frame.

    Writes into TO:

    motion.csv                           per frame and label: volume in mm3 (2D: area in mm2; in pixels of PNG images
                                         without pixel size), the same relative to the first frame, mean principal
                                         strains and mean local volume ratio
    motion.png                           the curves
    FRAME_strain_max.nii.gz, _strain_min.nii.gz  largest and least principal Green-Lagrange strain, in atlas space
    FRAME_volume_ratio.nii.gz            local volume relative to the first frame, in atlas space

    Means are over the tissue of the first frame: an atlas voxel counts by the volume that it has there.

    To see a map upon a frame: atlas_istn propagate OUTPUT_DIR TO/FRAME_strain_max.nii.gz --target FRAME --labels false

    Args:
        output_dir: folder of an inference run whose cases are the frames.
        cases: "all" (in the order of their names), or the frames in the order of time with commas between them; the
            first one is the reference.
        to: folder to write to; default OUTPUT_DIR/motion.

    Raises:
        InputError: unknown or too few cases, or a file that cannot be read or written.
    """
    run = Run.open(output_dir)
    frames = run.choose(cases)
    check_count(frames, 2, "motion")
    folder = Path(to or run.folder / "motion")
    run.check(frames)
    reference = run.registration(frames[0])
    rest = world_gradient(reference)
    tissue = np.abs(np.linalg.det(rest))
    classes = run.probabilities().argmax(axis=0)
    names = run.label_names()
    volumes = label_volumes(run, frames)
    rows: list[dict[str, Any]] = []
    for frame, volume in zip(frames, volumes, strict=True):
        gradient = deformation_gradient(rest, world_gradient(run.registration(frame)))
        strains = principal_strains(gradient)
        maps = {
            "strain_max": strains[..., -1],
            "strain_min": strains[..., 0],
            "volume_ratio": np.linalg.det(gradient),
        }
        for name, values in maps.items():
            write_image(values.astype(np.float32), reference.atlas_affine, folder / f"{frame}_{name}.nii.gz")
        for index, label in enumerate(names, start=1):
            first = volumes[0][label]
            inside = classes == index
            means = {
                name: round(float(np.average(values[inside], weights=tissue[inside])), 6)
                for name, values in maps.items()
            }
            relative = round(volume[label] / first, 6) if first else float("nan")
            rows.append({"frame": frame, "label": label, "volume": volume[label], "relative_volume": relative, **means})
    write_csv(rows, folder / "motion.csv")
    panels = [
        Panel(title, rest, {name: [float(row[key]) for row in rows if row["label"] == name] for name in names})
        for key, title, rest in (
            ("relative_volume", f"{'volume' if run.dim == 3 else 'area'} relative to the first frame", 1.0),
            ("strain_max", "largest principal Green-Lagrange strain, mean", 0.0),
            ("strain_min", "least principal Green-Lagrange strain, mean", 0.0),
        )
    ]
    draw_curves(panels, frames, folder / "motion.png")
    logger.info("%d frames in %s", len(frames), folder)


def deformation_gradient(rest: Array, moved: Array) -> Array:
    """``F = ∂X_t/∂X_0`` at each point of the atlas, in millimetres per millimetre of RAS world, ``[*shape, dim, dim]``.

    Args:
        rest: `world_gradient` of the frame at rest.
        moved: that of frame t; over the same atlas.
    """
    return np.asarray(moved @ np.linalg.inv(rest))


def principal_strains(gradient: Array) -> Array:
    """Eigenvalues of the Green-Lagrange strain ``E = (Fᵀ F − I) / 2``, which rotations leave alone.

    Args:
        gradient: F, ``[*shape, dim, dim]``.

    Returns:
        ``[*shape, dim]``, ascending; 0 at rest, positive where tissue is stretched.
    """
    strain = (np.swapaxes(gradient, -1, -2) @ gradient - np.eye(gradient.shape[-1])) / 2
    return np.asarray(np.linalg.eigvalsh(strain))


def world_gradient(registration: Registration) -> Array:
    """``∂X/∂p`` of the subject's world by the atlas's voxels, ``[*shape, dim, dim]``."""
    dim = registration.dim
    displacement = registration.transform.fixed_to_moving()
    gradient = displacement_gradient(displacement)[0].movedim((0, 1), (-2, -1)) + torch.eye(dim, dtype=torch.float64)
    return np.asarray(registration.subject_affine[:dim, :dim] @ gradient.numpy())
