# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""What a result tells about its own quality, measured on the model's grid."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..inferers.result import Result
from ..inferers.target import disagreement
from ..registration.regularisers import mean_squared_gradient

__all__ = ["Measures", "label_entropy", "measure"]


def label_entropy(probabilities: Tensor) -> Tensor:
    """Entropy of the label at every voxel, from 0 (certain) to 1 (all labels equally likely).

    Args:
        probabilities: soft labelmap ``[B, Nc, *shape]``; normalised here. A voxel without any label is certain.

    Returns:
        ``[B, 1, *shape]``, in units of log Nc.
    """
    positive = probabilities.clamp_min(0.0)
    share = positive / positive.sum(dim=1, keepdim=True).clamp_min(1e-6)
    return torch.special.entr(share).sum(dim=1, keepdim=True) / math.log(probabilities.shape[1])


@dataclass(frozen=True)
class Measures:
    """The measures of one case.

    Attributes:
        misfit: squared error of refined and ITN's labels over the volume of the foreground.
        disagreement: 1 − Dice of both, mean over labels.
        one_pass: the same of 1-pass and ITN.
        entropy: of the propagated labels, over the volume of their foreground.
        itn_entropy: of the ITN's labels, likewise.
        deformation: mean squared gradient of the velocity, mm per mm.
        affine: the entries of T, ``dim (dim + 1)`` of them.
        log_volumes: of the refined labels in voxels, without the background.
    """

    misfit: float
    disagreement: float
    one_pass: float
    entropy: float
    itn_entropy: float
    deformation: float
    affine: tuple[float, ...]
    log_volumes: tuple[float, ...]


def measure(result: Result) -> list[Measures]:
    """Measure each case of a batch; nothing where there was no refinement to judge."""
    if result.prediction is None or result.one_pass is None or result.transform is None:
        return []
    refined, predicted = result.segmentation, result.prediction.clamp(0.0, 1.0)
    volumes = refined[:, 1:].flatten(2).sum(dim=2).clamp_min(1.0)
    transform = result.transform
    columns = (
        (refined - predicted).square().flatten(1).sum(dim=1) / volumes.sum(dim=1),
        disagreement(predicted, refined),
        disagreement(predicted, result.one_pass),
        _entropy_per_volume(refined),
        _entropy_per_volume(predicted),
        mean_squared_gradient(transform.velocity, transform.spacing),
    )
    cases = zip(*(column.tolist() for column in columns), strict=True)
    vectors = zip(transform.affine.flatten(1).tolist(), volumes.log().tolist(), strict=True)
    return [Measures(*case, *map(tuple, vector)) for case, vector in zip(cases, vectors, strict=True)]


def _entropy_per_volume(soft: Tensor) -> Tensor:
    """Entropy of soft labels over the volume of their foreground, ``[B]``."""
    return label_entropy(soft).flatten(1).sum(dim=1) / soft[:, 1:].flatten(1).sum(dim=1).clamp_min(1.0)
