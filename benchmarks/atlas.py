# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""How well the rules of atlas construction find the mean shape of a cohort, and how sharp their atlas is.

Letters B are drawn by deforming one of them with random maps whose mean, in the log domain, is the identity: that one
is the mean shape. The atlas starts as the first case, which is far from it, and is rebuilt several times by each rule
from registrations to the labels. Nothing is trained, so only the rules differ.

    python benchmarks/atlas.py
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import torch
from monai.metrics import compute_dice
from scipy.ndimage import gaussian_filter
from skimage.measure import perimeter
from torch import Tensor, nn
from torch.nn import functional

from atlas_istn.inferers.refine import RefinementInferer
from atlas_istn.networks import AtlasISTN
from atlas_istn.spatial import Transform, compose_affine
from atlas_istn.training.atlas_builder import AtlasBuilder
from topology import FixedStart, draw_shape

__all__ = ["main"]

SIZE = (64, 64)
HALF = tuple(n // 2 for n in SIZE)
RULES: dict[str, dict[str, Any]] = {
    "paper": {},
    "unbiased": {"shape": "unbiased"},
    "unbiased, median": {"shape": "unbiased", "average": "median"},
    "unbiased, sharpening 0.1": {"shape": "unbiased", "sharpening": 0.1},
    "unbiased, sharpening 0.3": {"shape": "unbiased", "sharpening": 0.3},
}


def _letters(cases: int, seed: int) -> tuple[Tensor, Tensor]:
    """The mean shape ``[1, 2, *SIZE]`` and its cases ``[cases, 2, *SIZE]``, one-hot."""
    random = np.random.default_rng(seed)
    mean = functional.one_hot(torch.from_numpy(draw_shape("letter", SIZE))).movedim(-1, 0)[None].float()
    # Translation in voxels, rotation in radians, log-scale; and velocities of up to 1.5 voxels of half the resolution.
    parameters = random.normal(size=(cases, 5)) * [2.0, 2.0, 0.08, 0.06, 0.06]
    velocity = gaussian_filter(random.standard_normal((cases, 2, *HALF)), (0, 0, 4, 4))
    velocity *= 1.5 / np.abs(velocity).max(axis=(1, 2, 3), keepdims=True)
    parameters[0] = 4.0, -3.0, 0.15, 0.15, -0.1
    for values in (parameters, velocity):
        values[1:] -= values.sum(axis=0) / (cases - 1)
    affine = compose_affine(torch.from_numpy(parameters).float())
    transform = Transform(torch.from_numpy(velocity).float(), affine, SIZE, (1.0, 1.0))
    warped = transform.to_fixed(mean.expand(cases, -1, -1, -1))
    return mean, functional.one_hot(warped.argmax(dim=1)).movedim(-1, 1).float()


def _centre(inside: Tensor) -> Tensor:
    axes = torch.meshgrid(*[torch.arange(float(n)) for n in SIZE], indexing="ij")
    return torch.stack([(axis * inside).sum() / inside.sum() for axis in axes])


def _row(name: str, atlas: Tensor, mean: Tensor, seconds: float) -> str:
    """Distance of the centres, difference of the areas, Dice with the mean shape, width of the edge."""
    soft, true = atlas[0, 1], mean[0, 1]
    off = float((_centre(soft) - _centre(true)).norm())
    area = float(soft.sum() / true.sum()) - 1
    dice = float(compute_dice((soft > 0.5)[None, None].float(), true[None, None]))
    # An edge that rises linearly over w voxels has the integral of 4 p (1 - p) two thirds of w.
    edge = 1.5 * float((4 * soft * (1 - soft)).sum()) / perimeter((soft > 0.5).numpy())
    return f"{name:28}{off:14.2f}{area:12.1%}{dice:12.3f}{edge:14.2f}{seconds:10.1f}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=4, help="times that the atlas is rebuilt")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    mean, cases = _letters(arguments.cases, arguments.seed)
    inferer = RefinementInferer(iterations=80, learning_rate=0.1, regularisation=0.05)
    columns = ("centre [voxel]", "area", "Dice", "edge [voxel]", "s")
    print(f"{'rule':28}{columns[0]:>14}{columns[1]:>12}{columns[2]:>12}{columns[3]:>14}{columns[4]:>10}")
    print(_row("the first case", cases[:1], mean, 0.0))
    for name, rule in RULES.items():
        network = AtlasISTN(nn.Conv2d(1, 2, 1), FixedStart(torch.zeros(1, 2, *HALF), 5), SIZE, 2)
        network.atlas_labels.copy_(cases[:1])
        loader = [{"image": cases[:, 1:], "label": cases}]
        builder = AtlasBuilder(network, loader, **rule)  # type: ignore[arg-type]
        begin = time.perf_counter()
        for _ in range(arguments.rounds):
            builder.rebuild(inferer)
        print(_row(name, network.atlas_labels, mean, time.perf_counter() - begin), flush=True)


if __name__ == "__main__":
    main()
