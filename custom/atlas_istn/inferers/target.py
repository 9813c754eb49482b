# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""What a refinement registers the atlas to: how far the ITN's output is sharpened, and how far it is believed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from monai.metrics import DiceMetric
from torch import Tensor

from ..errors import InputError
from ..spatial import one_hot_labels

__all__ = ["TargetPolicy", "confidence", "disagreement"]


@dataclass(frozen=True)
class TargetPolicy:
    """Makes the target of a refinement from the ITN's output.

    Attributes:
        confidence: mean probability that the target's labels shall have in the foreground. Where the ITN wavers, as
            under a foreign contrast, the label it decides for has hardly more than the others, and errors of
            probabilities do not tell the atlas of the decision: as much of the labels, one-hot, is mixed into the
            probabilities as it takes. 0 leaves them as they are, as in the paper.
        trust: disagreements, each 1 − Dice, of the ITN's labels and the stiff atlas. Up to the first the ITN is
            believed; from the second on it is not, since no shape near the atlas's looks like that, and a fallback
            takes its place as the target. In between, the target is a mixture. None: the ITN is always believed.

    Raises:
        InputError: a confidence that is no probability, or limits of the trust that do not rise.
    """

    confidence: float = 0.0
    trust: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if self.trust is not None and not (len(self.trust) == 2 and 0 <= self.trust[0] < self.trust[1]):
            raise InputError(f"refine_trust must be two rising numbers from 0, or null, got {self.trust}.")
        if not 0.0 <= self.confidence <= 1.0:
            raise InputError(f"refine_confidence must lie between 0 and 1, got {self.confidence}.")

    def sharpened(self, prediction: Tensor) -> Tensor:
        """Mix as much of its labels into a prediction ``[B, Nc, *shape]`` as gives these the confidence wanted."""
        labels = one_hot_labels(prediction)
        found = confidence(prediction)
        share = ((self.confidence - found) / (1.0 - found).clamp_min(1e-6)).clamp(0.0, 1.0)
        return torch.lerp(prediction, labels, _per_voxel(share, prediction))

    def believed(self, found: Tensor) -> Tensor:
        """How far to believe each target, ``[B]``, by the `disagreement` ``[B]`` found with the stiff atlas."""
        if self.trust is None:
            return torch.ones_like(found)
        believed, doubted = self.trust
        return ((doubted - found) / (doubted - believed)).clamp(0.0, 1.0)

    @staticmethod
    def mixed(target: Tensor, fallback: Tensor, trust: Tensor) -> Tensor:
        """The target as far as it is believed ``[B]``, the fallback for the rest."""
        share = _per_voxel(trust, target)
        return share * target + (1.0 - share) * fallback


def confidence(prediction: Tensor) -> Tensor:
    """Return the mean probability of the labels in the foreground of a prediction ``[B, Nc, *shape]``, ``[B]``."""
    foreground = one_hot_labels(prediction)[:, 1:].flatten(1)
    probabilities = prediction[:, 1:].clamp(0.0, 1.0).flatten(1)
    return (foreground * probabilities).sum(dim=1) / foreground.sum(dim=1).clamp_min(1.0)


def disagreement(first: Tensor, second: Tensor) -> Tensor:
    """1 − Dice of the labels of two soft labelmaps ``[B, Nc, *shape]``, mean over the foreground labels, ``[B]``."""
    dice = DiceMetric(include_background=False, ignore_empty=False)(one_hot_labels(first), one_hot_labels(second))
    return 1.0 - torch.as_tensor(dice).mean(dim=1)


def _per_voxel(values: Tensor, like: Tensor) -> Tensor:
    """Values per case ``[B]`` that broadcast over ``[B, C, *shape]``."""
    return values.reshape(-1, *[1] * (like.ndim - 1))
