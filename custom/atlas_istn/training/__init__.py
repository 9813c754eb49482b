# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Trainer handlers, losses, and the construction of the atlas."""

from __future__ import annotations

from .checkpoint import TrainingCheckpoint
from .handlers import BestModel, EarlyStop, EpochSchedule, TensorBoardLog

__all__ = ["BestModel", "EarlyStop", "EpochSchedule", "TensorBoardLog", "TrainingCheckpoint"]
