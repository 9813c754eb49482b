# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""The one loop that registers: descent in phases, the best iterate of each case kept, an end when all settle."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..spatial import Transform
from .descent import Adam, Descent
from .objective import Objective
from .parameters import Parameters

__all__ = ["Fit", "Phase", "Retarget", "Settling", "optimise"]

Retarget = Callable[[Transform], tuple[Objective | None, Tensor]]
"""From the transforms so far to the objective from here on, and which cases ``[B]`` have another one than before; None
where it stays."""


@dataclass(frozen=True)
class Phase:
    """A stretch of the optimisation.

    Attributes:
        iterations: steps.
        weight: of the regulariser in the gradient. That of the last phase counts in the objective throughout.
        retarget: called as the phase begins.
    """

    iterations: int
    weight: float
    retarget: Retarget | None = None


@dataclass(frozen=True)
class Settling:
    """When a case has settled: its objective improved by less than a fraction over some iterations of the last phase.

    Attributes:
        tolerance: the fraction; 0: none settles before the end.
        patience: the iterations.
    """

    tolerance: float = 2e-3
    patience: int = 10


@dataclass(frozen=True)
class Fit:
    """What the optimisation of a batch ends with.

    Attributes:
        state: the tensors ``[B, ...]`` of the best iterate of each case, as the parameters propose them.
        loss: its objective, ``[B]``.
        iterations: until each case had settled, ``[B]``.
        curve: objective per iteration and case, ``[K + 1, B]``; row 0 is the start.
    """

    state: tuple[Tensor, ...]
    loss: Tensor
    iterations: Tensor
    curve: Tensor

    @staticmethod
    def cat(fits: Sequence[Fit]) -> Fit:
        """Join fits to one batch; shorter curves are continued with their last value."""
        length = max(len(fit.curve) for fit in fits)
        curves = [torch.cat([fit.curve, fit.curve[-1:].expand(length - len(fit.curve), -1)]) for fit in fits]
        return Fit(
            tuple(torch.cat(tensors) for tensors in zip(*(fit.state for fit in fits), strict=True)),
            torch.cat([fit.loss for fit in fits]),
            torch.cat([fit.iterations for fit in fits]),
            torch.cat(curves, dim=1),
        )


def optimise(
    parameters: Parameters,
    objective: Objective,
    phases: Sequence[Phase],
    settling: Settling | None = None,
    method: Callable[[Sequence[dict[str, Any]]], Descent] = Adam,
) -> Fit:
    """Minimise an objective. The cases of a batch do not interact unless they share parameters.

    Costs one evaluation of the objective and its gradient per iteration. Works under ``no_grad``.

    Args:
        parameters: what is moved.
        objective: what is minimised.
        phases: one after another, at least one; without any iteration the start is judged and returned.
        settling: when to stop early.
        method: `Adam`, or `QuasiNewton` for few parameters.

    Returns:
        The best iterates: no case is worse off than where it started, by its last objective.
    """
    settling = settling or Settling()
    descent = method(parameters.groups())
    best, curve = _Best(), []
    settled = torch.empty(0)
    for iteration, (phase, since) in enumerate(_schedule(phases)):
        with torch.enable_grad():
            state = parameters.propose()
            transform = parameters.transform(*state)
            if since == 0 and phase.retarget:
                with torch.no_grad():
                    new, changed = phase.retarget(transform.detach())
                objective = new or objective
                best.forget(changed)  # with another objective, what was best is so no more
            if since == 0:
                descent.restart()
            terms = objective(transform)
            loss = (terms.misfit + phases[-1].weight * terms.penalty).detach()
            curve.append(loss)
            best.keep_better(state, loss)
            if iteration == 0:
                settled = torch.full_like(loss, -1, dtype=torch.long)
            if settling.tolerance > 0 and phase is phases[-1] and since >= settling.patience:
                reference = curve[-1 - settling.patience]
                least = torch.stack(curve[-settling.patience :]).amin(dim=0)
                improved = reference - least > settling.tolerance * reference
                settled[~improved & (settled < 0)] = iteration
            if since == phase.iterations or bool((settled >= 0).all()):
                break
            minimised = terms.misfit + phase.weight * terms.penalty
            minimised.sum().backward()  # the gradient of a sum: each case has its own parameters
        descent.step(minimised.detach())
    settled[settled < 0] = len(curve) - 1
    return Fit(best.state, best.loss, settled, torch.stack(curve))


def _schedule(phases: Sequence[Phase]) -> Iterator[tuple[Phase, int]]:
    """Each iteration's phase and the iterations since that began; the last iterate, which is only judged, included."""
    for phase in phases:
        yield from ((phase, since) for since in range(phase.iterations))
    yield phases[-1], phases[-1].iterations


class _Best:
    """The state of each case with the least objective so far."""

    def __init__(self) -> None:
        self.state: tuple[Tensor, ...] = ()
        self.loss = torch.empty(0)

    def keep_better(self, state: tuple[Tensor, ...], loss: Tensor) -> None:
        if not self.state:
            self.state, self.loss = tuple(tensor.detach().clone() for tensor in state), loss.clone()
            return
        better = loss < self.loss
        for kept, tensor in zip(self.state, state, strict=True):
            kept[better] = tensor.detach()[better]
        self.loss = torch.minimum(loss, self.loss)

    def forget(self, cases: Tensor) -> None:
        if self.state:
            self.loss[cases] = torch.inf
