# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Trainer handlers: epoch schedules, seeding, the best model, TensorBoard; and the forward pass under autocast."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import Dataset
from monai.transforms import Randomizable
from PIL.Image import Image
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from ..errors import InputError
from ..models.provenance import SETTINGS, save_model
from ..networks import AtlasISTN
from .losses import AtlasISTNLoss
from .pair_loss import PairLoss

__all__ = ["BestModel", "EarlyStop", "EpochSchedule", "EpochSeed", "FiniteWeights", "SameDraws", "TensorBoardLog"]

logger = logging.getLogger(__name__)


class FiniteWeights:
    """Trainer handler that ends a training whose weights are not finite, before anything is made of them.

    Attach it before the handlers that move the atlas, validate and save.

    Args:
        network: the network.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Look at the weights.

        Raises:
            InputError: some are not finite.
        """
        for name, value in self.network.state_dict().items():
            if not bool(value.isfinite().all()):
                raise InputError(
                    f"epoch {engine.state.epoch}: the weights {name} are not finite: the training has diverged. The "
                    "checkpoint of the epoch before is kept. Choose a lower learning_rate."
                )


class EarlyStop:
    """Trainer handler that ends the training when the best model has not been replaced for some validations.

    Attach it after the handlers that validate and that resume.

    Args:
        best: counts the validations; its state is in the checkpoint, so a resumed run stops where it would have.
        patience: validations without improvement.
    """

    def __init__(self, best: BestModel, patience: int) -> None:
        self.best = best
        self.patience = patience

    def attach(self, engine: Engine) -> None:
        """Register with a trainer. A resumed run may have come to its end before."""
        engine.add_event_handler(Events.STARTED | Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """End the training if it is time."""
        if self.best.without_improvement >= self.patience:
            logger.info("no better model in %d validations: training ends", self.best.without_improvement)
            engine.terminate()


class EpochSeed:
    """Sets the random state of each epoch, and the epoch of the loss.

    Seeding every epoch from ``seed + epoch`` makes a resumed run draw the same augmentations and batches as an
    uninterrupted one, without random states in the checkpoint.

    Args:
        loss: its `epoch` is set.
        dataset: training set whose random transforms are seeded; each rank draws its own.
        seed: base seed.
    """

    def __init__(self, loss: nn.Module, dataset: Dataset, seed: int = 0) -> None:
        self.loss = loss
        self.dataset = dataset
        self.seed = seed

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Prepare the epoch that begins (the engine counts from 1)."""
        epoch = engine.state.epoch - 1
        self.loss.epoch = epoch
        torch.manual_seed(self.seed + epoch)
        if isinstance(self.dataset.transform, Randomizable):
            own_seed = (self.seed + epoch) * idist.get_world_size() + idist.get_rank()
            self.dataset.transform.set_random_state(seed=own_seed)


class SameDraws:
    """Validator handler that sets the random state of a dataset, so that each validation sees the same draws.

    Args:
        dataset: its transform draws.
        seed: of the draws.
    """

    def __init__(self, dataset: Dataset, seed: int = 0) -> None:
        self.dataset = dataset
        self.seed = seed

    def attach(self, engine: Engine) -> None:
        """Register with a validator."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self) -> None:
        """Set the state."""
        if isinstance(self.dataset.transform, Randomizable):
            self.dataset.transform.set_random_state(seed=self.seed)


class EpochSchedule(EpochSeed):
    """Sets what depends on the epoch alone: ω, the affine head, and the random state, as `EpochSeed`.

    Args:
        network: its affine head takes part from `affine_start_epoch` on.
        loss: its `epoch` is set.
        dataset: training set whose random transforms are seeded; each rank draws its own.
        affine_start_epoch: first epoch (from 0) with the affine head; a negative number leaves it out altogether.
        seed: base seed.
    """

    def __init__(
        self, network: AtlasISTN, loss: AtlasISTNLoss, dataset: Dataset, affine_start_epoch: int = 0, seed: int = 0
    ) -> None:
        super().__init__(loss, dataset, seed)
        self.network = network
        self.affine_start_epoch = affine_start_epoch

    def __call__(self, engine: Engine) -> None:
        """Prepare the epoch that begins (the engine counts from 1)."""
        super().__call__(engine)
        self.network.affine_gate.fill_(float(0 <= self.affine_start_epoch < engine.state.epoch))


class BestModel:
    """Validator handler that keeps the network's weights whenever the key metric improves, and writes them.

    Its state, weights included, travels in the training checkpoint. The file follows from it: what comes after the last
    epoch starts from the weights kept here, not from a file that may be older or newer.

    Args:
        network: what is saved, as a plain state dict.
        path: the file; it appears whole or not at all.
        settings: what it is trained with, see `model_settings`; for its record.

    Attributes:
        weights: the best so far, on the CPU; empty before the first validation.
    """

    def __init__(self, network: nn.Module, path: str, settings: Mapping[str, Any] | None = None) -> None:
        self.network = network
        self.path = Path(path)
        self.record = {} if settings is None else {SETTINGS: dict(settings)}
        self.metric = float("-inf")
        self.without_improvement = 0
        self.weights: dict[str, Tensor] = {}

    def attach(self, engine: Engine) -> None:
        """Register with a validator whose first metric is the key metric."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Compare, keep and save."""
        metric = float(engine.state.metrics[engine.state.key_metric_name])
        if not metric > self.metric:  # nor what is not a number
            self.without_improvement += 1
            return
        self.metric, self.without_improvement = metric, 0
        self.weights = {name: value.detach().cpu().clone() for name, value in self.network.state_dict().items()}
        if idist.get_rank() == 0:
            logger.info("best model so far (%s %.4f)", engine.state.key_metric_name, metric)
            self.save()

    def save(self) -> None:
        """Write the file: the weights kept, or those of the network where none are."""
        save_model(self.weights or self.network.state_dict(), self.path, self.record)
        logger.info("model saved to %s", self.path)

    def state_dict(self) -> dict[str, Any]:
        """Best metric and weights so far, and the validations since."""
        return {"metric": self.metric, "without_improvement": self.without_improvement, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the best model of an interrupted run."""
        self.metric = state["metric"]
        self.without_improvement = state["without_improvement"]
        self.weights = {name: value.cpu() for name, value in state["weights"].items()}


class TensorBoardLog:
    """Writes losses, schedules and a picture of what is learned after every epoch, and the validation's metrics.

    Args:
        log_dir: folder of the event files.
        loss: its terms are averaged over the epoch.
        validator: engine whose metrics are logged when it has run, label by label too.
        label_names: class index → name, background included.
        pictures: name → what draws the picture.
    """

    def __init__(
        self,
        log_dir: str,
        loss: AtlasISTNLoss | PairLoss,
        validator: Engine | None = None,
        label_names: Mapping[Any, str] | None = None,
        pictures: Mapping[str, Callable[[], Image]] | None = None,
    ) -> None:
        self.pictures = dict(pictures or {})
        self.log_dir = log_dir
        self.loss = loss
        self.validator = validator
        self.labels = [name for index, name in (label_names or {}).items() if int(index) > 0]
        self.sums: dict[str, Tensor] = {}

    def attach(self, engine: Engine) -> None:
        """Register with a trainer; only the first rank writes."""
        if idist.get_rank() > 0:
            return
        self.writer = SummaryWriter(self.log_dir)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._add)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._write)
        engine.add_event_handler(Events.COMPLETED, self.writer.close)
        if self.validator is not None:
            self.validator.add_event_handler(Events.EPOCH_COMPLETED, self._write_metrics, engine)

    def _add(self) -> None:
        for name, value in self.loss.terms.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def _write(self, engine: Engine) -> None:
        epoch = engine.state.epoch
        means = {name: float(total) / engine.state.epoch_length for name, total in self.sums.items()}
        self.sums = {}
        for name, mean in means.items():
            self.writer.add_scalar(f"loss/{name}", mean, epoch)
        for name, value in self.loss.schedules.items():
            self.writer.add_scalar(f"schedule/{name}", value, epoch)
        self.writer.add_scalar(
            "schedule/learning_rate", max(group["lr"] for group in engine.optimizer.param_groups), epoch
        )
        logger.info("epoch %d: %s", epoch, ", ".join(f"{name} {mean:.5f}" for name, mean in means.items()))
        for name, draw in self.pictures.items():
            self.writer.add_image(name, np.asarray(draw()), epoch, dataformats="HWC")

    def _write_metrics(self, validator: Engine, trainer: Engine) -> None:
        for name, value in validator.state.metrics.items():
            self.writer.add_scalar(f"validation/{name}", value, trainer.state.epoch)
        logger.info("validation: %s", ", ".join(f"{n} {v:.4f}" for n, v in validator.state.metrics.items()))
        details = getattr(validator.state, "metric_details", {})
        columns = {name: torch.as_tensor(found).nanmean(dim=0).tolist() for name, found in details.items()}
        for name, values in columns.items():
            for label, value in zip(self.labels, values, strict=False):
                self.writer.add_scalar(f"validation labels/{label}/{name}", value, trainer.state.epoch)
        if len(self.labels) > 1:
            logger.info("validation, label by label:\n%s", _table(self.labels, columns))


def _table(labels: Sequence[str], columns: Mapping[str, Sequence[float]]) -> str:
    """A row for each label, a column for each metric."""
    width = max(map(len, labels))
    head = " " * (width + 2) + "".join(f"  {name:>14}" for name in columns)
    rows = [
        f"  {label:{width}}" + "".join(f"  {values[number]:14.3f}" for values in columns.values())
        for number, label in enumerate(labels)
    ]
    return "\n".join([head, *rows])
