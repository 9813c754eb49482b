# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""STAPLE: labels and the reliability of each atlas, estimated together, without a look at the images."""

from __future__ import annotations

import torch
from torch import Tensor

from .atlases import WarpedAtlases
from .base import LabelFusion, Votes, tally

__all__ = ["Staple"]


class Staple(LabelFusion):
    """STAPLE of several labels (Warfield et al. 2004; Rohlfing et al. 2004), by expectation maximisation.

    Each atlas has a confusion matrix, the probability of each of its labels for each true one. Only the voxels that are
    fused count: with many on which all agree, every atlas would look reliable.

    Args:
        iterations: largest number of them.
        tolerance: largest change of an entry of the confusion matrices with which it ends.
    """

    def __init__(self, iterations: int = 100, tolerance: float = 1e-5) -> None:
        self.iterations = iterations
        self.tolerance = tolerance

    def vote(self, atlases: WarpedAtlases, voxels: Tensor, values: Tensor) -> Votes:
        """Return the posterior of the true label; an atlas weighs what its confusion matrix gives its label there."""
        labels = atlases.labels.flatten(1)[:, voxels]
        classes = torch.bucketize(labels, values)
        posterior = tally(labels, values).double()
        prior = posterior.mean(dim=0)
        confusion = _confusion(classes, posterior)
        for _ in range(self.iterations):
            posterior = _posterior(classes, confusion, prior)
            before, confusion = confusion, _confusion(classes, posterior)
            if (confusion - before).abs().max() < self.tolerance:
                break
        likelihood = torch.stack([table[seen] for table, seen in zip(confusion, classes, strict=True)])
        weights = (likelihood * posterior).sum(dim=2).T
        return Votes(posterior.float(), (weights / weights.sum(dim=1, keepdim=True)).float())


def _confusion(classes: Tensor, posterior: Tensor) -> Tensor:
    """Probability ``[N, seen, true]`` of each label that an atlas shows, given the true one."""
    count = posterior.shape[1]
    shown = torch.stack([posterior.new_zeros(count, count).index_add_(0, seen, posterior) for seen in classes])
    return shown / posterior.sum(dim=0).clamp_min(1e-12)


def _posterior(classes: Tensor, confusion: Tensor, prior: Tensor) -> Tensor:
    """Probability ``[M, L]`` of each true label, given what the atlases show."""
    evidence = torch.log(prior.clamp_min(1e-300)).expand(classes.shape[1], -1).clone()
    for table, seen in zip(confusion.clamp_min(1e-300).log(), classes, strict=True):
        evidence += table[seen]
    return evidence.softmax(dim=1)
