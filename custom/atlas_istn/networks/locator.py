# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""A small network that finds the anatomy in a whole scan, at low resolution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from monai.networks.blocks import Convolution
from torch import Tensor, nn

from ..spatial import identity_grid
from .unet import EncoderDecoder

__all__ = ["Location", "Locator"]

_ACROSS = {2: 32, 3: 20}  # voxels of the locator along the longest side of the model's grid
_DARK = 0.01  # share of a scan's voxels below 0
_LIMITS = (-0.5, 3.0)  # of the scaled intensities
_FIT_ROUNDS = 8
_OUTLIER = 0.3  # distance, over the radius of the anatomy, from which on a voxel counts little for the pose
_LEAST_VOLUME, _GREATEST_VOLUME = 0.5, 2.0  # of the least and of the greatest volume in training
_GREATEST_DISAGREEMENT = 0.5  # over the radius
_GREATEST_MISSING = 0.6  # share of the anatomy: with less than the rest nobody can tell where it is


@dataclass(frozen=True)
class Location:
    """Where the anatomy lies in a scan.

    Attributes:
        centre: ``[dim]``, in millimetres along the axes of the scan from its first voxel.
        rotation: ``[dim, dim]``, from the pose of the training scans to that of this one.
        volume: foreground that agrees with the pose, in mm² or mm³.
        disagreement: root mean square distance of where the voxels of the foreground see the centre, over the radius of
            the anatomy.
        missing: share of the anatomy beyond the border of the scan.
    """

    centre: Tensor
    rotation: Tensor
    volume: float
    disagreement: float
    missing: float


class Locator(nn.Module):
    """Tells foreground from background in a scan of any size, and where in the anatomy each voxel lies.

    A U-net at a resolution at which the model's grid has `_ACROSS` voxels along its longest side. Its voxel size is
    fixed, and the number of voxels is not, so that anatomy looks alike whatever the field of view. For every voxel it
    yields the foreground (the union of the labels), and the voxel's position within the anatomy, relative to the centre
    and in the axes of the training scans. The rigid map that brings these positions to the voxels (Kabsch 1976, with
    weights that leave outliers out) is the pose of the anatomy. It is known from any part of the anatomy, also where
    the border of the scan cuts it.

    What training learned of the foreground is in buffers. Weights and buffers are trained by
    `atlas_istn.training.locator` alone, never by the loss of the joint training: the weights ask for no gradient.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the scan.
        spatial_size: voxels of the model's grid, which the anatomy fits into.
        spacing: of the model's grid, mm.
        channels: features of each scale, finest first.
    """

    if TYPE_CHECKING:  # see AtlasISTN
        template: Tensor
        volumes: Tensor
        radius: Tensor

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        spatial_size: Sequence[int],
        spacing: Sequence[float],
        channels: Sequence[int] = (8, 16, 32, 64),
    ) -> None:
        super().__init__()
        extent = [n * s for n, s in zip(spatial_size, spacing, strict=True)]
        self.spacing = [max(float(s), max(extent) / _ACROSS[spatial_dims]) for s in spacing]
        self.features = EncoderDecoder(spatial_dims, in_channels, channels, norm=("group", {"num_groups": 4}))
        self.head = Convolution(spatial_dims, channels[0], 1 + spatial_dims, kernel_size=1, conv_only=True)
        with torch.no_grad():  # start undecided, at the centre
            self.head.conv.weight.mul_(0.1)
            self.head.conv.bias.zero_()
        shape = [round(e / s) for e, s in zip(extent, self.spacing, strict=True)]
        self.register_buffer(
            "template", torch.zeros(shape)
        )  # mean foreground of the training scans about their centres
        self.register_buffer("volumes", torch.zeros(2))  # least and greatest, as this network sees them
        self.register_buffer(
            "radius", torch.ones(())
        )  # root mean square distance of the foreground from the centre, mm
        self.requires_grad_(False)

    def forward(self, scan: Tensor) -> Tensor:
        """Foreground (logit) and positions ``[B, 1 + dim, *shape]`` in mm, of scans ``[B, C, *shape]`` as they are."""
        output = self.head(self.features(_scaled(scan.float()))[0])
        return torch.cat([output[:, :1], output[:, 1:] * self.radius], dim=1)

    @torch.no_grad()
    def locate(self, scan: Tensor) -> Location | None:
        """Find the anatomy in one scan.

        Args:
            scan: ``[C, *shape]``, at the voxel size of the locator.

        Returns:
            Where it is; None where there is no foreground at all.
        """
        output = self(scan[None].to(self.radius.device))[0].flatten(1).double()
        sizes = torch.tensor(self.spacing, dtype=torch.float64, device=output.device)
        grid = identity_grid(list(scan.shape[1:]), output.device)[0].flatten(1).double()
        foreground = output[0].sigmoid()
        seen = foreground > 0.5
        if not seen.any():
            return None
        points, positions, weights = (grid[:, seen].T * sizes, output[1:, seen].T, foreground[seen])
        centre, rotation, distances, agreeing = _pose(points, positions, weights, _OUTLIER * float(self.radius))
        share = agreeing / agreeing.sum()
        return Location(
            centre=centre.cpu(),
            rotation=rotation.cpu(),
            volume=float(agreeing.sum() * sizes.prod()),
            disagreement=float((share * distances.square()).sum().sqrt() / self.radius),
            missing=self._missing(centre, rotation, [n * s for n, s in zip(scan.shape[1:], self.spacing, strict=True)]),
        )

    def _missing(self, centre: Tensor, rotation: Tensor, extent: Sequence[float]) -> float:
        """Share of the template, at a pose, that lies beyond the border of a scan of this extent."""
        sizes = torch.tensor(self.spacing, dtype=centre.dtype, device=centre.device)
        middle = (torch.tensor(self.template.shape, device=centre.device) - 1) / 2
        grid = identity_grid(list(self.template.shape), centre.device)[0].flatten(1).T
        points = ((grid - middle) * sizes) @ rotation.T + centre + sizes / 2
        inside = ((points >= 0) & (points <= torch.tensor(extent, device=centre.device))).all(dim=1)
        template = self.template.flatten().double()
        return float(1 - template[inside].sum() / template.sum().clamp_min(1e-12))

    def doubt(self, location: Location | None) -> str:
        """Why a location is not to be believed, in words; empty where it is."""
        if location is None:
            return "nothing in it looks like the anatomy"
        if location.missing > _GREATEST_MISSING:
            return f"{location.missing:.0%} of the anatomy would lie beyond the border of the scan"
        least, greatest = (float(volume) for volume in self.volumes)
        volume = location.volume / (1 - location.missing)
        if not _LEAST_VOLUME * least <= volume <= _GREATEST_VOLUME * greatest:
            return (
                f"what looks like it has {'a volume' if self.template.ndim == 3 else 'an area'} of {volume:.3g}, in "
                f"training it had {least:.3g} to {greatest:.3g}"
            )
        if location.disagreement > _GREATEST_DISAGREEMENT:
            return "what looks like it has not the shape of the anatomy"
        return ""


def _scaled(scan: Tensor) -> Tensor:
    """A scan ``[B, C, *shape]`` whose darkest percent ends at 0, and whose bright voxels have a mean of 1.

    Bright is what exceeds the mean of all: so much does not change by how much background the field of view has.
    """
    voxels = scan.flatten(2)
    low = voxels.kthvalue(1 + round(_DARK * (voxels.shape[2] - 1)), dim=2, keepdim=True).values
    bright = voxels > voxels.mean(dim=2, keepdim=True)
    high = (voxels * bright).sum(dim=2, keepdim=True) / bright.sum(dim=2, keepdim=True).clamp_min(1)
    return ((voxels - low) / (high - low).clamp_min(1e-6)).clamp(*_LIMITS).reshape(scan.shape)


def _pose(points: Tensor, positions: Tensor, weights: Tensor, outlier: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The rigid map ``x = c + R q`` from positions q to points x, both ``[N, dim]``, that most of them agree upon.

    Least squares with weights that are found anew in each round (Cauchy's), for voxels that only look like foreground.

    Returns:
        c ``[dim]``, R ``[dim, dim]``, the distances of the points ``[N]``, and the weights in the end ``[N]``.
    """
    distances, agreeing = torch.zeros_like(weights), weights
    for _ in range(_FIT_ROUNDS):
        agreeing = weights / (1 + (distances / outlier).square())
        share = (agreeing / agreeing.sum())[:, None]
        middle, place = (share * points).sum(dim=0), (share * positions).sum(dim=0)
        u, _, vt = torch.linalg.svd(((points - middle) * share).T @ (positions - place))
        turn = torch.ones_like(middle)
        turn[-1] = torch.linalg.det(u @ vt)  # no reflection
        rotation = u @ torch.diag(turn) @ vt
        centre = middle - rotation @ place
        distances = (points - centre - positions @ rotation.T).norm(dim=1)
    return centre, rotation, distances, agreeing
