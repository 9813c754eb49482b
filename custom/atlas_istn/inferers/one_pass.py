# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Inference without refinement, for networks whose registration cannot be refined at test time or that have none."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from monai.inferers import Inferer
from torch import Tensor

from ..networks import AtlasISTN, JointForward
from ..spatial import Transform

__all__ = ["OnePass", "OnePassInferer"]


@dataclass(frozen=True)
class OnePass:
    """What one pass through a network yields.

    Attributes:
        segmentation: soft labelmap ``[B, Nc, *shape]``: the warped atlas, or the ITN's output where there is no STN.
        transform: the transform of the atlas, if there is one.
        seconds: wall time per case.
    """

    segmentation: Tensor
    transform: Transform | None
    seconds: float

    def outputs(self) -> dict[str, Tensor]:
        """Tensors over the batch, under the keys of an `AtlasEvaluator`'s output."""
        outputs = {"pred": self.segmentation, "seconds": torch.full((len(self.segmentation),), self.seconds)}
        if self.transform:
            outputs |= {"velocity": self.transform.velocity, "affine": self.transform.affine}
        return outputs


class OnePassInferer(Inferer):
    """Segments images in one pass, in place of a `RefinementInferer`.

    Args:
        amp: run the convolutions in bf16.
    """

    mode = "one pass"
    """There is nothing to refine; the other inferers' modes say what is."""

    def __init__(self, amp: bool = False) -> None:
        super().__init__()
        self.amp = amp

    def __call__(self, inputs: Tensor, network: AtlasISTN, *_: Any, **__: Any) -> Tensor:
        """Soft segmentation ``[B, Nc, *shape]`` of images ``[B, C, *shape]``."""
        return self.refine(inputs, network).segmentation

    @torch.no_grad()
    def refine(self, inputs: Tensor, network: AtlasISTN) -> OnePass:
        """Segment a batch. The name is that of the call which this one takes the place of."""
        start = time.perf_counter()
        parts = JointForward(network, self.amp)(torch.as_tensor(inputs))
        transform = None
        if "velocity" in parts:
            transform = network.transform(parts["velocity"], parts["parameters"])
        segmentation = transform.to_subject(network.atlas_labels) if transform else parts["prediction"]
        return OnePass(segmentation, transform, (time.perf_counter() - start) / len(inputs))
