# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Synthetic images, and a model for them that needs no training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from atlas_istn.io.outputs import atlas_grid_affine


def ellipsoids(affine: np.ndarray, shape: tuple[int, ...], shift: tuple[float, ...] = ()) -> np.ndarray:
    """Classes 0, 1, 2 (in 2D: 0, 1) on a grid: two solids that touch, not symmetric about any axis."""
    points = (
        np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1) @ affine[:-1, :-1].T + affine[:-1, -1]
    )
    points = points - np.asarray(shift or np.zeros(len(shape)))
    classes = np.zeros(shape, dtype=np.uint8)
    solids = [((-1.0, -4.5, -1.0), (5.0, 4.0, 6.0)), ((1.0, 4.0, 1.0), (4.0, 5.0, 4.0))]
    if len(shape) == 2:  # twice the size, as the letter B is worked on at 2 mm
        solids = [((-4.0, -6.0), (10.0, 8.0)), ((4.0, 8.0), (7.0, 9.0))]
    for number, (centre, radii) in enumerate(solids):
        inside = (((points - centre) / radii) ** 2).sum(axis=-1) <= 1
        classes[inside] = 1 if len(shape) == 2 else number + 1
    return classes


def picture(classes: np.ndarray, seed: int = 0) -> np.ndarray:
    """An image of classes, with a little noise."""
    return (400.0 * classes + np.random.default_rng(seed).normal(0, 8, classes.shape)).astype(np.float32)


def centred(shape: tuple[int, ...], spacing: tuple[float, ...]) -> np.ndarray:
    return atlas_grid_affine(shape, spacing)


def save_model(path: Path, network: torch.nn.Module, atlas: np.ndarray) -> Path:
    """Fill a network with the hand-made ITN and an atlas of classes, and write its weights."""
    num_classes = network.atlas_labels.shape[1]
    first, _, last = network.itn
    with torch.no_grad():
        if num_classes == 3:  # one-hot at the scaled intensities 0, 1/2, 1, linear between them
            hidden, output, bias = [1.0, 1.0, 0.0], [[-2, 2, 0], [2, -4, 0], [0, 2, 0]], [1.0, 0.0, 0.0]
            first.bias.copy_(torch.tensor([0.0, -0.5, 0.0]))
        else:
            hidden, output, bias = [1.0, 0.0], [[-1, 0], [1, 0]], [1.0, 0.0]
            first.bias.zero_()
        first.weight.copy_(torch.tensor(hidden).reshape(first.weight.shape))
        last.weight.copy_(torch.tensor(output).float().reshape(last.weight.shape))
        last.bias.copy_(torch.tensor(bias))
        classes = torch.from_numpy(atlas).long()
        network.atlas_labels.copy_(torch.nn.functional.one_hot(classes, num_classes).movedim(-1, 0)[None].float())
        network.atlas_image.copy_(classes[None, None].float() / (num_classes - 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(network.state_dict(), path)
    return path
