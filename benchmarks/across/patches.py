# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Does the similarity that a network estimates go with the Dice of labels (Fig. 5)? NCC and mutual information too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from torch import Tensor
from tqdm import tqdm

from atlas_istn.fusion.atlases import WarpedAtlases
from atlas_istn.fusion.similarity import LearnedVote, take_patches
from atlas_istn.io.outputs import write_csv
from atlas_istn.training.episodes import label_borders, label_likeness

from .lists import LABELS

__all__ = ["measure_patches"]

BINS = 10  # of the Dice, 0 to 1
SHIFTS = 8  # places by which an atlas is shifted, beside its own, so that there are patches of every Dice
HISTOGRAM = 16  # bins along each axis, of the mutual information


def measure_patches(configs: Sequence[str], settings: Mapping[str, Any], path: Path, seed: int = 0) -> None:
    """Compare patches along the borders of each structure in the targets with those of the registered atlases.

    Patches are drawn evenly over the Dice of their labels of that structure. Writes a row each: target, atlas,
    structure, Dice, estimated similarity (minus the distance of the features), NCC and mutual information.

    Args:
        configs: of a `run evaluate` that fuses by a trained similarity.
        settings: of that run.
        path: of the table.
        seed: of the draw.
    """
    config = ConfigParser()
    config.read_config(list(configs))
    finding = {"_target_": "atlas_istn.io.cases.find_cases", "with_labels": True, "list_name": "@test_list"}
    config.update({**settings, "handlers": [], "targets": {**finding, "dataset_dir": "@dataset_dir"}})
    config.get_parsed_content("loader").load()
    atlases, inferer, prepare, targets = (
        config.get_parsed_content(name) for name in ("network", "inferer", "atlas_preprocessing", "targets")
    )
    generator = torch.Generator().manual_seed(seed)
    rows: list[dict[str, Any]] = []
    for case in tqdm(targets, desc="patches"):
        data = prepare({key: case[key] for key in ("image", "label")})
        image, truth = (torch.as_tensor(data[key]).as_subclass(Tensor) for key in ("image", "label"))
        with torch.no_grad():
            warped, chosen, _ = inferer.warp(image[None].float(), atlases)
            for place, index in enumerate(chosen.tolist()):
                for found in _compare(warped, place, truth[0].long(), inferer.fusion, generator):
                    rows.append({"target": case["case"], "atlas": atlases.names[index], **found})
    write_csv(rows, path)


def _compare(
    warped: WarpedAtlases, place: int, truth: Tensor, fusion: LearnedVote, generator: torch.Generator
) -> list[dict[str, Any]]:
    """Rows of one target and one atlas."""
    if warped.images is None or warped.target is None:
        raise SystemExit("no images of the warped atlases.")
    network = fusion.network.eval()
    radius = network.radius
    target, atlas = (network.standardise(image[None])[0] for image in (warped.target, warped.images[place]))
    labels, axes = warped.labels[place].long(), (0, 1, 2)
    rows: list[dict[str, Any]] = []
    for _ in range(SHIFTS + 1):
        step = [int(torch.randint(-r, r + 1, (1,), generator=generator)) for r in radius]
        if not rows:  # the first time as it lies
            step = [0] * len(radius)
        moved = labels.roll(step, axes), atlas.roll(step, (1, 2, 3))
        for value, name in LABELS.items():
            likeness = label_likeness(truth, moved[0], [value], radius).flatten()
            border = label_borders(truth == value, radius).flatten().nonzero()[:, 0]
            border = border[torch.randperm(len(border), generator=generator)]
            levels = (likeness[border] * BINS).long().clamp_max(BINS - 1)
            voxels = torch.cat([border[levels == level][:1] for level in range(BINS)])
            patches = [take_patches(picture, voxels, radius) for picture in (target, moved[1])]
            estimated = network(patches[0], patches[1][:, None])[:, 0]
            for row, voxel in enumerate(voxels.tolist()):
                pair = [patch[row].flatten().numpy() for patch in patches]
                rows.append(
                    {
                        "structure": name,
                        "dice": float(likeness[voxel]),
                        "estimated": float(estimated[row]),
                        "ncc": _correlation(*pair),
                        "mutual_information": _mutual_information(*pair),
                    }
                )
    return rows


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Correlation of two patches; 0 where one is flat."""
    first, second = first - first.mean(), second - second.mean()
    scale = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(first @ second) / scale if scale > 0 else 0.0


def _mutual_information(first: np.ndarray, second: np.ndarray) -> float:
    """Mutual information of two patches by their joint histogram, in nats."""
    joint = np.histogram2d(first, second, bins=HISTOGRAM)[0] / len(first)
    alone = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    known = joint > 0
    return float((joint[known] * np.log(joint[known] / alone[known])).sum())
