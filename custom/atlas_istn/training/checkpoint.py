# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Everything that a training needs to go on, saved after each epoch."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint
from torch.optim.lr_scheduler import LambdaLR

from ..errors import InputError
from ..io.files import save_tensors, write_whole
from ..models.provenance import check_sums

__all__ = ["TrainingCheckpoint", "newest_checkpoint", "read_checkpoint"]

logger = logging.getLogger(__name__)

_NAME = re.compile(r"checkpoint_(\d+)\.pt")


def newest_checkpoint(folder: str | Path) -> Path | None:
    """Return the checkpoint with the highest epoch in a folder, or None where there is none."""
    return max(_checkpoints(folder), key=_epoch, default=None)


def _checkpoints(folder: str | Path) -> list[Path]:
    return [path for path in Path(folder).glob("checkpoint_*.pt") if _NAME.fullmatch(path.name)]


def _epoch(path: Path) -> int:
    return int(path.stem.rpartition("_")[2])


def read_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint.

    Raises:
        InputError: it is damaged, or no checkpoint.
    """
    check_sums(path)
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # what is no checkpoint fails in many ways
        raise _unfit(path, error) from error
    return state


def _unfit(path: Path, error: Exception) -> InputError:
    reason = str(error).partition("\n")[0]
    return InputError(
        f"{path} is damaged or does not fit this configuration ({reason}). Resume with the configuration that wrote "
        "it, or choose another output_dir."
    )


class TrainingCheckpoint:
    """Trainer handler that saves everything a run needs to go on, before the first epoch and after each.

    Only the newest checkpoint, ``checkpoint_N.pt`` of N epochs, is kept. It also holds the best model so far and the
    settings of the run, and nothing that comes behind the last epoch changes it: so whatever was interrupted, a resumed
    run repeats it from there. A run with more epochs goes on as if it had had them from the beginning; schedules that
    look to the end, such as that of the learning rate, are from there on those of the longer run.

    Args:
        ckpt_dir: folder of the checkpoints.
        objects: name → object with ``state_dict``; the trainer adds itself.
        resume: continue from the newest checkpoint in the folder.
        settings: what a resumed run has to have in common with this one, see `RunFolder`; they are saved too.
    """

    def __init__(
        self, ckpt_dir: str, objects: Mapping[str, Any], resume: bool = False, settings: Mapping[str, Any] | None = None
    ) -> None:
        self.ckpt_dir = Path(ckpt_dir)
        self.objects = dict(objects)
        self.resume = resume
        self.settings = settings

    def attach(self, engine: Engine) -> None:
        """Register with a trainer; every rank resumes, the first one saves."""
        self.objects["trainer"] = engine
        engine.add_event_handler(Events.STARTED, self._start)
        if idist.get_rank() == 0:
            engine.add_event_handler(Events.EPOCH_COMPLETED, self._save)

    def _start(self, engine: Engine) -> None:
        path = newest_checkpoint(self.ckpt_dir) if self.resume else None
        if path is not None:
            self._load(engine, path)
        idist.barrier()  # all ranks have looked
        if idist.get_rank() > 0:
            return
        if path is not None:
            self._remove_all_but(path)
        else:
            # What another run left goes first: its later epochs would be taken for this run's.
            self._remove_all_but(None)
            self._save(engine)

    def _save(self, engine: Engine) -> None:
        state: dict[str, Any] = {name: value.state_dict() for name, value in self.objects.items()}
        state["settings"] = dict(self.settings or {})
        path = self.ckpt_dir / f"checkpoint_{engine.state.epoch}.pt"
        write_whole(path, lambda part: save_tensors(state, part))
        self._remove_all_but(path)

    def _remove_all_but(self, kept: Path | None) -> None:
        for path in _checkpoints(self.ckpt_dir):
            if path != kept:
                path.unlink()

    def _reschedule(self) -> None:
        """Set the rates that the schedule of this run has here, whose end may be another than that of the saved one."""
        scheduler = self.objects.get("lr_scheduler")
        if isinstance(scheduler, LambdaLR):
            groups = zip(scheduler.optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
            for group, base, share in groups:
                group["lr"] = base * share(scheduler.last_epoch)

    def _load(self, engine: Engine, path: Path) -> None:
        state = read_checkpoint(path, engine.state.device)
        max_epochs, epoch_length = engine.state.max_epochs, engine.state.epoch_length
        try:
            Checkpoint.load_objects(self.objects, state)
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise _unfit(path, error) from error
        # These are this run's own, also where the data set has grown.
        engine.state.max_epochs, engine.state.epoch_length = max_epochs, epoch_length
        engine.state.iteration = engine.state.epoch * epoch_length
        self._reschedule()
        logger.info("resumed after epoch %d of %d from %s", engine.state.epoch, max_epochs, path)
        if engine.state.epoch >= max_epochs:
            logger.info("all epochs are done: raise max_epochs to train on")
