# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Trainer handlers: epoch schedules, seeding, the best model, TensorBoard; and the forward pass under autocast."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint, DiskSaver, global_step_from_engine
from monai.data import Dataset
from monai.transforms import Randomizable
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from ..errors import InputError
from ..io.files import write_whole
from ..models.provenance import save_model
from ..networks import AtlasISTN
from ..pictures.atlas_evolution import atlas_frame
from .losses import AtlasISTNLoss

__all__ = ["BestModel", "EarlyStop", "EpochSchedule", "TensorBoardLog", "TrainingCheckpoint", "named"]

logger = logging.getLogger(__name__)


def named(handler: Any) -> Any:
    """Return a handler that has an id of its own, for a list of handlers in which MONAI wants no references."""
    return handler


class TrainingCheckpoint:
    """Trainer handler that saves everything a run needs to go on after each epoch, and resumes from it.

    Only the newest checkpoint, ``checkpoint_epoch=N.pt``, is kept; files are written atomically by Ignite.

    Args:
        ckpt_dir: folder of the checkpoints.
        objects: name → object with ``state_dict``; the trainer adds itself.
        resume: continue from the newest checkpoint in the folder.
    """

    def __init__(self, ckpt_dir: str, objects: Mapping[str, Any], resume: bool = False) -> None:
        self.ckpt_dir = Path(ckpt_dir)
        self.objects = dict(objects)
        self.resume = resume

    def attach(self, engine: Engine) -> None:
        """Register with a trainer; every rank resumes, the first one saves."""
        self.objects["trainer"] = engine
        if self.resume:
            engine.add_event_handler(Events.STARTED, self._load)
        if idist.get_rank() == 0:
            saver = DiskSaver(str(self.ckpt_dir), require_empty=False)
            names = {"global_step_transform": global_step_from_engine(engine), "filename_prefix": ""}
            checkpoint = Checkpoint(self.objects, saver, n_saved=None, **names)
            engine.add_event_handler(Events.EPOCH_COMPLETED, checkpoint)
            engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: self._remove_others(checkpoint))
            engine.add_event_handler(Events.COMPLETED, self._save_best)

    def _save_best(self) -> None:
        """What came after the last epoch may have found a better model: a longer, resumed run has to know its score."""
        path = self.newest()
        if path is not None and "best" in self.objects:
            state = torch.load(path, map_location="cpu", weights_only=True)
            state["best"] = self.objects["best"].state_dict()
            write_whole(path, lambda part: torch.save(state, part))

    def _remove_others(self, checkpoint: Checkpoint) -> None:
        """Keep the file just written alone. Ignite would remove the old one first, and an interruption lose both."""
        for path in self.ckpt_dir.glob("checkpoint_*.pt"):
            if path.name != Path(checkpoint.last_checkpoint).name:
                path.unlink()

    def newest(self) -> Path | None:
        """The checkpoint with the highest epoch, or None where there is none."""
        found = self.ckpt_dir.glob("checkpoint_*.pt")
        return max(found, key=lambda path: int(path.stem.rpartition("_")[2]), default=None)

    def _load(self, engine: Engine) -> None:
        path = self.newest()
        if path is None:
            logger.info("nothing to resume in %s: training starts from the beginning", self.ckpt_dir)
            return
        max_epochs = engine.state.max_epochs
        try:
            state = torch.load(path, map_location=engine.state.device, weights_only=True)
            Checkpoint.load_objects(self.objects, state)
        except (RuntimeError, ValueError, KeyError, EOFError, UnpicklingError) as error:
            reason = str(error).partition("\n")[0]
            raise InputError(
                f"{path} is damaged or does not fit this configuration ({reason}). Resume with the configuration "
                "that wrote it, or choose another output_dir."
            ) from error
        engine.state.max_epochs = max_epochs
        logger.info("resumed after epoch %d of %d from %s", engine.state.epoch, max_epochs, path)
        if engine.state.epoch >= max_epochs:
            logger.info("all epochs are done: raise max_epochs to train on")


class EarlyStop:
    """Trainer handler that ends the training when the best model has not been replaced for some validations.

    Attach it after the handler that validates.

    Args:
        best: counts the validations; its state is in the checkpoint, so a resumed run stops where it would have.
        patience: validations without improvement.
    """

    def __init__(self, best: BestModel, patience: int) -> None:
        self.best = best
        self.patience = patience

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """End the training if it is time."""
        if self.best.without_improvement >= self.patience:
            logger.info("no better model in %d validations: training ends", self.best.without_improvement)
            engine.terminate()


class EpochSchedule:
    """Sets what depends on the epoch alone: ω, the affine head, and the random state.

    Seeding every epoch from ``seed + epoch`` makes a resumed run draw the same augmentations and batches as an
    uninterrupted one, without random states in the checkpoint.

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
        self.network = network
        self.loss = loss
        self.dataset = dataset
        self.affine_start_epoch = affine_start_epoch
        self.seed = seed

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Prepare the epoch that begins (the engine counts from 1)."""
        epoch = engine.state.epoch - 1
        self.loss.epoch = epoch
        self.network.affine_gate.fill_(float(0 <= self.affine_start_epoch <= epoch))
        torch.manual_seed(self.seed + epoch)
        if isinstance(self.dataset.transform, Randomizable):
            own_seed = (self.seed + epoch) * idist.get_world_size() + idist.get_rank()
            self.dataset.transform.set_random_state(seed=own_seed)


class BestModel:
    """Validator handler that writes the network's weights whenever the key metric improves.

    Its state travels in the training checkpoint, so a resumed run does not replace a better model by a worse one.

    Args:
        network: what is saved, as a plain state dict.
        path: the file; it appears whole or not at all.
    """

    def __init__(self, network: AtlasISTN, path: str) -> None:
        self.network = network
        self.path = Path(path)
        self.metric = float("-inf")
        self.without_improvement = 0

    def attach(self, engine: Engine) -> None:
        """Register with a validator whose first metric is the key metric."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Compare and save."""
        metric = float(engine.state.metrics[engine.state.key_metric_name])
        if metric <= self.metric:
            self.without_improvement += 1
            return
        self.metric, self.without_improvement = metric, 0
        if idist.get_rank() > 0:
            return
        logger.info("best model so far (%s %.4f)", engine.state.key_metric_name, metric)
        self.save()

    def save(self) -> None:
        """Write the file, whatever the metric."""
        save_model(self.network.state_dict(), self.path)
        logger.info("model saved to %s", self.path)

    def state_dict(self) -> dict[str, Any]:
        """Best metric so far, and the validations since."""
        return {"metric": self.metric, "without_improvement": self.without_improvement}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the best metric of an interrupted run."""
        self.metric = state["metric"]
        self.without_improvement = state["without_improvement"]


class TensorBoardLog:
    """Writes losses, schedules and pictures of the atlas after every epoch, and the validation's metrics.

    Args:
        log_dir: folder of the event files.
        loss: its terms are averaged over the epoch.
        validator: engine whose metrics are logged when it has run.
    """

    def __init__(self, log_dir: str, loss: AtlasISTNLoss, validator: Engine | None = None) -> None:
        self.log_dir = log_dir
        self.loss = loss
        self.validator = validator
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
        self.writer.add_scalar("schedule/omega", self.loss.omega, epoch)
        self.writer.add_scalar("schedule/learning_rate", engine.optimizer.param_groups[0]["lr"], epoch)
        logger.info("epoch %d: %s", epoch, ", ".join(f"{name} {mean:.5f}" for name, mean in means.items()))
        network = self.loss.network
        if network.stn is not None:
            frame = atlas_frame(network.atlas_image[0, 0], network.atlas_labels[0], network.spacing)
            self.writer.add_image("atlas", np.asarray(frame), epoch, dataformats="HWC")

    def _write_metrics(self, validator: Engine, trainer: Engine) -> None:
        for name, value in validator.state.metrics.items():
            self.writer.add_scalar(f"validation/{name}", value, trainer.state.epoch)
        logger.info("validation: %s", ", ".join(f"{n} {v:.4f}" for n, v in validator.state.metrics.items()))
