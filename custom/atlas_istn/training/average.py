# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""The moving average of the weights, which errs less than where the last steps happened to lead."""

from __future__ import annotations

from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

__all__ = ["WeightAverage"]


class WeightAverage:
    """Trainer handler that keeps an exponential moving average of the weights, ``a ← d a + (1 − d) w`` at each step.

    Between the epochs the network holds the average: it is what moves the atlas, is validated, kept and saved. The
    steps go on from the weights that they have made. Early steps count less and less: the decay d of step t is at most
    ``(1 + t) / (10 + t)``, so that a short training is averaged over its last tenth.

    Attach it before the handlers that move the atlas, validate and save. Buffers, such as the atlas, are not averaged.

    Args:
        network: its parameters are averaged.
        decay: largest d; 0.995 averages over some 200 steps.
    """

    def __init__(self, network: nn.Module, decay: float = 0.995) -> None:
        self.parameters: list[Tensor] = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self.decay = decay
        self.other: list[Tensor] = []  # the average within an epoch; between two the weights of the last step
        self.steps = 0

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._exchange)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._step)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._exchange)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training needs: the weights of the last step, where the network holds the average."""
        return {"other": self.other, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.other, self.steps = list(state["other"]), int(state["steps"])

    @torch.no_grad()
    def _exchange(self) -> None:
        if not self.other:
            self.other = [parameter.detach().clone() for parameter in self.parameters]
        for parameter, other in zip(self.parameters, self.other, strict=True):
            kept = parameter.detach().clone()
            parameter.copy_(other)
            other.copy_(kept)

    @torch.no_grad()
    def _step(self) -> None:
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        get_ema_multi_avg_fn(decay)(self.other, self.parameters, self.steps)
