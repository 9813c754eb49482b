# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""What a search for the most similar patch makes of a warped atlas, beside refinement by a field (claim f, Fig. 2)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from label_fusion import warp_cases
from matplotlib.figure import Figure
from monai.bundle import ConfigParser
from torch import Tensor

from atlas_istn.fusion.patches import PatchSimilarity, per_axis_radius, standardise
from atlas_istn.inferers.registered import Registered
from atlas_istn.io.cases import find_cases
from atlas_istn.io.files import write_whole
from atlas_istn.registration.similarity import correlation
from atlas_istn.spatial import jacobian_determinant

__all__ = ["compare_searches"]

Run = tuple[list[str], dict[str, Any]]
RADIUS, SEARCH = 2, 3
"""Of patches and of their search, in voxels; the paper's search radius."""


def compare_searches(runs: Mapping[str, Run], picture: Path) -> dict[str, dict[str, float]]:
    """Measure, and draw a plane of the first case's first atlas.

    Args:
        runs: files and settings of a segmentation with atlases that are ``registered``, and one with ``refined`` ones.
        picture: PNG file.

    Returns:
        For ``registered``, ``patch search`` and ``refined``: correlation with the target, total variation relative to
        that of ``registered``, and how many voxels fold per thousand; means over cases and atlases.
    """
    figures: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    warps = [_warps(*runs[name]) for name in ("registered", "refined")]
    for number, (registered, refined) in enumerate(zip(*warps, strict=True)):
        target, images = standardise(registered.atlases)
        found = {
            "registered": (images, registered.folded),
            "patch search": search_patches(target, images),
            "refined": (standardise(refined.atlases)[1], refined.folded),
        }
        before = _variation(images)
        for name, (moved, folded) in found.items():
            figures[name]["correlation"] += (1.0 - correlation(moved, target[None])).tolist()
            figures[name]["variation"] += (_variation(moved) / before).tolist()
            figures[name]["folds"] += (1000.0 * folded).tolist()
        if not number:
            _draw(target, {name: moved for name, (moved, _) in found.items()}, picture)
    return {name: {key: float(np.mean(all_of)) for key, all_of in rows.items()} for name, rows in figures.items()}


def search_patches(target: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """Take each voxel from the middle of the most similar patch.

    Args:
        target: ``[C, *shape]``.
        images: ``[N, C, *shape]``.

    Returns:
        Images like these, and the share of voxels at which the steps fold, ``[N]``.
    """
    shape = target.shape[1:]
    radius, search = (per_axis_radius(value, len(shape)) for value in (RADIUS, SEARCH))
    margin = [r + s for r, s in zip(reversed(radius), reversed(search), strict=True) for _ in range(2)]
    padded = [torch.nn.functional.pad(image, margin, mode="replicate") for image in (target[None], images)]
    steps = PatchSimilarity(padded[0][0], padded[1], radius, search).best().movedim(0, 1)  # [N, dim, *shape]
    places = torch.stack(torch.meshgrid(*[torch.arange(n) for n in shape], indexing="ij"))
    reached = [(places[axis] + steps[:, axis]).clamp(0, n - 1) for axis, n in enumerate(shape)]
    moved = torch.stack([image[(slice(None), *(part[k] for part in reached))] for k, image in enumerate(images)])
    return moved, (jacobian_determinant(steps.float()) <= 0).float().flatten(1).mean(dim=1)


def _warps(files: list[str], settings: Mapping[str, Any]) -> list[Registered]:
    """The atlases of each case, as a run registers them."""
    parser = ConfigParser()
    parser.read_config(files)
    read = {key: yaml.safe_load(str(value)) for key, value in settings.items()}  # as the command line would
    parser.update({**read, "device": "cpu", "atlas_cache": ""})
    cases = find_cases(read["dataset_dir"], read["test_list"], with_labels=True)
    return [registered for registered, _, _ in warp_cases(parser, cases)]


def _variation(images: Tensor) -> Tensor:
    """Total variation of each image ``[N, C, *shape]``: sum of the absolute differences of neighbours, ``[N]``."""
    return torch.stack([images.diff(dim=axis).abs().flatten(1).sum(dim=1) for axis in range(2, images.ndim)]).sum(0)


def _draw(target: Tensor, found: Mapping[str, Tensor], path: Path) -> None:
    panels = {"target": target} | {name: images[0] for name, images in found.items()}
    figure = Figure(figsize=(2.4 * len(panels), 3.2), layout="constrained")
    low, high = np.percentile(target.numpy(), (1, 99))
    for axes, (name, image) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        axes.imshow(image[0, :, :, image.shape[-1] // 2].T, cmap="gray", vmin=low, vmax=high, origin="lower")
        axes.set_title(name, fontsize=9)
        axes.set_axis_off()
    write_whole(path, lambda part: figure.savefig(part, dpi=150, format="png"))
