# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Inference without refinement, for networks whose registration cannot be refined at test time or that have none."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from ..networks import AtlasISTN, JointForward
from .base import SegmentationInferer, plain
from .result import Result

__all__ = ["OnePassInferer"]


class OnePassInferer(SegmentationInferer):
    """Segments images in one pass: by the warped atlas, or by the ITN where there is no STN.

    Args:
        amp: run the convolutions in bf16.
    """

    def __init__(self, amp: bool = False) -> None:
        super().__init__()
        self.amp = amp

    @torch.no_grad()
    def infer(self, image: Tensor, network: AtlasISTN) -> Result:
        """Segment a batch."""
        begin = time.perf_counter()
        parts = JointForward(network, self.amp)(plain(image))
        transform = None
        if "velocity" in parts:
            transform = network.transform(parts["velocity"], parts["parameters"])
        segmentation = transform.to_fixed(network.atlas_labels) if transform else parts["prediction"]
        return Result(segmentation, (time.perf_counter() - begin) / len(image), transform=transform)
