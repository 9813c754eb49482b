# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Pairwise ISTN: a shared image transformer network and a spatial transformer network on its two outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.networks.blocks import Convolution
from torch import Tensor, nn

from ..errors import InputError
from ..registration.transformations import Grid, Transformation
from ..spatial import Transform
from .layout import to_channels_last
from .unet import CoarseHeads, EncoderDecoder

__all__ = ["NoPrediction", "PairISTN", "PairTransformerNetwork"]

_PROBE = 16  # voxels along each axis of a grid on which a transformation is asked what it has


class PairTransformerNetwork(nn.Module):
    """Predicts the raw parameters of a transformation model from two images, with a head for each tensor of it.

    Both heads take any image size: the affine one averages the coarsest features in a fixed number of cells, that of a
    field averages, or repeats, the features of the decoder at the field's nodes. They start at (nearly) zero, so the
    first prediction is the identity. Without a field there is no decoder.

    Args:
        spatial_dims: 2 or 3.
        in_channels: of both images together.
        transformation: the family of maps.
        channels: features of each scale, finest (half resolution) first.
        cells: along each axis, in which the affine head sees the coarsest features.
        hidden: units of the affine head.
        norm: MONAI normalisation (a name, or a name and its arguments), or None as in the paper.
        coarse_heads: the field is the sum of what a head yields at each scale of the decoder, as label-driven
            registration has it (Hu et al. 2018), in place of that at the finest alone.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        transformation: Transformation,
        channels: Sequence[int] = (8, 16, 32),
        cells: int = 8,
        hidden: int = 32,
        norm: str | Sequence[Any] | None = None,
        coarse_heads: bool = False,
    ) -> None:
        super().__init__()
        probe = transformation.initial(1, Grid((_PROBE,) * spatial_dims, (1.0,) * spatial_dims))
        affine = [tensor.shape[1] for tensor in probe if tensor.ndim == 2]
        fields = [tensor.shape[1] for tensor in probe if tensor.ndim > 2]
        self.has_field = bool(fields)
        self.cells = cells
        self.features = EncoderDecoder(
            spatial_dims, in_channels, channels, first_stride=2, norm=norm, decoder=self.has_field
        )
        if self.has_field:
            self.field_head = Convolution(spatial_dims, channels[0], fields[0], conv_only=True)
            self.coarse_heads = CoarseHeads(spatial_dims, channels if coarse_heads else [], fields[0])
            for parameter in (*self.field_head.parameters(), *self.coarse_heads.parameters()):
                nn.init.normal_(parameter, std=1e-5)
        self.affine_head = None
        if affine:
            last = nn.Linear(hidden, affine[0])
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            first = nn.Linear(channels[-1] * cells**spatial_dims, hidden)
            self.affine_head = nn.Sequential(nn.Flatten(), first, nn.ReLU(), last)

    def forward(self, images: Tensor, initial: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Raw parameters in the form of those of the identity, float32.

        Args:
            images: moving and fixed image ``[B, C, *shape]``.
            initial: those of the identity, ``[B or 1, ...]``, to which the prediction is added.
        """
        scales = self.features.scales(images)
        features, coarsest = scales[-1], scales[0]
        state: list[Tensor] = []
        for start in initial:
            if start.ndim == 2:
                head: Any = self.affine_head
                found = head(_average(coarsest, [self.cells] * (images.ndim - 2)))
            else:
                finest = self.field_head(_average(features, list(start.shape[2:])))
                found = self.coarse_heads(finest, scales)
            state.append(start + found.float())
        return tuple(state)


class PairISTN(nn.Module):
    """Registers a moving image to a fixed one by what an ITN makes of both (ISTN, Fig. 2).

    Without ITN the STN sees the images themselves, as in STN-u and STN-s.

    Args:
        itn: any network from ``[B, C, *shape]`` to ``[B, K, *shape]``, or None.
        stn: a `PairTransformerNetwork` of twice K (without ITN: C) channels.
        transformation: the family of maps, that of the STN.
        spacing: voxel size of the grid in millimetres.
        activation: applied to the ITN's output in float32; none for one that approximates maps by a linear layer.
    """

    def __init__(
        self,
        itn: nn.Module | None,
        stn: nn.Module,
        transformation: Transformation,
        spacing: Sequence[float],
        activation: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.itn = itn
        self.stn = stn
        self.transformation = transformation
        self.spacing = tuple(float(s) for s in spacing)
        self.activation = activation or nn.Identity()
        to_channels_last(self, len(self.spacing))

    def represent(self, image: Tensor) -> Tensor:
        """What is registered of an image ``[B, C, *shape]``: the ITN's output ``[B, K, *shape]``, or the image."""
        return image if self.itn is None else self.activation(self.itn(image).float())

    def grid(self, image: Tensor) -> Grid:
        """The grid of images ``[B, C, *shape]``."""
        return Grid(tuple(image.shape[2:]), self.spacing, image.device)

    def register(self, moving: Tensor, fixed: Tensor) -> tuple[Tensor, ...]:
        """Raw parameters of the transformation between two representations ``[B, K, *shape]``."""
        return self.predictor(moving)(torch.cat([moving, fixed], dim=1))

    def predictor(self, image: Tensor) -> BoundNetwork:
        """The STN for images of one grid, as a module from both representations to the raw parameters."""
        return BoundNetwork(self.stn, self.transformation.initial(1, self.grid(image)))

    def transform(self, state: Sequence[Tensor], image: Tensor) -> Transform:
        """The transforms of raw parameters on the grid of an image ``[B, C, *shape]``."""
        return self.transformation.build(self.grid(image))(*state)

    def parts(self, pair: Tensor) -> dict[str, Any]:
        """What ITN and STN yield in one pass of a pair, as for `forward`.

        Returns:
            ``{"moving", "fixed"}`` the representations, ``{"state"}`` the raw parameters.
        """
        images = split_pair(pair)
        # One pass for both: the ITN is shared, and a larger batch is cheaper.
        moving, fixed = self.represent(torch.cat(images)).chunk(2)
        return {"moving": moving, "fixed": fixed, "state": self.register(moving, fixed)}

    def forward(self, pair: Tensor) -> Tensor:
        """The moving image, warped onto the fixed one in one pass, ``[B, C, *shape]``.

        Args:
            pair: ``[B, 2 C, *shape]``, the channels of the moving image first.
        """
        moving, _ = split_pair(pair)
        return self.transform(self.parts(pair)["state"], moving).to_fixed(moving)


class NoPrediction(nn.Module):
    """Stands for a transformer network where there is none: it predicts the identity."""

    def forward(self, images: Tensor, initial: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Raw parameters of as many identities as there are images ``[B, 2 K, *shape]``."""
        return tuple(start.expand(len(images), *start.shape[1:]) for start in initial)


class BoundNetwork(nn.Module):
    """The STN for one grid: what `registration.parameters.NetworkWeights` optimises.

    Args:
        stn: the network.
        initial: raw parameters of the identity on this grid.
    """

    def __init__(self, stn: nn.Module, initial: Sequence[Tensor]) -> None:
        super().__init__()
        self.stn = stn
        self.initial = tuple(initial)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Raw parameters of both representations ``[B, 2 K, *shape]``."""
        state: tuple[Tensor, ...] = self.stn(images, self.initial)
        return state


def split_pair(pair: Tensor) -> tuple[Tensor, Tensor]:
    """Moving and fixed image ``[B, C, *shape]`` of a pair ``[B, 2 C, *shape]``.

    Raises:
        InputError: the channels cannot be two images.
    """
    if pair.shape[1] % 2:
        raise InputError(f"a pair of images: expected an even number of channels, found {pair.shape[1]}.")
    moving, fixed = pair.chunk(2, dim=1)
    return moving, fixed


def _average(features: Tensor, size: list[int]) -> Tensor:
    """Features ``[B, C, *size]``: means of cells of equal extent."""
    if list(features.shape[2:]) == size:
        return features
    pool: Any = F.adaptive_avg_pool2d if features.ndim == 4 else F.adaptive_avg_pool3d
    averaged: Tensor = pool(features, size)
    return averaged
