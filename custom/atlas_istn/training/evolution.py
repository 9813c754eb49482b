# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Handler that keeps pictures of the atlas as it changes during training."""

from __future__ import annotations

from pathlib import Path

import ignite.distributed as idist
from ignite.engine import Engine, Events

from ..io.files import write_whole
from ..networks import AtlasISTN
from ..pictures.atlas_evolution import FOLDER, atlas_frame, draw_evolution, find_frames, frame_name

__all__ = ["AtlasEvolution"]


class AtlasEvolution:
    """Trainer handler that saves a picture of the atlas after every epoch, and an animation at the end.

    The frames lie in ``output_dir/atlas_evolution`` as ``epoch_0001.png``, and so on; the one after the rebuilds of the
    final atlas is ``final.png``. A resumed run goes on with the frames of the run before it.

    Args:
        network: holds the atlas.
        output_dir: the folder of the training run.
    """

    def __init__(self, network: AtlasISTN, output_dir: str) -> None:
        self.network = network
        self.output_dir = Path(output_dir)

    def attach(self, engine: Engine) -> None:
        """Register with a trainer, behind the handlers that change the atlas; only the first rank draws."""
        if idist.get_rank() == 0:
            engine.add_event_handler(Events.EPOCH_COMPLETED, self._save_epoch)
            engine.add_event_handler(Events.COMPLETED, self._finish)

    def _save_epoch(self, engine: Engine) -> None:
        name = frame_name(engine.state.epoch)
        for path in find_frames(self.output_dir / FOLDER):
            if path.name > name:  # of an earlier run that went farther; "final" comes behind every epoch
                path.unlink()
        self._save(name)

    def _finish(self) -> None:
        self._save("final.png")
        draw_evolution(self.output_dir)

    def _save(self, name: str) -> None:
        frame = atlas_frame(self.network.atlas_image[0, 0], self.network.atlas_labels[0], self.network.spacing)
        write_whole(self.output_dir / FOLDER / name, frame.save)
