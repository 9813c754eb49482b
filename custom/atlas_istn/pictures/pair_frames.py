# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Pictures of a pair of images, of what an ITN makes of them, and of their registration."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from ..networks import PairISTN
from ..networks.pair import split_pair
from .atlas_evolution import GAP, HEIGHT
from .planes import Plane, middle_planes

__all__ = ["pair_picture"]

_LIMITS = (0.5, 99.5)  # percentiles of a map that are drawn black and white


@torch.no_grad()
def pair_picture(network: PairISTN, pair: Tensor) -> Image.Image:
    """Draw a pair in its middle plane: both images, both representations, and what is left between these.

    From left to right: M, F, M', F', |M' − F'|, |M'∘T − F'| by the 1-pass, the last two on one scale (ISTN, Fig. 3).

    Args:
        network: as far as it is trained.
        pair: ``[1, 2 C, *shape]``; the first channel of each is drawn.
    """
    training = network.training
    network.eval()
    parts = network.parts(pair)
    network.train(training)
    moving, fixed = parts["moving"], parts["fixed"]
    moved = network.transform(parts["state"], moving).to_fixed(moving)
    images = [*split_pair(pair), moving, fixed]
    plane = middle_planes(pair.shape[2:], network.spacing)[0]
    tiles = [_tile(plane, volume) for volume in images]
    before, after = (volume - fixed for volume in (moving, moved))
    top = float(before[0, 0].abs().max())
    tiles += [_tile(plane, volume.abs(), (0.0, max(top, 1e-6))) for volume in (before, after)]
    frame = Image.new("L", (sum(tile.width + GAP for tile in tiles) - GAP, HEIGHT))
    left = 0
    for tile in tiles:
        frame.paste(tile, (left, 0))
        left += tile.width + GAP
    return frame.convert("RGB")


def _tile(plane: Plane, volume: Tensor, limits: tuple[float, float] | None = None) -> Image.Image:
    grey: npt.NDArray[np.float32] = torch.as_tensor(volume)[0, 0].float().cpu().numpy()
    low, high = limits or tuple(np.percentile(grey, _LIMITS))
    pixels = np.asarray(plane.cut(np.clip((grey - low) / max(high - low, 1e-6), 0.0, 1.0)[None]))[0]
    width, height = plane.size
    picture = Image.fromarray((pixels * 255).round().astype(np.uint8))
    return picture.resize((max(1, round(HEIGHT * width / height)), HEIGHT), Image.Resampling.BILINEAR)
