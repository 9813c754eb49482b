# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""What an inferer yields for a batch, on the model's grid; everything between our modules travels in it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from ..spatial import Transform
from ..topology import TopologyNote

__all__ = ["AtlasMaps", "AtlasNote", "Course", "Result"]


class AtlasNote(NamedTuple):
    """What became of one of several atlases.

    Attributes:
        atlas: its name.
        ncc: how alike it is to the image, behind its registration, by correlation.
        dice: of its labels with the fused ones, mean over labels.
        wins: share of the voxels where atlases disagree at which it weighs more than any other.
        folded_fraction: share of voxels at which its map folds.
    """

    atlas: str
    ncc: float
    dice: float
    wins: float
    folded_fraction: float


@dataclass(frozen=True)
class AtlasMaps:
    """Where the atlases of a batch agree, and which of them decides.

    Attributes:
        labels: class indices of each atlas, warped, ``[B, N, *shape]``.
        agreement: share of the atlases that have the fused label, ``[B, 1, *shape]``.
        winner: number of the atlas that weighs most, from 1 in the order of the notes, ``[B, 1, *shape]``; 0 where all
            agree, or where several weigh as much.
    """

    labels: Tensor
    agreement: Tensor
    winner: Tensor

    def case(self, index: int) -> AtlasMaps:
        """Return one case, as a batch of one."""
        one = slice(index, index + 1)
        return AtlasMaps(self.labels[one], self.agreement[one], self.winner[one])


@dataclass(frozen=True)
class Course:
    """How the refinement of a batch went.

    Attributes:
        target: what the atlas was registered to, ``[B, Nc, *shape]``: the ITN's output sharpened, or less of it where
            `trust` is low.
        trust: how far the ITN was believed, from 0 to 1, ``[B]``.
        loss: objective L* of the transform, ``[B]``.
        curve: objective per iteration and case, ``[K + 1, B]``; row 0 is the 1-pass.
        iterations: until each case had settled, ``[B]``.
        disagreement: 1 − Dice of the ITN's labels and the stiffly moved atlas, ``[B]``, by which they are trusted; NaN
            where the target was not to be doubted.
    """

    target: Tensor
    trust: Tensor
    loss: Tensor
    curve: Tensor
    iterations: Tensor
    disagreement: Tensor

    def case(self, index: int) -> Course:
        """Return one case, as a batch of one."""
        one = slice(index, index + 1)
        return Course(
            self.target[one],
            self.trust[one],
            self.loss[one],
            self.curve[:, one],
            self.iterations[one],
            self.disagreement[one],
        )


_OF_EACH = ("segmentation", "prediction", "one_pass", "transform", "topology", "ensemble", "atlases", "adapted")


@dataclass(frozen=True)
class Result:
    """What an inferer yields for a batch of B images.

    Attributes:
        segmentation: soft labelmap ``[B, Nc, *shape]`` of the full method: the warped atlas, or the ITN's output where
            there is no atlas.
        seconds: wall time per case, network included.
        prediction: the ITN's output ŷ, ``[B, Nc, *shape]``, where it is a result beside the segmentation.
        one_pass: labelmap of the 1-pass, ``[B, Nc, *shape]``, likewise.
        transform: the map between atlas and subjects that `segmentation` comes from, if there is one.
        course: of the refinement, if there was one.
        topology: per case, of whoever looked after it; else empty.
        ensemble: mean of the soft labelmaps of several refinements, ``[B, Nc, *shape]``. It need not have the atlas's
            topology: it is for uncertainty.
        atlases: per case, of each atlas where several were fused.
        maps: of these, if asked for.
        adapted: per case, whether the ITN was adapted to it; else empty.
    """

    segmentation: Tensor
    seconds: float
    prediction: Tensor | None = None
    one_pass: Tensor | None = None
    transform: Transform | None = None
    course: Course | None = None
    topology: tuple[TopologyNote, ...] = ()
    ensemble: Tensor | None = None
    atlases: tuple[tuple[AtlasNote, ...], ...] = ()
    maps: AtlasMaps | None = None
    adapted: tuple[bool, ...] = ()

    def __len__(self) -> int:
        return len(self.segmentation)

    def case(self, index: int) -> Result:
        """Return one case, as a batch of one."""
        one = slice(index, index + 1)
        chosen = {name: value[one] for name in _OF_EACH if (value := getattr(self, name)) is not None}
        course, maps = self.course and self.course.case(index), self.maps and self.maps.case(index)
        return dataclasses.replace(self, **chosen, course=course, maps=maps)
