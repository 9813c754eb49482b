# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Joint label fusion: weights by which the expected error of all atlases together is least."""

from __future__ import annotations

import itertools
import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..errors import InputError
from .atlases import WarpedAtlases
from .base import LabelFusion, Votes
from .patches import BLOCK, Block, PatchSimilarity, blocks, per_axis_radius, standardise, take_box

__all__ = ["JointLabelFusion", "VoteNetPlus", "joint_weights"]

_FLAT = 1e-2  # deviation within a patch, in units of the target's, below which it is noise that is not blown up


def joint_weights(errors: Tensor, alpha: float) -> Tensor:
    """Compute the weights ``w = (M + αI)⁻¹ 1 / 1ᵀ(M + αI)⁻¹ 1`` (Wang et al. 2013, eq. 11), none below zero.

    They minimise ``wᵀ(M + αI)w`` among those that sum to 1; negative ones are set to 0 and the others scaled up.

    Args:
        errors: M, expected products of the errors of two atlases, ``[..., N, N]``, positive semidefinite.
        alpha: α, above 0.

    Returns:
        ``[..., N]``.
    """
    ridge = alpha * torch.eye(errors.shape[-1], dtype=errors.dtype, device=errors.device)
    ones = errors.new_ones(*errors.shape[:-1], 1)
    weights = torch.cholesky_solve(ones, torch.linalg.cholesky(errors + ridge))[..., 0].clamp_min(0.0)
    return weights / weights.sum(dim=-1, keepdim=True)


class _PatchVote(LabelFusion):
    """A fusion in which a voxel's weights vote for its whole patch; a posterior is the mean over covering patches.

    Args:
        patch_radius: in voxels; one for all axes, or one for each.
        alpha: α of `joint_weights`.
        block: voxels that are worked on at a time. The working memory is about 16 bytes for each of them, each voxel of
            a patch and each atlas.

    Raises:
        InputError: α that is not positive.
    """

    def __init__(self, patch_radius: int | Sequence[int] = 2, alpha: float = 0.1, block: int = BLOCK) -> None:
        if not alpha > 0:
            raise InputError(f"alpha of a joint label fusion: expected more than 0, found {alpha}.")
        self.patch_radius = patch_radius
        self.alpha = alpha
        self.block = block

    def vote(self, atlases: WarpedAtlases, voxels: Tensor, values: Tensor) -> Votes:
        """Return the mean of the votes that reach each voxel, and the weights of its own patch."""
        shape, count = atlases.shape, len(values)
        radius = per_axis_radius(self.patch_radius, len(shape))
        prepared = self.prepare(atlases)
        device = atlases.labels.device
        # Where each voxel stands in what is returned; votes for others, and beyond the border, go to a row too many.
        rows = torch.full((math.prod(shape),), len(voxels), device=device)
        rows[voxels] = torch.arange(len(voxels), device=device)
        rows = pad(rows.reshape(shape), [r for r in reversed(radius) for _ in range(2)], value=len(voxels))
        posterior = torch.zeros((len(voxels) + 1) * count, device=device)
        weights = torch.empty(len(voxels), len(atlases), device=device)
        for block in blocks(voxels, shape, self.block):
            errors, places, margin = self.errors(prepared, block, radius)
            weights[block.rows] = joint_weights(errors, self.alpha)
            classes = torch.bucketize(take_box(atlases.labels, block.low, block.high, margin), values).flatten()[places]
            reached = [slice(low, high + 2 * r) for low, high, r in zip(block.low, block.high, radius, strict=True)]
            there = rows[tuple(reached)].flatten()[patch_places(block, radius, radius)]
            classes += there[:, None] * count
            posterior.scatter_add_(0, classes.flatten(), weights[block.rows][..., None].expand(classes.shape).flatten())
        posterior = posterior.reshape(-1, count)[:-1]
        return Votes(posterior / posterior.sum(dim=1, keepdim=True), weights)

    @abstractmethod
    def prepare(self, atlases: WarpedAtlases) -> tuple[Tensor, ...]:
        """Return what `errors` needs, made once."""

    @abstractmethod
    def errors(
        self, prepared: tuple[Tensor, ...], block: Block, radius: tuple[int, ...]
    ) -> tuple[Tensor, Tensor, tuple[int, ...]]:
        """Return the errors of the atlases at the voxels of a block, and where the patches are that vote.

        Returns:
            M ``[m, N, N]``; flat places of the patches ``[m, N, P]`` in ``[N, *box with margin]``; that margin.
        """


class JointLabelFusion(_PatchVote):
    """Joint label fusion (Wang et al. 2013), as ANTs and PICSL do it, with search for the best patch of each atlas.

    ``M(i,j) = [Σ_y |A_i(y + δ_i) − T(y)| · |A_j(y + δ_j) − T(y)| / (|N| − 1)]^β`` of patches N of zero mean and unit
    deviation; δ_i is the shift to the most similar patch of atlas i. Channels add up.

    Args:
        patch_radius: in voxels; one for all axes, or one for each.
        search_radius: largest shift along each axis, likewise; 0 where the registration is good.
        alpha: α, above 0: the larger, the more alike are the weights.
        beta: β: the larger, the more counts the best atlas.
        squares: the most similar patch by squared differences in place of correlation.
        block: see `_PatchVote`.

    Raises:
        InputError: α that is not positive.
    """

    def __init__(
        self,
        patch_radius: int | Sequence[int] = 2,
        search_radius: int | Sequence[int] = 1,
        alpha: float = 0.1,
        beta: float = 2.0,
        squares: bool = False,
        block: int = BLOCK,
    ) -> None:
        super().__init__(patch_radius, alpha, block)
        self.search_radius = search_radius
        self.beta = beta
        self.squares = squares

    def prepare(self, atlases: WarpedAtlases) -> tuple[Tensor, ...]:
        """Return target and images in the target's contrast."""
        return standardise(atlases)

    def errors(
        self, prepared: tuple[Tensor, ...], block: Block, radius: tuple[int, ...]
    ) -> tuple[Tensor, Tensor, tuple[int, ...]]:
        """Compare the most similar patches with those of the target."""
        search = per_axis_radius(self.search_radius, len(radius))
        margin = tuple(r + s for r, s in zip(radius, search, strict=True))
        target, images = (take_box(image, block.low, block.high, margin) for image in prepared)
        places = patch_places(block, radius, margin)
        size = math.prod(target.shape[1:])
        still = [_normalised(channel.flatten()[places]) for channel in target]
        starts = torch.arange(len(images), device=places.device)[:, None] * size
        if any(search):
            steps = PatchSimilarity(target, images, radius, search, self.squares).best().flatten(2)
            starts = starts + _flat_steps(steps[:, :, block.places()], target.shape[1:])
        places = places[:, None] + starts.expand(-1, len(places)).T[..., None]
        errors = torch.zeros(1, device=places.device)
        for channel, patches in enumerate(still):
            difference = _normalised(images[:, channel].flatten()[places]).sub_(patches[:, None]).abs_()
            errors = errors + difference @ difference.mT
        return (errors / (places.shape[-1] - 1)) ** self.beta, places, margin


class VoteNetPlus(_PatchVote):
    """Joint label fusion by probabilities that each atlas is right (VoteNet+, Ding et al. 2020).

    With e = 1 − p, ``M(i,i) = e_i`` and ``M(i,j) = e_i e_j``, the probability that both are wrong if their errors are
    independent, averaged over the patch: our reading of what the paper leaves open.

    Args:
        patch_radius: in voxels; one for all axes, or one for each.
        alpha: α, above 0.
        block: see `_PatchVote`.
    """

    def prepare(self, atlases: WarpedAtlases) -> tuple[Tensor, ...]:
        """Return the probabilities of being wrong."""
        if atlases.probabilities is None:
            raise InputError("VoteNet+ needs probabilities of the atlases; give them, or choose another fusion.")
        return (1.0 - atlases.probabilities.float().clamp(0.0, 1.0),)

    def errors(
        self, prepared: tuple[Tensor, ...], block: Block, radius: tuple[int, ...]
    ) -> tuple[Tensor, Tensor, tuple[int, ...]]:
        """Return the mean products of the probabilities in the patches."""
        wrong = take_box(prepared[0], block.low, block.high, radius)
        starts = torch.arange(len(wrong), device=wrong.device) * math.prod(wrong.shape[1:])
        places = patch_places(block, radius, radius)[:, None] + starts[:, None]
        patches = wrong.flatten()[places]
        errors = patches @ patches.mT / places.shape[-1]
        errors.diagonal(dim1=1, dim2=2).copy_(patches.mean(dim=2))
        return errors, places, radius


def patch_places(block: Block, radius: Sequence[int], margin: Sequence[int]) -> Tensor:
    """Return flat places ``[m, P]`` of the patches about the voxels of a block, in its box with a margin."""
    sizes = [high - low + 2 * more for low, high, more in zip(block.low, block.high, margin, strict=True)]
    steps = torch.tensor(list(itertools.product(*(range(-r, r + 1) for r in radius))), device=block.rows.device)
    return block.places(margin)[:, None] + _flat_steps(steps.T, sizes)


def _flat_steps(steps: Tensor, shape: Sequence[int]) -> Tensor:
    """Differences of flat indices ``[...]`` of steps ``[dim, ...]`` in an image."""
    flat = torch.zeros_like(steps[0])
    for axis, n in enumerate(shape):
        flat = flat * n + steps[axis]
    return flat


def _normalised(patches: Tensor) -> Tensor:
    """Patches ``[..., P]`` of zero mean and unit deviation, in place."""
    patches -= patches.mean(dim=-1, keepdim=True)
    squares = torch.linalg.vector_norm(patches, dim=-1, keepdim=True)
    patches *= math.sqrt(patches.shape[-1] - 1) / squares.clamp_min(_FLAT * math.sqrt(patches.shape[-1]))
    return patches
