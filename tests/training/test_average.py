# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.

from __future__ import annotations

import copy

import pytest
import torch
from ignite.engine import Engine, Events
from torch import nn

from atlas_istn.training.average import WeightAverage

STEPS, EPOCHS = 7, 3


def engine_of(model: nn.Linear, average: WeightAverage | None) -> Engine:
    """A trainer whose steps depend on the weights that they find, and on nothing else that they keep."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def step(_: Engine, number: int) -> None:
        optimizer.zero_grad()
        model(torch.full((1, 3), 1.0 + number % 3)).square().sum().backward()
        optimizer.step()

    engine = Engine(step)
    if average is not None:
        average.attach(engine)
    return engine


def network() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def plain_weights() -> list[torch.Tensor]:
    """The weights behind each step of a training without an average."""
    model, found = network(), []
    engine = engine_of(model, None)
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: found.append(model.weight.detach().clone()))
    engine.run(range(STEPS), EPOCHS)
    return found


@pytest.mark.parametrize("decay", [0.3, 0.995])
def test_the_network_holds_the_average_between_the_epochs_and_steps_know_nothing_of_it(decay: float) -> None:
    model, found = network(), []
    expected = model.weight.detach().clone()
    engine = engine_of(model, WeightAverage(model, decay))
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: found.append(model.weight.detach().clone()))
    engine.run(range(STEPS), EPOCHS)
    for number, weight in enumerate(plain_weights(), start=1):
        rate = min(decay, (1 + number) / (10 + number))
        expected = rate * expected + (1 - rate) * weight
        if number % STEPS == 0:
            torch.testing.assert_close(found[number // STEPS - 1], expected)


def test_it_goes_on_from_what_was_saved_between_two_epochs() -> None:
    whole = network()
    average = WeightAverage(whole)
    engine_of(whole, average).run(range(STEPS), 1)
    resumed = copy.deepcopy(whole)
    again = WeightAverage(resumed)
    again.load_state_dict(copy.deepcopy(average.state_dict()))
    for model, handler in ((whole, average), (resumed, again)):
        engine_of(model, handler).run(range(STEPS), 1)
    assert torch.equal(whole.weight, resumed.weight)
    assert not torch.equal(again.other[0], resumed.weight)
