# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Handlers that keep pictures of what a training learns, epoch by epoch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ignite.distributed as idist
from ignite.engine import Engine, Events
from PIL.Image import Image

from ..io.files import write_whole
from ..networks import AtlasISTN
from ..pictures.atlas_evolution import FOLDER, atlas_picture, draw_evolution, find_frames, frame_name

__all__ = ["AtlasEvolution", "Evolution"]


class Evolution:
    """Trainer handler that saves a picture after every epoch, and an animation at the end.

    The frames lie in ``output_dir/NAME`` as ``epoch_0001.png``, and so on; the one after whatever follows the last
    epoch is ``final.png``. A resumed run goes on with the frames of the run before it.

    Args:
        picture: draws what is learned.
        output_dir: the folder of the training run.
        name: of the folder of the frames, and of the animation.
    """

    def __init__(self, picture: Callable[[], Image], output_dir: str, name: str) -> None:
        self.picture = picture
        self.output_dir = Path(output_dir)
        self.name = name

    def attach(self, engine: Engine) -> None:
        """Register with a trainer, behind the handlers that change the atlas; only the first rank draws."""
        if idist.get_rank() == 0:
            engine.add_event_handler(Events.EPOCH_COMPLETED, self._save_epoch)
            engine.add_event_handler(Events.COMPLETED, self._finish)

    def _save_epoch(self, engine: Engine) -> None:
        name = frame_name(engine.state.epoch)
        for path in find_frames(self.output_dir / self.name):
            if path.name > name:  # of an earlier run that went farther; "final" comes behind every epoch
                path.unlink()
        self._save(name)

    def _finish(self) -> None:
        self._save("final.png")
        draw_evolution(self.output_dir, name=self.name)

    def _save(self, name: str) -> None:
        frame = self.picture()
        write_whole(self.output_dir / self.name / name, frame.save)


class AtlasEvolution(Evolution):
    """Trainer handler that keeps pictures of the atlas.

    Args:
        network: holds the atlas.
        output_dir: the folder of the training run.
    """

    def __init__(self, network: AtlasISTN, output_dir: str) -> None:
        super().__init__(lambda: atlas_picture(network), output_dir, FOLDER)
