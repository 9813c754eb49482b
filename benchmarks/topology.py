# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Stress test of the output guarantee: which step is needed how often, and whether a wrong topology slips through.

Atlases with thin parts (letter B, ring, shell around a core, two chambers with a septum) are registered to a randomly
deformed copy of themselves, from a start that is another strong random field, and delivered on the grid of the model
and on coarser ones.

    python benchmarks/topology.py --cases 20
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections import Counter
from typing import NamedTuple

import numpy as np
import torch
from monai.data import MetaTensor
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn
from torch.nn import functional

from atlas_istn.inferers.refine import RefinementInferer
from atlas_istn.inferers.topology_guard import TopologyGuard, atlas_signature
from atlas_istn.networks import AtlasISTN
from atlas_istn.topology import Signature
from atlas_istn.workflow.topology_transforms import NOTE, PreserveTopologyd, RecordTopologyd

__all__ = ["SHAPES", "FixedStart", "Outcome", "draw_shape", "main", "stress"]

SHAPES = ("letter", "ring", "shell", "chambers")


class Outcome(NamedTuple):
    """One case: the step that it needed, what it claims, and what is found by looking at it."""

    step: str
    kept: bool
    right: bool
    folded: bool
    seconds: float


class FixedStart(nn.Module):
    """Stands for an STN: the same velocity whatever it is shown."""

    def __init__(self, velocity: Tensor, parameters: int) -> None:
        super().__init__()
        self.velocity, self.parameters_ = velocity, torch.zeros(1, parameters)

    def forward(self, pair: Tensor) -> tuple[Tensor, Tensor]:
        """Velocity ``[B, dim, *half]`` and affine parameters ``[B, P]``, these zero, for a batch."""
        batch = len(pair)
        return self.velocity.expand(batch, *self.velocity.shape[1:]), self.parameters_.expand(batch, -1)


def draw_shape(shape: str, size: tuple[int, ...]) -> np.ndarray:
    """Class indices of an atlas: letter B and ring in 3D are plates, the shell a hollow ball with a core inside.

    The chambers are two, with a thin septum between them, inside a wall: like the ventricles, they must not touch.
    """
    axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in size], indexing="ij")
    x, y = axes[:2]
    slab = np.abs(axes[2]) < 0.25 if len(size) == 3 else np.ones(size, dtype=bool)
    if shape == "ring":
        return ((np.abs(np.hypot(x, y) - 0.55) < 0.11) & slab).astype(np.int64)
    if shape == "shell":
        radius = np.linalg.norm(axes, axis=0)
        return np.where(radius < 0.42, 1, np.where(radius < 0.62, 2, 0))
    if shape == "chambers":
        wall, inside = (np.linalg.norm([x / 0.9, *axes[1:]], axis=0) < radius for radius in (0.75, 0.55))
        return np.where(inside & (np.abs(x) > 0.08), np.where(x < 0, 2, 3), np.where(wall, 1, 0))
    letter = (np.abs(x) < 0.5) & (np.abs(y) < 0.75) & slab
    for centre in (-0.36, 0.36):
        letter &= ~((np.abs(x) < 0.3) & (np.abs(y - centre) < 0.2))
    return letter.astype(np.int64)


def _field(shape: tuple[int, ...], amplitude: float, random: np.random.Generator) -> Tensor:
    noise = gaussian_filter(random.standard_normal((1, len(shape), *shape)), (0, 0, *[2.0] * len(shape)))
    return torch.from_numpy(noise * amplitude / np.abs(noise).max()).float()


def stress(shape: str, dim: int, amplitude: float, coarseness: float, seed: int) -> Outcome:
    """Refine one case, deliver it on a grid ``coarseness`` times as coarse as the model's, and look at the result.

    Args:
        shape: one of `SHAPES`.
        dim: 2 or 3.
        amplitude: longest component of the random velocities, in voxels of their grid.
        coarseness: voxel size of the delivered grid, in voxels of the model's.
        seed: of the random fields.
    """
    random = np.random.default_rng(seed)
    size = (32, 32) if dim == 2 else (20, 20, 20)
    half = tuple(n // 2 for n in size)
    labelmap = torch.from_numpy(draw_shape(shape, size))
    channels = functional.one_hot(labelmap).movedim(-1, 0).numpy().astype(np.float32)
    start = FixedStart(_field(half, amplitude, random), 5 if dim == 2 else 9)
    network = AtlasISTN(nn.Identity(), start, size, len(channels), in_channels=len(channels))
    network.atlas_labels.copy_(torch.from_numpy(gaussian_filter(channels, (0, *[0.5] * dim)))[None])
    truth = network.transform(_field(half, amplitude, random), start.parameters_)
    image = truth.to_fixed(network.atlas_labels)
    inferer = TopologyGuard(RefinementInferer(iterations=15, regularisation=0.01))

    begin = time.perf_counter()
    result = inferer.infer(image, network)
    data = RecordTopologyd("pred")({"image": MetaTensor(image[0]), "pred": result.segmentation[0]})
    native = [max(round(n / coarseness), 4) for n in size]
    mode = "bilinear" if dim == 2 else "trilinear"
    soft = functional.interpolate(data["pred"][None], size=native, mode=mode, align_corners=True)[0]
    data["pred"] = MetaTensor(soft)
    delivered = PreserveTopologyd("pred")(data)["pred"]
    seconds = time.perf_counter() - begin

    wanted: Signature = atlas_signature(network)
    note = result.topology[0].then(delivered.meta[NOTE])
    right = not wanted.violations(delivered[0].numpy().astype(int))
    folded = result.transform is not None and bool((result.transform.jacobian_determinant() <= 0).any())
    return Outcome(note.step, note.kept, right, folded, seconds)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10, help="cases of each row")
    parser.add_argument("--amplitudes", type=float, nargs="+", default=[2.0, 5.0])
    parser.add_argument("--coarseness", type=float, nargs="+", default=[1.0, 1.5, 2.5])
    parser.add_argument("--dims", type=int, nargs="+", default=[2, 3])
    arguments = parser.parse_args()
    columns = ("none", "lambda", "supersample", "correction", "unreachable", "folded", "slipped")
    print(f"{'shape':8}{'dim':>4}{'field':>7}{'voxel':>7}" + "".join(f"{c:>13}" for c in columns) + f"{'s/case':>9}")
    settings = itertools.product(SHAPES, arguments.dims, arguments.amplitudes, arguments.coarseness)
    for shape, dim, amplitude, coarseness in settings:
        outcomes = [stress(shape, dim, amplitude, coarseness, seed) for seed in range(arguments.cases)]
        counts = Counter(outcome.step if outcome.kept else "unreachable" for outcome in outcomes)
        counts["folded"] = sum(outcome.folded for outcome in outcomes)
        counts["slipped"] = sum(outcome.kept != outcome.right for outcome in outcomes)
        seconds = sum(outcome.seconds for outcome in outcomes) / len(outcomes)
        cells = "".join(f"{counts[c]:13}" for c in columns)
        print(f"{shape:8}{dim:4}{amplitude:7.1f}{coarseness:7.1f}{cells}{seconds:9.2f}", flush=True)


if __name__ == "__main__":
    main()
