# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""What it took to give a labelmap the topology that it should have."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["STEPS", "TopologyNote"]

STEPS = ("none", "lambda", "supersample", "correction")
"""What may be needed, from the least to the most."""


class TopologyNote(NamedTuple):
    """What was done to a labelmap for the sake of its topology, and whether that helped.

    Attributes:
        step: the last of `STEPS` that was needed.
        kept: whether the labelmap has the topology wanted.
        voxels_changed: how many voxels were relabelled.
    """

    step: str = "none"
    kept: bool = True
    voxels_changed: int = 0

    def then(self, other: TopologyNote) -> TopologyNote:
        """Return both, one after the other, in one note."""
        step = max(self.step, other.step, key=STEPS.index)
        return TopologyNote(step, self.kept and other.kept, self.voxels_changed + other.voxels_changed)
