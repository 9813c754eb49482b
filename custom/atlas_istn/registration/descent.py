# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""How the parameters of a registration step down: by Adam, or where they are few by what they tell of the curvature."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

__all__ = ["Adam", "Descent", "QuasiNewton"]

_ENOUGH = 1e-4  # of the decrease that the slope promises (Armijo)
_LONGEST = 10.0  # rates that a parameter moves in one step at most
_LEAST = 1e-20


class Descent(Protocol):
    """Moves tensors ``[B, ...]`` by their gradients; made of groups as `torch.optim` takes them."""

    def step(self, loss: Tensor) -> None:
        """Move the tensors from where the objective of the cases is ``loss`` ``[B]``, and forget their gradients."""

    def restart(self) -> None:
        """Forget what belongs to another objective."""


class Adam:
    """Adam (Kingma and Ba 2015), with rates that fall linearly.

    Args:
        groups: tensors and their rates.
        moments: share of the mean gradient, and of the mean square of it, that a step keeps.
        end: share of the rates that is left at the last step.
        steps: until then.
    """

    def __init__(
        self,
        groups: Sequence[dict[str, Any]],
        moments: tuple[float, float] = (0.9, 0.999),
        end: float = 1.0,
        steps: int = 1,
    ) -> None:
        self.adam = torch.optim.Adam(list(groups), betas=moments, fused=True)
        self.schedule = torch.optim.lr_scheduler.LinearLR(self.adam, 1.0, end, total_iters=max(steps, 1))

    def step(self, loss: Tensor) -> None:  # noqa: ARG002 (of the protocol)
        """Move the tensors."""
        self.adam.step()
        self.schedule.step()
        self.adam.zero_grad(set_to_none=True)

    def restart(self) -> None:
        """Keep the moments: objectives of the phases of a registration are much alike."""


class QuasiNewton:
    """BFGS for one tensor ``[B, P]`` of few parameters, each case for itself (Nocedal and Wright 2006, Sec. 6.1).

    A step costs one evaluation: one that does not lower the objective enough is taken back, and the next is half as
    long. What it told of the curvature is kept. The first step is as long as Adam's.
    """

    def __init__(self, groups: Sequence[dict[str, Any]]) -> None:
        ((self.tensor,), self.rate) = next((group["params"], group["lr"]) for group in groups)
        self.started = False

    def restart(self) -> None:
        """Begin anew from the place of the next step."""
        self.started = False

    @torch.no_grad()
    def step(self, loss: Tensor) -> None:
        """Move the parameters."""
        gradient: Any = self.tensor.grad
        if self.started:
            self._judge(loss, gradient)
        else:
            self._begin(loss, gradient)
        direction = -(self.inverse @ self.gradient.unsqueeze(2)).squeeze(2) * self.length
        longest = direction.abs().amax(dim=1, keepdim=True).clamp_min(_LEAST)
        self.tensor.copy_(self.place + direction * (_LONGEST * self.rate / longest).clamp_max(1.0))
        self.tensor.grad = None

    def _begin(self, loss: Tensor, gradient: Tensor) -> None:
        batch, count = self.tensor.shape
        self.identity = torch.eye(count, device=loss.device, dtype=gradient.dtype)
        size = self.rate * math.sqrt(count) / gradient.norm(dim=1).clamp_min(_LEAST)
        self.inverse = size.reshape(-1, 1, 1) * self.identity  # of the Hessian
        self.unscaled = torch.ones(batch, 1, 1, dtype=torch.bool, device=loss.device)
        self.length = torch.ones(batch, 1, device=loss.device)
        self.place, self.gradient, self.loss = self.tensor.detach().clone(), gradient, loss
        self.started = True

    def _judge(self, loss: Tensor, gradient: Tensor) -> None:
        """Take the step or not, and learn of it."""
        move, change = self.tensor - self.place, gradient - self.gradient
        lower = (loss <= self.loss + _ENOUGH * (self.gradient * move).sum(dim=1)).unsqueeze(1)
        self._learn(move, change)
        self.length = torch.where(lower, 1.0, 0.5 * self.length)
        self.place = torch.where(lower, self.tensor, self.place)
        self.gradient = torch.where(lower, gradient, self.gradient)
        self.loss = torch.where(lower.squeeze(1), loss, self.loss)

    def _learn(self, move: Tensor, change: Tensor) -> None:
        """Update the inverse Hessian, where the curvature along the move is positive; it stays positive definite."""
        curvature = (move * change).sum(dim=1).reshape(-1, 1, 1)
        convex = curvature > _LEAST
        # The first that is known of the curvature gives the scale.
        scale = curvature / change.square().sum(dim=1).clamp_min(_LEAST).reshape(-1, 1, 1)
        before = torch.where(self.unscaled & convex, scale * self.identity, self.inverse)
        move, change = move.unsqueeze(2), change.unsqueeze(2)
        ahead = move / curvature.clamp_min(_LEAST)
        turn = self.identity - change @ ahead.mT
        self.inverse = torch.where(convex, turn.mT @ before @ turn + move @ ahead.mT, self.inverse)
        self.unscaled = self.unscaled & ~convex
