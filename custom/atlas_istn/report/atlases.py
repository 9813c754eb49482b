# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""What a report shows of the atlases whose labels were fused: their outlines, where they disagree, which decides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..io.names import is_png
from ..io.results import read_oriented, result_file
from ..pictures.palette import atlas_colour
from ..pictures.planes import Plane
from . import drawing

__all__ = ["AtlasPictures", "AtlasRow", "FusedAtlases", "atlas_rows"]


@dataclass(frozen=True)
class AtlasRow:
    """A row of the table of atlases: its number, its colour, and what its note says."""

    number: int
    colour: str
    note: Mapping[str, Any]


@dataclass(frozen=True)
class AtlasPictures:
    """The atlases in one plane: colour → SVG path in mm of the labels of an atlas, and data URIs."""

    outlines: Mapping[str, str]
    disagreement: str
    winner: str


@dataclass(frozen=True)
class FusedAtlases:
    """The maps of a case, with axes as `read_oriented` turns them.

    Attributes:
        labels: label values of each atlas ``[N, *shape]``.
        agreement: share of the atlases that have the fused label, ``[*shape]``.
        winner: number of the atlas that weighs most, from 1, ``[*shape]``; 0 for none.
    """

    labels: npt.NDArray[Any]
    agreement: npt.NDArray[Any]
    winner: npt.NDArray[Any]

    @classmethod
    def read(cls, folder: Path, report: Mapping[str, Any], dim: int) -> FusedAtlases | None:
        """Read the maps of a case; None where its run wrote none.

        Raises:
            InputError: one cannot be read.
        """
        path = result_file(folder, "agreement")
        if not path.is_file():
            return None
        numbers = range(1, 1 + len(report["atlases"]))
        endings = ("winner", *(f"atlas_{number}" for number in numbers))
        winner, *labels = (read_oriented(result_file(folder, name), dim)[0].numpy().astype(int) for name in endings)
        agreement = read_oriented(path, dim)[0].numpy() / (255 if is_png(path) else 1)
        return cls(np.stack(labels), agreement, winner)

    def draw(self, plane: Plane) -> AtlasPictures:
        """Draw them in a plane."""
        colours = {number: atlas_colour(number) for number in range(1, 1 + len(self.labels))}
        cuts = plane.cut(self.labels)
        return AtlasPictures(
            {colours[number]: drawing.outlines(cut, plane) for number, cut in enumerate(cuts, start=1)},
            drawing.uncertainty(1 - plane.cut(self.agreement)),
            drawing.tinted(plane.cut(self.winner), colours),
        )


def atlas_rows(report: Mapping[str, Any]) -> list[AtlasRow]:
    """Make the table of the atlases of a case, those first that decide most."""
    rows = [
        AtlasRow(number, atlas_colour(number), note) for number, note in enumerate(report.get("atlases", []), start=1)
    ]
    return sorted(rows, key=lambda row: (-row.note.get("wins", 0.0), -row.note["ncc"]))
