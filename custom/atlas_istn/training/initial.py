# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Fine-tuning: what of another model a training begins with."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..models.loading import read_state
from ..models.provenance import SETTINGS, read_record
from ..networks import AtlasISTN

__all__ = ["InitialWeights"]

logger = logging.getLogger(__name__)

_ATLAS = ("atlas_image", "atlas_labels")
_SAME = ("label_names", "label_values", "spatial_size", "spacing")
"""What two models must have in common for the atlas of one to serve the other."""


class InitialWeights:
    """Takes those weights of another model that fit, and its atlas where labels and grid are the same.

    Args:
        network: takes them.
        path: the model; none begins from scratch.
        settings: of this training, see `model_settings`.

    Attributes:
        atlas: whether the atlas was taken, so that it need not be built from the cases at the start.
    """

    def __init__(self, network: AtlasISTN, path: str | None, settings: Mapping[str, Any]) -> None:
        self.network = network
        self.path = Path(path) if path else None
        self.settings = settings
        self.atlas = False

    def __call__(self) -> None:
        """Load, and log what does not fit.

        Raises:
            InputError: the file cannot be used as a model.
        """
        if self.path is None:
            return
        own, state = self.network.state_dict(), read_state(self.path)
        fitting = {
            name: value
            for name, value in state.items()
            if name in own and own[name].shape == value.shape and name not in _ATLAS
        }
        trained = read_record(self.path).get(SETTINGS, {})
        same = bool(trained) and all(trained.get(name) == self.settings.get(name) for name in _SAME)
        if same and all(_has_atlas(state, own, name) for name in _ATLAS):
            fitting |= {name: state[name] for name in _ATLAS}
            self.atlas = True
        self.network.load_state_dict(fitting, strict=False)
        left = [name for name in own if name not in fitting]
        logger.info("%s: %d of %d weights taken", self.path, len(fitting), len(own))
        if left:
            logger.info("begin anew: %s", ", ".join(left))
        if not self.atlas:
            logger.info("the atlas is built anew: %s has none, or other labels or another grid", self.path)


def _has_atlas(state: Mapping[str, Tensor], own: Mapping[str, Tensor], name: str) -> bool:
    """Whether a model has an atlas of the same shape; that of a U-Net is empty."""
    return name in state and state[name].shape == own[name].shape and bool(state[name].any())
