# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.

from __future__ import annotations

import csv
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from atlas_istn.errors import InputError
from atlas_istn.io.registration import Registration
from atlas_istn.shape.motion import deformation_gradient, motion, principal_strains, world_gradient
from atlas_istn.spatial import Transform, compose_affine, num_affine_parameters
from shape_runs import command, half_ball_network, write_run

STRETCHES = (1.0, 1.2, 0.9)  # of the frames, along the first axis


def shape_of(dim: int) -> tuple[int, ...]:
    return (24, 20, 16)[:dim]


def frame(dim: int, stretch: float, angle: float = 0.0) -> Transform:
    """Stretches along the first axis, then turns (in 3D about an axis that is none of the grid's)."""
    parameters = torch.zeros(1, num_affine_parameters(dim))
    parameters[0, dim] = angle
    if dim == 3:
        parameters[0, dim + 1] = 0.5 * angle
    parameters[0, -dim] = np.log(stretch)
    half = tuple(n // 2 for n in shape_of(dim))
    return Transform(torch.zeros(1, dim, *half), compose_affine(parameters), shape_of(dim), (2.0,) * dim)


def registration(transform: Transform, dim: int) -> Registration:
    double = Transform(transform.velocity.double(), transform.affine.double(), transform.shape, transform.spacing)
    return Registration(double, np.diag([2.0] * dim + [1.0]))


def test_strain_is_that_of_the_motion_between_frames_and_not_of_turns(dim: int) -> None:
    # The reference is itself stretched by 0.8: what counts is the motion from it.
    reference, moved = (world_gradient(registration(frame(dim, *v), dim)) for v in ((0.8, 0.2), (0.8 * 1.25, 0.9)))
    strains = principal_strains(deformation_gradient(reference, moved))
    expected = [0.0] * (dim - 1) + [(1.25**2 - 1) / 2]
    np.testing.assert_allclose(strains, np.broadcast_to(expected, strains.shape), atol=1e-6)
    resting = principal_strains(deformation_gradient(reference, reference))
    np.testing.assert_allclose(resting, 0, atol=1e-12)


def test_the_command_follows_a_subject(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dim: int) -> None:
    names = ["t0", "t1", "t2"]
    transforms = {name: frame(dim, stretch) for name, stretch in zip(names, STRETCHES, strict=True)}
    affine = np.diag([2.0, 2.0, 2.0 if dim == 3 else 1.0, 1.0])
    run = write_run(tmp_path / "out", half_ball_network(shape_of(dim)), transforms, affine)
    command(monkeypatch, "motion", run, "--cases", "t0,t1,t2")
    folder = run / "motion"
    with (folder / "motion.csv").open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["label"] == "part_1"]
    assert [row["frame"] for row in rows] == names
    for row, stretch in zip(rows, STRETCHES, strict=True):
        strain = (stretch**2 - 1) / 2
        assert float(row["strain_max"]) == pytest.approx(max(strain, 0), abs=1e-3)
        assert float(row["strain_min"]) == pytest.approx(min(strain, 0), abs=1e-3)
        assert float(row["volume_ratio"]) == pytest.approx(stretch, abs=1e-3)
        # Counted in voxels, of which the half ball is few wide.
        assert float(row["relative_volume"]) == pytest.approx(stretch, abs=0.1)
    image = nib.load(folder / "t1_strain_max.nii.gz")
    assert image.shape[:dim] == shape_of(dim)
    with Image.open(folder / "motion.png") as picture:
        assert min(picture.size) > 100
    with pytest.raises(InputError, match=r"needs at least 2 cases, found 1\. Name more in --cases"):
        motion(run, cases="t1")


def test_means_are_over_the_tissue_and_not_over_the_atlas(tmp_path: Path, dim: int) -> None:
    # Velocities c u² along the first axis take u to u / (1 − c u): in the reference the tissue from 0 to b is
    # b / (1 − c b) long, and most of it comes from the atlas's voxels near b. At rest it is b long again.
    shape, c, b = (48, 12, 10)[:dim], 0.02, 24.0
    u = 2 * (torch.arange(48) - 23.5)
    labels = torch.zeros(1, 3, *shape)
    labels[:, 1, (u < 0) & (u > -b)] = 1
    labels[:, 2, (u > 0) & (u < b)] = 1
    labels[:, 0] = 1 - labels.sum(dim=1)
    network = half_ball_network(shape)
    network.atlas_labels.copy_(labels)
    half = tuple(n // 2 for n in shape)
    step = 2 * 47 / 23
    coarse = step * (torch.arange(24) - 11.5)
    velocity = torch.zeros(1, dim, *half)
    velocity[:, 0] = (c * coarse.square() / step).reshape(-1, *[1] * (dim - 1))
    still = compose_affine(torch.zeros(1, num_affine_parameters(dim)))
    frames = {
        "a": Transform(velocity, still, shape, (2.0,) * dim),
        "b": Transform(torch.zeros_like(velocity), still, shape, (2.0,) * dim),
    }
    run = write_run(tmp_path / "out", network, frames, np.diag([2.0, 2.0, 2.0 if dim == 3 else 1.0, 1.0]))
    motion(run)
    with (run / "motion" / "motion.csv").open(newline="") as stream:
        row = next(row for row in csv.DictReader(stream) if (row["frame"], row["label"]) == ("b", "part_2"))
    # The mean of (1 − c u)² over the atlas would be 0.60.
    assert float(row["volume_ratio"]) == pytest.approx(1 - c * b, abs=0.02)
    assert float(row["relative_volume"]) == pytest.approx(1 - c * b, abs=0.03)  # counted in voxels
