# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""The Atlas-ISTN network: ITN, STN, transformation model and the atlas in one module."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..spatial import (
    SQUARINGS,
    Transform,
    VelocityField,
    affine_matrix,
    exponential,
    fixed_to_moving_displacement,
    mixed_precision,
    moving_to_fixed_displacement,
    warp,
)
from .layout import to_channels_last

__all__ = ["AtlasISTN", "JointForward"]


class AtlasISTN(nn.Module):
    """Segments an image by warping a learned atlas onto the image's own voxel-wise segmentation.

    The atlas is held in buffers, so that one state dict is the whole model. `forward` returns the 1-pass segmentation;
    everything else comes from named methods.

    Either part may be left out, as in the paper's baselines: without STN the ITN's prediction is the segmentation
    (U-net); without ITN the STN registers the atlas image to the image itself (VML).

    Args:
        itn: any network from ``[B, in_channels, *shape]`` to ``[B, num_classes, *shape]``, or None. In training it may
            yield ``[B, n, num_classes, *shape]``, the prediction first, as MONAI's networks with deep supervision do.
        stn: network from ``[B, 2 (num_classes − 1), *shape]``, without ITN ``[B, 2 in_channels, *shape]``, to velocity
            and affine parameters; or None.
        spatial_size: shape of the image and of the atlas.
        num_classes: channels Nc of the labelmaps, background (channel 0) included.
        in_channels: channels of the image.
        activation: applied to the ITN's output in float32, e.g. ``Softmax(dim=1)`` for an ITN trained by cross-entropy;
            none, as in the paper, for one whose linear output approximates the labelmap itself.
        spacing: voxel size of the grid in millimetres; default 1.
        max_translation: bound of the translation, as a fraction of half the image's extent.
        max_rotation: bound of the rotation (of each component of the rotation vector) in radians.
        max_log_scale: bound of the logarithm of each scale.
        squarings: squarings of the exponential.
        stn_passes: times that the STN looks; 1 as in the paper.
        locator: finds the anatomy in scans that are larger than the grid; it takes no part in what this network does,
            and is here so that one file is the whole model.

    Raises:
        InputError: the ITN does not take images of this size or returns another shape.
    """

    if TYPE_CHECKING:  # for the type checker alone: TorchScript cannot read postponed annotations of buffers
        itn: Any
        stn: Any
        locator: Any
        atlas_image: Tensor
        atlas_labels: Tensor
        affine_gate: Tensor
        affine_unit: Tensor
        affine_limit: Tensor

    def __init__(
        self,
        itn: nn.Module | None,
        stn: nn.Module | None,
        spatial_size: Sequence[int],
        num_classes: int,
        in_channels: int = 1,
        activation: nn.Module | None = None,
        spacing: Sequence[float] | None = None,
        max_translation: float = 1.0,
        max_rotation: float = 0.785,
        max_log_scale: float = 1.0,
        squarings: int = SQUARINGS,
        stn_passes: int = 1,
        locator: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.itn = itn
        self.stn = stn
        self.locator = locator
        self.activation = activation or nn.Identity()
        self.squarings = squarings
        self.stn_passes = stn_passes
        self.spacing = [float(s) for s in (spacing or [1.0] * len(spatial_size))]
        if itn is not None:
            _check_itn(itn, in_channels, num_classes, spatial_size)
        dim = len(spatial_size)
        self.register_buffer("atlas_image", torch.zeros(1, in_channels, *spatial_size))
        self.register_buffer("atlas_labels", torch.zeros(1, num_classes, *spatial_size))
        # 1 while the affine head takes part: a buffer, so that a checkpoint knows whether it does.
        self.register_buffer("affine_gate", torch.ones(()))
        # The STN predicts translations as fractions of half the extent; these bring them to millimetres.
        extent = torch.tensor([(n - 1) * s / 2 for n, s in zip(spatial_size, self.spacing, strict=True)])
        rotation = torch.ones(1 if dim == 2 else 3)
        self.register_buffer("affine_unit", torch.cat([extent, rotation, torch.ones(dim)]), persistent=False)
        self.register_buffer(
            "affine_limit",
            torch.cat([max_translation * extent, max_rotation * rotation, torch.full((dim,), max_log_scale)]),
            persistent=False,
        )
        to_channels_last(self, dim)

    def segment(self, image: Tensor) -> Tensor:
        """Prediction ŷ ``[B, Nc, *shape]`` of the ITN, float32."""
        return self.predictions(image)[:, 0]

    def predictions(self, image: Tensor) -> Tensor:
        """What the ITN yields, ``[B, n, Nc, *shape]``, float32: the prediction and, in training, others to learn from.

        Those are the heads at coarser scales of a network with deep supervision.
        """
        found = self.itn(image).float()
        if found.dim() == image.dim():
            found = found.unsqueeze(1)
        batch, number = found.shape[:2]
        return self.activation(found.flatten(0, 1)).unflatten(0, [batch, number])

    def register(self, subject: Tensor) -> tuple[Tensor, Tensor]:
        """Velocity ``[B, dim, *half]`` and raw affine parameters ``[B, P]`` between atlas and subject.

        The subject is the ITN's prediction ``[B, Nc, *shape]``, or the image ``[B, C, *shape]`` where there is no ITN.
        In a further pass the STN sees the subject as far as it has been brought to the atlas, and adds what is left.
        """
        velocity, parameters = self.stn(self.stn_input(subject))
        parameters = parameters * self.affine_gate
        for _ in range(self.stn_passes - 1):
            deformation, size = exponential(velocity, self.squarings), list(self.atlas_labels.shape[2:])
            displacement = fixed_to_moving_displacement(deformation, self.affine(parameters), self.spacing, size)
            further = self.stn(self.stn_input(warp(subject, displacement)))
            velocity, parameters = velocity + further[0], parameters + further[1] * self.affine_gate
        return velocity, parameters

    def stn_input(self, subject: Tensor) -> Tensor:
        """What the STN sees of a subject, as for `register`: it and the atlas, of labelmaps the foreground channels."""
        if self.itn is None:
            atlas = self.atlas_image
        else:
            subject, atlas = subject[:, 1:], self.atlas_labels[:, 1:]
        return torch.cat([subject, atlas.expand_as(subject)], dim=1)

    def affine(self, parameters: Tensor) -> Tensor:
        """The matrix T ``[B, dim, dim + 1]`` of raw affine parameters."""
        return affine_matrix(parameters * self.affine_unit, self.affine_limit)

    @torch.jit.unused
    def transform(self, velocity: Tensor, parameters: Tensor) -> Transform:
        """The `Transform` of a velocity field and raw affine parameters."""
        shape = tuple(self.atlas_labels.shape[2:])
        return Transform(velocity, self.affine(parameters), shape, tuple(self.spacing), VelocityField(self.squarings))

    @torch.jit.unused
    def parts(self, image: Tensor) -> dict[str, Tensor]:
        """What ITN and STN yield in one pass: ``{"prediction", "velocity", "parameters"}``, as far as they exist.

        And ``"predictions"``, where the ITN has others to learn from, see `predictions`.
        """
        parts: dict[str, Tensor] = {}
        subject = image
        if self.itn is not None:
            predictions = self.predictions(image)
            subject = parts["prediction"] = predictions[:, 0]
            if predictions.shape[1] > 1:
                parts["predictions"] = predictions
        if self.stn is not None:
            parts["velocity"], parts["parameters"] = self.register(subject)
        return parts

    def forward(self, image: Tensor) -> Tensor:
        """The 1-pass segmentation ``ya ∘ Φ⁻¹``, soft channels ``[B, Nc, *shape]``; without STN the prediction."""
        subject = image
        if self.itn is not None:
            subject = self.segment(image)
        if self.stn is None:
            return subject
        velocity, parameters = self.register(subject)
        deformation, size = exponential(-velocity, self.squarings), list(self.atlas_labels.shape[2:])
        displacement = moving_to_fixed_displacement(deformation, self.affine(parameters), self.spacing, size)
        return warp(self.atlas_labels, displacement)


class JointForward(nn.Module):
    """What the trainer calls: ITN and STN in one forward, so that DistributedDataParallel sees every weight.

    Args:
        network: the network to train, an `AtlasISTN` or a `PairISTN`.
        amp: run the convolutions in bf16 (on any device; the transformation model stays in float32).
    """

    def __init__(self, network: Any, amp: bool = False) -> None:
        super().__init__()
        self.network = network
        self.amp = amp

    def forward(self, image: Tensor) -> dict[str, Any]:
        """The network's `parts` for a batch of images, or of pairs."""
        with mixed_precision(image.device, self.amp):
            parts: dict[str, Any] = self.network.parts(image)
        return parts


def _check_itn(itn: nn.Module, in_channels: int, num_classes: int, spatial_size: Sequence[int]) -> None:
    """Push a shape, no data, through the ITN: a size that it cannot take is found before any training."""
    probe = copy.deepcopy(itn).to("meta").eval()

    def fits(size: Sequence[int]) -> bool:
        try:
            with torch.no_grad():
                return probe(torch.empty(1, in_channels, *size, device="meta")).shape == (1, num_classes, *size)
        except (RuntimeError, ValueError):  # what networks raise for a size that they cannot take
            return False

    if fits(spatial_size):
        return
    for stride in (2, 4, 8, 16, 32, 64):
        rounded = [-(-n // stride) * stride for n in spatial_size]
        if fits(rounded):
            raise InputError(
                f"spatial_size {list(spatial_size)} does not suit the ITN {type(itn).__name__}: every size must be a "
                f"multiple of its stride {stride}. Set spatial_size to {rounded}."
            )
    raise InputError(
        f"the ITN {type(itn).__name__} does not map {in_channels} channels of size {list(spatial_size)} to "
        f"{num_classes} channels of that size: check its spatial_dims, in_channels and out_channels."
    )
