# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""The ids of the configurations: one table of what each may be, and the check of a run's settings against it."""

from __future__ import annotations

from .check import (
    begin,
    binding_settings,
    check_settings,
    differences,
    different,
    model_settings,
    named,
    parts_dir,
    read,
    refinement_settings,
    running_config,
    warp_settings,
)
from .table import SETTINGS, Setting

__all__ = [
    "SETTINGS",
    "Setting",
    "begin",
    "binding_settings",
    "check_settings",
    "differences",
    "different",
    "model_settings",
    "named",
    "parts_dir",
    "read",
    "refinement_settings",
    "running_config",
    "warp_settings",
]
