# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Atlases on the grid of a target: what a fusion is made of."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError

__all__ = ["WarpedAtlases"]


@dataclass(frozen=True)
class WarpedAtlases:
    """N atlases that were warped onto one target, in 2D or 3D.

    Attributes:
        labels: label values ``[N, *shape]``, integers; 0 is background.
        images: intensities ``[N, C, *shape]``; None for fusions that do not look at them.
        target: the image that is segmented, ``[C, *shape]``; None where there are no images.
        probabilities: how sure each label is to be right, ``[N, *shape]``, 0 to 1, as VoteNet predicts it.

    Raises:
        InputError: shapes that do not belong together, labels that are no integers, or values that are not finite.
    """

    labels: Tensor
    images: Tensor | None = None
    target: Tensor | None = None
    probabilities: Tensor | None = None

    def __post_init__(self) -> None:
        count, shape = len(self.labels), tuple(self.labels.shape[1:])
        if not count or len(shape) not in (2, 3) or self.labels.is_floating_point():
            raise InputError(
                "labels of warped atlases: expected integers [N, *shape] of at least one atlas in 2D or 3D, found "
                f"{self.labels.dtype} {tuple(self.labels.shape)}."
            )
        if (self.images is None) != (self.target is None):
            raise InputError("warped atlases: images and target belong together; give both or none.")
        expected = {"probabilities": (count, *shape)}
        if self.images is not None:
            channels = self.images.shape[1]
            expected |= {"images": (count, channels, *shape), "target": (channels, *shape)}
        for name, size in expected.items():
            tensor = getattr(self, name)
            if tensor is None:
                continue
            if tuple(tensor.shape) != size:
                raise InputError(f"{name} of warped atlases: expected shape {size}, found {tuple(tensor.shape)}.")
            if not torch.isfinite(tensor).all():
                raise InputError(f"{name} of warped atlases: there are values that are not finite; correct the image.")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, ...]:
        """Spatial shape of the target."""
        return tuple(self.labels.shape[1:])

    def disagreement(self) -> Tensor:
        """Mark the voxels where not all atlases have the same label, ``[*shape]``."""
        return (self.labels != self.labels[:1]).any(dim=0)
