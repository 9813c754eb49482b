# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""How many epochs fit into a number of hours, by steps that are timed on this machine."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from tqdm import tqdm

from ..errors import InputError
from ..networks import Locator
from ..training.locator import LocatorTraining
from ..workflow.calibration import COPIES, MOST_CASES
from .decide import Decision

__all__ = ["Costs", "decide_length", "measure_costs"]

_STEPS = 4  # that are timed, behind one that is not
_EPOCHS = (10, 2000)
_HOURS = 0.75  # by default
_VALIDATIONS = 6
_BATCH = {2: 10, 3: 2}
_EVALUATIONS = 2  # of the validation list when training is over
_ATLAS_ITERATIONS = 0.4  # of the refinement's, in a rebuild of the atlas


@dataclass(frozen=True)
class Costs:
    """Seconds on this machine.

    Attributes:
        step: of a training step.
        case: to bring one case to the atlas, or to prepare a batch's case.
        refinement: of one case.
        atlas: of the atlas, for each case and epoch.
        locator: of its whole training, where scans are larger than the grid.
    """

    step: float
    case: float
    refinement: float
    atlas: float
    locator: float = 0.0


def batch_size(dim: int, training: int) -> int:
    """Return how many cases a batch has."""
    return max(1, min(_BATCH[dim], training // 2))


def measure_costs(train_config: Path, settings: Mapping[str, Any], batch: int, extent: Sequence[float]) -> Costs:
    """Time training steps, forward passes, a whole refinement (random images), and steps of the locator's training.

    Args:
        train_config: ``train.yaml``.
        settings: what the plan changes of it.
        batch: cases of a batch.
        extent: of a usual scan along each axis of the grid, mm.

    Raises:
        InputError: a step needs more memory than there is.
    """
    parser = ConfigParser()
    parser.read_config(str(train_config))
    parser.update({**settings, "batch_size": batch, "num_workers": 0})
    # The refinement of a random case may settle at once; that of a true one hardly ever does.
    parser["refinement#patience"] = parser["refine_iterations"]
    network, loss, optimizer = (parser.get_parsed_content(name) for name in ("network", "loss", "optimizer"))
    joint, refinement = parser.get_parsed_content("train#network"), parser.get_parsed_content("refinement")
    augment = parser.get_parsed_content("train#augmentation")
    size, classes = settings["spatial_size"], len(settings["label_names"])
    device = next(network.parameters()).device
    image = torch.rand(batch, settings.get("in_channels", 1), *size)
    label = torch.nn.functional.one_hot(_blocks(size, classes), classes).movedim(-1, 0).float()
    network.atlas_labels.copy_(label)

    def step() -> None:
        cases = [augment({"image": one, "label": label}) for one in image]
        inputs, targets = (torch.stack([torch.as_tensor(case[key]) for case in cases]) for key in ("image", "label"))
        optimizer.zero_grad()
        loss(joint(inputs.to(device)), targets.to(device)).backward()
        optimizer.step()

    def one_pass() -> None:
        with torch.no_grad():
            joint(image.to(device))

    try:
        with tqdm(total=3, desc="timing", leave=False) as progress:
            seconds = []
            for work in (step, one_pass, lambda: refinement.infer(image[:1].to(device), network)):
                seconds.append(_timed(work, _STEPS if work is step else 1))
                progress.update()
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise InputError(
            f"a training step on a grid of {size} needs more memory than there is. Train on another machine."
        ) from error
    locator = parser.get_parsed_content("locator")
    search = 0.0 if locator is None else _locator_seconds(locator, extent, parser["locator_iterations"], image.shape[1])
    case = seconds[1] / batch
    return Costs(seconds[0], case, seconds[2], case / parser["atlas_parts"], search)


def _locator_seconds(locator: Locator, extent: Sequence[float], iterations: int, channels: int) -> float:
    """Seconds of the training of a locator, by some steps of it with random scans."""
    shape = [max(4, round(mm / size)) for mm, size in zip(extent, locator.spacing, strict=True)]
    foreground = torch.zeros(1, *shape)
    foreground[..., : max(2, shape[-1] // 3)] = 1.0
    centre = torch.tensor([n / 3 * size for n, size in zip(shape, locator.spacing, strict=True)])
    scan = {"image": torch.rand(channels, *shape), "foreground": foreground, "centre": centre}
    training = LocatorTraining(copy.deepcopy(locator), [], dict, "", iterations=_STEPS, quiet=True)
    with torch.random.fork_rng():
        return _timed(lambda: training.optimise([scan] * 2), 1) / _STEPS * iterations


def _blocks(size: list[int], classes: int) -> torch.Tensor:
    """Class indices in layers, so that every class is there."""
    layer = torch.arange(size[0]) * (classes + 1) // size[0]
    return layer.clamp(max=classes - 1).reshape(-1, *[1] * (len(size) - 1)).expand(*size)


def _timed(work: Callable[[], Any], times: int) -> float:
    work()
    begin = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - begin) / times


def decide_length(costs: Costs, hours: float | None, training: int, validation: int, batch: int) -> Decision:
    """Choose the number of epochs that fills the hours, with all that comes before and after them.

    Args:
        costs: on this machine.
        hours: stated by the user; without, three quarters of one, or what ten epochs take.
        training: number of cases.
        validation: number of cases.
        batch: cases of a batch.

    Raises:
        InputError: the hours are not enough for ten epochs.
    """
    refinements: float = (_VALIDATIONS + _EVALUATIONS) * validation
    refinements += 2 * (1 + COPIES) * min(validation, MOST_CASES) + 2 * _ATLAS_ITERATIONS * training
    around = refinements * costs.refinement + training * costs.case + costs.locator
    epoch = max(training // batch, 1) * costs.step + training * costs.atlas
    least = (around + _EPOCHS[0] * epoch) / 3600
    epochs = int((3600 * (max(_HOURS, 1.01 * least) if hours is None else hours) - around) / epoch)
    if epochs < _EPOCHS[0]:
        raise InputError(
            f"--hours {hours:g}: {_EPOCHS[0]} epochs and what comes behind them take {least:.2g} hours here. "
            "Allow more, or train where there is a GPU."
        )
    epochs = min(epochs, _EPOCHS[1])
    took = (around + epochs * epoch) / 3600
    search = ", locator" if costs.locator else ""
    reason = (
        f"{took:.2g} hours on this machine: {costs.step:.2g} s a step of {batch}, {costs.refinement:.2g} s a "
        f"refinement, {around / 60:.1f} min for validation, final atlas{search} and calibration"
    )
    settings = {"batch_size": batch, "max_epochs": epochs, "val_interval": max(1, epochs // _VALIDATIONS)}
    return Decision("length", f"{epochs} epochs, batches of {batch}", reason, settings)
