# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Runs of inference with known transforms, written by the writers that inference uses."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from atlas_istn.__main__ import main
from atlas_istn.inferers.result import Course, Result
from atlas_istn.networks import AtlasISTN, SpatialTransformerNetwork, UNet
from atlas_istn.spatial import Transform
from atlas_istn.workflow.results import CaseResult
from atlas_istn.workflow.writer import CaseWriter


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    """Run `python -m atlas_istn ARGUMENTS` in this process, which has imported everything already."""
    monkeypatch.setattr(sys, "argv", ["atlas_istn", *map(str, arguments)])
    main()


def soft_ball(shape: tuple[int, ...], radius: float = 0.28) -> torch.Tensor:
    """Soft labelmap [1, 3, *shape] of an ellipsoid whose halves along the first axis are two labels."""
    axes = [(torch.arange(n, dtype=torch.float32) - (n - 1) / 2) / n for n in shape]
    grid = torch.stack(torch.meshgrid(axes, indexing="ij"))
    inside = torch.sigmoid(40 * (radius - grid.norm(dim=0)))
    right = torch.sigmoid(40 * grid[0])
    return torch.stack([1 - inside, inside * (1 - right), inside * right])[None]


def half_ball_network(shape: tuple[int, ...]) -> AtlasISTN:
    """A small network with voxels of 2 mm, whose atlas is a ball of two labels."""
    torch.manual_seed(0)
    dim = len(shape)
    stn = SpatialTransformerNetwork(dim, 4, (4, 8))
    network = AtlasISTN(UNet(dim, 1, 3, (4, 8)), stn, shape, 3, spacing=[2.0] * dim)
    network.atlas_labels.copy_(soft_ball(shape))
    network.atlas_image.copy_(network.atlas_labels[:, 1:2])
    return network


def write_run(
    folder: Path,
    network: AtlasISTN,
    transforms: Mapping[str, Transform],
    affine: np.ndarray | None = None,
    suffix: str = ".nii.gz",
) -> Path:
    """Write the files of an inference run whose registrations are given, on grids like the model's.

    Args:
        folder: folder to fill.
        network: holds the atlas.
        transforms: case → a batch of one.
        affine: voxel to RAS world map 4x4 of every subject; default the identity.
        suffix: of the input images.
    """
    affine = np.eye(4) if affine is None else affine
    count = network.atlas_labels.shape[1]
    names = {0: "background", **{index: f"part {index}" for index in range(1, count)}}
    writer = CaseWriter(str(folder), network, names, [0, *(10 * index for index in range(1, count))])
    writer.start()
    for case, transform in transforms.items():
        soft = transform.to_fixed(network.atlas_labels)
        labels = MetaTensor(soft[0].argmax(dim=0, keepdim=True), affine=torch.as_tensor(affine))
        one = torch.ones(1)
        writer.write(
            CaseResult(
                case=case,
                source=f"{case}{suffix}",
                reference="",
                grid_affine=affine,
                result=Result(
                    soft, 1.0, transform=transform, course=Course(soft, one, one, torch.ones(2, 1), one, one)
                ),
                labelmaps=dict.fromkeys(("itn", "one_pass", "pred"), labels),
                uncertainty=None,
                atlas_labels=network.atlas_labels,
            )
        )
    return folder
