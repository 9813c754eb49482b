# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Training of a network that knows where warped atlases are right, and the calibration of its probabilities."""

from __future__ import annotations

import logging

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from ..networks import VoteNet
from .handlers import BestModel
from .losses import check_finite
from .warped_pairs import WarpedPair, WarpedPairs

__all__ = ["VoteLoss", "calibrate_votes", "mark_votes", "platt_scaling"]

logger = logging.getLogger(__name__)

_AROUND = 2  # voxels about the labels of both in which votes count; beyond, every atlas is right
_OUTSIDE = -1.0


def mark_votes(pair: WarpedPair) -> dict[str, Tensor]:
    """Mark where the label of an atlas is right.

    Returns:
        ``{"image"}`` target and atlas ``[2 C, *shape]``; ``{"label"}`` ``[1, *shape]``: 1 right, 0 wrong, −1 where it
        does not count, two voxels and more from the labels of both.
    """
    union = ((pair.target_labels > 0) | (pair.atlas_labels > 0)).float()[None, None]
    pool = F.max_pool2d if union.ndim == 4 else F.max_pool3d
    near = pool(union, 2 * _AROUND + 1, stride=1, padding=_AROUND)[0] > 0
    right = (pair.target_labels == pair.atlas_labels).float()[None]
    label = torch.where(near, right, _OUTSIDE)
    return {"image": torch.cat([pair.target, pair.atlas]).float(), "label": label}


class VoteLoss(nn.Module):
    """Binary cross-entropy where votes count, see `mark_votes`.

    Attributes:
        epoch: current epoch, set by the trainer's schedule.
        terms: of the last call, for logging.
        schedules: what changes from epoch to epoch: nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.epoch = 0
        self.terms: dict[str, Tensor] = {}
        self.schedules: dict[str, float] = {}

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """Loss of logits and labels ``[B, 1, *shape]``."""
        counts = label >= 0
        loss = F.binary_cross_entropy_with_logits(logits.float()[counts], label.float()[counts])
        self.terms = {"votes": loss.detach()}
        check_finite(self.terms, self.epoch)
        return loss


def calibrate_votes(network: VoteNet, best: BestModel, pairs: WarpedPairs, device: torch.device | str) -> None:
    """Calibrate the best network on validation pairs, and save it with that.

    Args:
        network: takes the best weights, and the calibration.
        best: has these weights, and saves.
        pairs: of the validation.
        device: of the network.
    """
    network.load_state_dict(best.weights)
    network.eval()
    logits, labels = [], []
    with torch.no_grad():
        for number in tqdm(range(len(pairs)), desc="calibration", leave=False):
            example = pairs[number]
            counts = example["label"] >= 0
            logits.append(network(example["image"][None].to(device))[0].cpu()[counts])
            labels.append(example["label"][counts])
    scale, offset = platt_scaling(torch.cat(logits), torch.cat(labels))
    network.scale.fill_(scale)
    network.offset.fill_(offset)
    best.weights |= {"scale": network.scale.cpu().clone(), "offset": network.offset.cpu().clone()}
    best.save()
    logger.info("calibrated on %d pairs: p = σ(%.3f z + %.3f)", len(pairs), scale, offset)


def platt_scaling(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """Find a and b of ``p = σ(a z + b)`` by maximum likelihood (Platt 1999), by Newton's method.

    Args:
        logits: z, ``[n]``.
        labels: 0 or 1, ``[n]``.

    Returns:
        a and b; 1 and 0 where labels of one kind alone leave them open.
    """
    z, y = logits.double(), labels.double()
    if not 0 < float(y.mean()) < 1:
        return 1.0, 0.0
    design = torch.stack([z, torch.ones_like(z)], dim=1)
    found = torch.tensor([1.0, 0.0], dtype=torch.float64)
    for _ in range(50):
        p = (design @ found).sigmoid()
        gradient = design.T @ (p - y)
        curvature = design.T @ (design * (p * (1 - p)).clamp_min(1e-9)[:, None])
        step = torch.linalg.solve(curvature + 1e-9 * torch.eye(2, dtype=torch.float64), gradient)
        found = found - step.clamp(-1.0, 1.0)
        if float(step.abs().max()) < 1e-8:
            break
    return float(found[0]), float(found[1])
