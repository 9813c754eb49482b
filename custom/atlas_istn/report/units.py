# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""How the report calls and counts the sizes of labels."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Units"]


@dataclass(frozen=True)
class Units:
    """How sizes are called and counted.

    Attributes:
        measure: of labels, ``"volume"`` or ``"area"``.
        size: its unit.
        length: unit of distances.
        scale: sizes of these units per product of the voxel's sides.
        decimals: of a size in the table.
    """

    measure: str
    size: str
    length: str
    scale: float
    decimals: int

    @classmethod
    def of(cls, dim: int, length: str) -> Units:
        """Those of a run with lengths in this unit."""
        if length == "pixels":
            return cls("area", "pixels", "pixels", 1.0, 0)
        return cls("volume", "ml", "mm", 1e-3, 2) if dim == 3 else cls("area", "cm²", "mm", 1e-2, 2)
