# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Training and refinement objectives (Atlas-ISTN, eq. 10-14 and 17-19)."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import torch
from monai.losses import DiceLoss
from monai.networks.layers import gaussian_1d
from torch import Tensor, nn

from ..networks import AtlasISTN
from ..spatial import Transform, mean_squared_gradient, warp

__all__ = ["AtlasISTNLoss", "RobustError", "dice_cross_entropy", "registration_terms", "squared_error"]


def squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Per-case squared error ``[B]``: summed over channels, averaged over voxels, so independent of the matrix size."""
    return (prediction - target).square().sum(dim=1).flatten(1).mean(dim=1)


def dice_cross_entropy(prediction: Tensor, target: Tensor) -> Tensor:
    """Per-case sum ``[B]`` of soft Dice loss (foreground) and cross-entropy of probabilities, as of a softmax."""
    overlap = DiceLoss(include_background=False, reduction="none")(prediction, target).flatten(1).mean(dim=1)
    # The small constant bounds the loss where a probability underflows.
    cross_entropy = -(target * (prediction + 1e-6).log()).sum(dim=1).flatten(1).mean(dim=1)
    return overlap + cross_entropy


class RobustError:
    """Squared error that levels off where a whole neighbourhood disagrees (Geman-McClure), per case ``[B]``.

    With e the squared error of a voxel, summed over channels and averaged over its surroundings, the mean of
    ``e / (1 + e / scale)``. Clutter in a prediction then attracts the atlas no more than a bounded amount, while near
    agreement it acts as `squared_error`. For the same reason it needs a start that overlaps: what the atlas does not
    yet reach looks like clutter.

    Args:
        scale: the error that counts half, and the bound; a voxel of the wrong class has an error of 2.
        sigma: standard deviation in voxels of the averaging, so that thin borders, always uncertain, are no outliers.
    """

    def __init__(self, scale: float = 0.2, sigma: float = 1.5) -> None:
        self.scale = scale
        self.sigma = sigma

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Error of labelmaps ``[B, Nc, *shape]``."""
        error = (prediction - target).square().sum(dim=1, keepdim=True)
        for axis in range(2, error.ndim):
            error = (error.movedim(axis, -1) @ _blur(error.shape[axis], self.sigma, error.device)).movedim(-1, axis)
        return (error / (1.0 + error / self.scale)).flatten(1).mean(dim=1)


@lru_cache(maxsize=16)
def _blur(size: int, sigma: float, device: torch.device) -> Tensor:
    """Matrix ``[size, size]`` of a Gaussian filter with zeros beyond the ends.

    On grids of the usual size a matrix product is several times faster on a CPU than a convolution along one axis.
    """
    kernel = gaussian_1d(torch.as_tensor(sigma), truncated=4.0)
    radius = len(kernel) // 2
    place = torch.arange(size)
    distance = (place[:, None] - place[None]).abs()
    matrix = kernel[radius + distance.clamp_max(radius)] * (distance <= radius)
    return matrix.to(device)


def registration_terms(
    transform: Transform,
    atlas_labels: Tensor,
    target: Tensor,
    atlas_to_subject: bool = True,
    subject_to_atlas: bool = True,
    similarity: Callable[[Tensor, Tensor], Tensor] = squared_error,
) -> dict[str, Tensor]:
    """Per-case terms of the registration objective; a direction that is not asked for is not integrated.

    Args:
        transform: maps between atlas and subject for a batch.
        atlas_labels: soft atlas labelmap ``[1, Nc, *shape]``.
        target: labelmap of the subjects ``[B, Nc, *shape]``: the truth in training, the ITN's prediction in refinement.
        atlas_to_subject: compute ``‖y − ya ∘ Φ⁻¹‖²`` (11).
        subject_to_atlas: compute ``‖y ∘ Φ − ya‖²`` (12).
        similarity: per-case error ``[B]`` of two labelmaps, in place of the squared error of (11) and (12).

    Returns:
        ``{"a2s", "s2a", "regularisation"}``, each ``[B]``, with the terms that were asked for. The regulariser (13) is
        the mean over the directions that are computed: φ and φ⁻¹ are equally smooth, and this costs no integration.
    """
    terms: dict[str, Tensor] = {}
    penalties: list[Tensor] = []
    if atlas_to_subject:
        inverse_deformation = transform.deformation(inverse=True)
        warped = warp(atlas_labels, transform.atlas_to_subject(inverse_deformation))
        terms["a2s"] = similarity(warped, target)
        penalties.append(mean_squared_gradient(inverse_deformation))
    if subject_to_atlas:
        deformation = transform.deformation()
        warped = warp(target, transform.subject_to_atlas(deformation))
        terms["s2a"] = similarity(warped, atlas_labels)
        penalties.append(mean_squared_gradient(deformation))
    terms["regularisation"] = torch.stack(penalties).mean(dim=0)
    return terms


class AtlasISTNLoss(nn.Module):
    """``L = Ls + ω (La2s + Ls2a + λ Lreg)`` (14), with ω fading in as a logistic curve of the epoch (24).

    A network without ITN has no Ls, one without STN has nothing else.

    Args:
        network: the network being trained; its atlas and transformation model are read, its weights are not.
        segmentation_loss: Ls, per-case error ``[B]`` of the ITN's prediction and the labelmap; (10) by default.
        regularisation: λ on voxel-unit gradients. The papers' λ on normalised coordinates equals λ (2 / (N − 1))² here.
        deformation_weight: final value of ω.
        fade_in_epoch: epoch t0 at which ω is half its final value; 0 gives the full weight from the start.
        fade_in_width: epochs over which ω rises, 25 in the paper.
        segmentation_weight: factor on Ls; 0 leaves it out.

    Attributes:
        epoch: current epoch, set by the trainer's schedule.
        terms: the terms of the last call, averaged over the batch, detached; for logging.
    """

    def __init__(
        self,
        network: AtlasISTN,
        segmentation_loss: Callable[[Tensor, Tensor], Tensor] = squared_error,
        regularisation: float = 0.5,
        deformation_weight: float = 1.0,
        fade_in_epoch: float = 0,
        fade_in_width: float = 25.0,
        segmentation_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.network = network
        self.segmentation_loss = segmentation_loss
        self.regularisation = regularisation
        self.deformation_weight = deformation_weight
        self.fade_in_epoch = fade_in_epoch
        self.fade_in_width = fade_in_width
        self.segmentation_weight = segmentation_weight
        self.epoch = 0
        self.terms: dict[str, Tensor] = {}

    @property
    def omega(self) -> float:
        """Current weight ω of the deformation terms."""
        if self.fade_in_epoch <= 0:
            return self.deformation_weight
        return self.deformation_weight / (1.0 + math.exp(-(self.epoch - self.fade_in_epoch) / self.fade_in_width))

    def forward(self, output: dict[str, Tensor], labels: Tensor) -> Tensor:
        """Loss of a batch.

        Args:
            output: what `JointForward` returns.
            labels: soft one-hot labelmaps ``[B, Nc, *shape]``.
        """
        terms: dict[str, Tensor] = {}
        if "velocity" in output:
            transform = self.network.transform(output["velocity"], output["parameters"])
            terms = registration_terms(transform, self.network.atlas_labels, labels)
        if "prediction" in output:
            terms["segmentation"] = self.segmentation_loss(output["prediction"], labels)
        self.terms = {name: value.detach().mean() for name, value in terms.items()}
        weights = {
            "segmentation": self.segmentation_weight,
            "a2s": self.omega,
            "s2a": self.omega,
            "regularisation": self.omega * self.regularisation,
        }
        return torch.stack([weights[name] * value for name, value in terms.items()]).sum(dim=0).mean()
