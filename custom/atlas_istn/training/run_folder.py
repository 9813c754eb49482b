# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""The output folder of a training: of one run at a time, and no earlier run is lost in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ignite.distributed as idist

from ..errors import InputError
from ..io.files import remove_parts
from ..io.locks import hold_folder, release_folder
from ..settings import binding_settings, differences, running_config
from .checkpoint import newest_checkpoint, read_checkpoint

__all__ = ["RunFolder"]


class RunFolder:
    """The folder of a training run, opened before anything is read or written.

    Args:
        output_dir: folder of all that the run writes.
        ckpt_dir: folder of its checkpoints.
        model_path: its model.
        resume: go on from the newest checkpoint.
        overwrite: replace the run that is there.

    Attributes:
        settings: what a resumed run must have in common with the one before, see `binding_settings`.
    """

    def __init__(
        self, output_dir: str, ckpt_dir: str, model_path: str, resume: bool = False, overwrite: bool = False
    ) -> None:
        self.output_dir = Path(output_dir)
        self.ckpt_dir = Path(ckpt_dir)
        self.model_path = Path(model_path)
        self.resume = resume
        self.overwrite = overwrite
        self.settings: dict[str, Any] = {}

    def open(self) -> None:
        """Hold the folder, look whether this run may write into it, and remove what a killed run left half-written.

        The processes of one ``torchrun`` are one run, for which the first of them does so.

        Raises:
            InputError: another run is at work there, an earlier one would be lost, or it had other settings.
        """
        self.settings.update(binding_settings(running_config()))
        if idist.get_rank() > 0:
            return
        hold_folder(self.output_dir)
        try:
            self._check()
        except InputError:
            self.close()
            raise
        pictures = self.output_dir.glob("*_evolution")
        for folder in (self.output_dir, self.ckpt_dir, self.model_path.parent, *pictures):
            remove_parts(folder)
        if self.overwrite:  # curves of two runs would be drawn as one
            for events in (self.output_dir / "tensorboard").glob("events.out.tfevents.*"):
                events.unlink()

    def close(self) -> None:
        """Let other runs write into the folder."""
        release_folder(self.output_dir)

    def _check(self) -> None:
        checkpoint = newest_checkpoint(self.ckpt_dir)
        if self.resume and self.overwrite:
            raise InputError("resume and overwrite: expected at most one of them to be true. Leave one of them out.")
        if self.resume and checkpoint:
            self._check_settings(checkpoint)
            return
        found = checkpoint or (self.model_path if self.model_path.exists() else None)
        if found and not self.overwrite:
            going_on = "--resume true goes on with it" if checkpoint else "there is no checkpoint to go on from"
            raise InputError(
                f"{found}: a run has written into this folder already, and would be lost. Choose another output_dir; "
                f"{going_on}, --overwrite true replaces it."
            )

    def _check_settings(self, checkpoint: Path) -> None:
        before = read_checkpoint(checkpoint).get("settings")
        if before is None:
            raise InputError(
                f"{checkpoint}: written by an older version, which does not say with which settings. Resume with that "
                "version, or choose another output_dir."
            )
        if others := differences(before, self.settings):
            raise InputError(
                f"{checkpoint}: the run to be resumed had other settings:\n{others}\nResume with its settings, or "
                "choose another output_dir."
            )
