# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Descent by few parameters, on functions whose minimum is known."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from atlas_istn.registration.descent import Adam, Descent, QuasiNewton

RATE = 0.1


def descend(method: Callable[[Any], Descent], function: object, start: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """The last place ``[B, P]``, and the loss of every place ``[steps, B]``."""
    place = start.clone().requires_grad_()
    descent = method([{"params": [place], "lr": RATE}])
    losses = []
    for _ in range(steps):
        loss = function(place)  # type: ignore[operator]
        losses.append(loss.detach())
        loss.sum().backward()
        descent.step(loss.detach())
    return place.detach(), torch.stack(losses)


def valleys(place: Tensor) -> Tensor:
    """Two valleys of condition 1,000 with turned axes and their minima at 0.3 and −0.5."""
    turn, _ = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(0)))
    minimum = torch.tensor([0.3, -0.5]).reshape(2, 1)
    return (((place - minimum) @ turn).square() * torch.logspace(0, 3, 5)).sum(dim=1)


def test_a_narrow_valley_is_followed_to_its_end() -> None:
    start = torch.zeros(2, 5)
    found, losses = descend(QuasiNewton, valleys, start, 40)
    torch.testing.assert_close(found, torch.tensor([[0.3], [-0.5]]).expand(2, 5), atol=1e-3, rtol=0)
    _, others = descend(Adam, valleys, start, 40)
    assert (losses.amin(dim=0) < 1e-3 * others.amin(dim=0)).all()


def test_the_steps_of_adam_fall_linearly() -> None:
    """Under a constant gradient the corrected moments are those of one step, and each step is as long as the rate."""
    method = partial(Adam, end=0.4, steps=8)
    found, _ = descend(method, lambda place: place.sum(dim=1), torch.zeros(1, 1), 10)
    expected = sum(1 - 0.6 * min(step / 8, 1) for step in range(10)) * RATE
    assert float(found) == pytest.approx(-expected, rel=1e-5)


def test_cases_do_not_meet() -> None:
    together, _ = descend(QuasiNewton, valleys, torch.zeros(2, 5), 12)
    alone, _ = descend(QuasiNewton, lambda place: valleys(place.expand(2, 5))[:1], torch.zeros(1, 5), 12)
    torch.testing.assert_close(together[:1], alone)


def test_a_step_uphill_is_taken_back() -> None:
    """The gradient promises a descent, behind which a wall stands."""

    def wall(place: Tensor) -> Tensor:
        return (-place + 50 * (place - 0.12).relu().square()).sum(dim=1)

    found, losses = descend(QuasiNewton, wall, torch.zeros(1, 1), 25)
    assert losses.amax() > 0.1
    assert abs(float(found) - 0.13) < 1e-3


def test_an_objective_that_is_not_finite_is_no_step() -> None:
    def edge(place: Tensor) -> Tensor:
        return torch.where(place > 0.5, torch.nan, (place - 0.45).square()).sum(dim=1)

    _, losses = descend(QuasiNewton, edge, torch.full((1, 1), -0.5), 40)
    assert float(losses[~losses.isnan()].min()) < 1e-4


def test_a_restart_forgets_the_other_objective() -> None:
    """From a low objective to a high one: without a restart every step of the second would be taken back."""
    place = torch.zeros(1, 1, requires_grad=True)
    descent = QuasiNewton([{"params": [place], "lr": RATE}])
    for minimum, offset in ((1.0, 0.0), (-1.0, 100.0)):
        descent.restart()
        for _ in range(15):
            loss = ((place - minimum).square() + offset).sum(dim=1)
            loss.sum().backward()
            descent.step(loss.detach())
        assert abs(float(place.detach()) - minimum) < 1e-2
