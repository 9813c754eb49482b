# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""What an optimiser moves: the parameters of transforms themselves, or the weights of a network that predicts them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from ..spatial import Transform, mixed_precision

__all__ = ["Build", "FreeParameters", "NetworkWeights", "Parameters"]

Build = Callable[..., Transform]
"""Makes a batch of transforms from tensors ``[B, ...]``."""


class Parameters(Protocol):
    """A batch of transforms under optimisation."""

    def groups(self) -> list[dict[str, Any]]:
        """Return the leaf tensors and their rates, as `torch.optim` takes them."""

    def propose(self) -> tuple[Tensor, ...]:
        """Return the current state: tensors ``[B, ...]`` that describe each case, differentiable."""

    def transform(self, *state: Tensor) -> Transform:
        """Make the transforms of a state."""


class FreeParameters:
    """Tensors that are optimised themselves. Cases do not share any, so a batch is as many optimisations.

    Args:
        tensors: where each starts, ``[B, ...]``; they are copied.
        rates: step size of each.
        build: makes the transforms of these tensors.
    """

    def __init__(self, tensors: Sequence[Tensor], rates: Sequence[float], build: Build) -> None:
        self.tensors = tuple(tensor.detach().clone().requires_grad_() for tensor in tensors)
        self.rates = tuple(rates)
        self.transform = build

    def groups(self) -> list[dict[str, Any]]:
        """Return each tensor with its rate."""
        return [{"params": [tensor], "lr": rate} for tensor, rate in zip(self.tensors, self.rates, strict=True)]

    def propose(self) -> tuple[Tensor, ...]:
        """Return the tensors."""
        return self.tensors


class NetworkWeights:
    """The weights of a network whose output describes the transforms, as the papers refine; on a copy, for one case.

    Args:
        network: from `inputs` to the tensors that `build` takes.
        inputs: ``[1, C, *shape]``.
        rate: step size.
        build: makes the transform.
        amp: run the convolutions in bf16.
    """

    def __init__(self, network: nn.Module, inputs: Tensor, rate: float, build: Build, amp: bool = False) -> None:
        self.network = copy.deepcopy(network).requires_grad_()
        self.inputs = inputs
        self.rate = rate
        self.transform = build
        self.amp = amp

    def groups(self) -> list[dict[str, Any]]:
        """Return the weights with their rate."""
        return [{"params": list(self.network.parameters()), "lr": self.rate}]

    def propose(self) -> tuple[Tensor, ...]:
        """Return what the network predicts."""
        with mixed_precision(self.inputs.device, self.amp):
            output: tuple[Tensor, ...] = self.network(self.inputs)
        return output
