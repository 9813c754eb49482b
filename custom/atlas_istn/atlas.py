# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Construction of the population atlas during training (Atlas-ISTN, eq. 15-16)."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from torch import Tensor

from .networks import AtlasISTN

__all__ = ["AtlasBuilder"]

logger = logging.getLogger(__name__)


class AtlasBuilder:
    """Trainer handler that initialises the atlas and moves it at the end of every epoch.

    At the start the atlas (image and labelmap) is the mean of the undeformed training cases. After every epoch each
    unaugmented case is warped to atlas space in one streaming pass, and ``atlas ← (1 − η) atlas + η mean(z ∘ Φ)``.
    Memory does not grow with the cohort. Under DDP every rank warps its share and the sums are reduced, so all ranks
    hold the same atlas.

    Args:
        network: the network whose atlas buffers are updated.
        data_loader: unaugmented training cases as ``{"image", "label"}`` batches, each case once.
        rate: η.
        amp: run the convolutions of the pass in bf16.
    """

    def __init__(
        self, network: AtlasISTN, data_loader: Iterable[Mapping[str, Any]], rate: float = 0.01, amp: bool = False
    ) -> None:
        self.network = network
        self.data_loader = data_loader
        self.rate = rate
        self.amp = amp

    def attach(self, engine: Engine) -> None:
        """Register with a trainer. A resumed run brings its atlas along and is not initialised again."""
        # Not at the start of the run: a checkpoint may be loaded there, after this handler's turn.
        engine.add_event_handler(Events.EPOCH_STARTED(once=1), self.initialise)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.update)

    def initialise(self) -> None:
        """Set the atlas to the mean of the undeformed cases."""
        image, labels = self._mean(deform=False)
        self.network.atlas_image.copy_(image)
        self.network.atlas_labels.copy_(labels)

    def update(self) -> None:
        """Move the atlas towards the mean of the cases warped to atlas space."""
        image, labels = self._mean(deform=True)
        self.network.atlas_image.lerp_(image, self.rate)
        self.network.atlas_labels.lerp_(labels, self.rate)

    @torch.no_grad()
    def _mean(self, deform: bool) -> tuple[Tensor, Tensor]:
        network = self.network
        training = network.training
        network.eval()
        device = network.atlas_labels.device
        channels = network.atlas_image.shape[1]
        # Image and labels are warped together, so every case is resampled once.
        total = torch.zeros_like(torch.cat([network.atlas_image, network.atlas_labels], dim=1)[0])
        count = torch.zeros((), device=device)
        for batch in self.data_loader:
            image, labels = torch.as_tensor(batch["image"]).to(device), torch.as_tensor(batch["label"]).to(device)
            case = torch.cat([image, labels], dim=1)
            if deform:
                with torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.amp):
                    _, transform = network.predict(image)
                case = transform.to_atlas(case)
            total += case.sum(dim=0)
            count += len(case)
        network.train(training)
        mean = idist.all_reduce(total) / idist.all_reduce(count)
        return mean[:channels].unsqueeze(0), mean[channels:].unsqueeze(0)
