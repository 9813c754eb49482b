# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Whether an atlas suits: what every case has alike, an atlas may force upon all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .checks import some
from .labels import LabelTable
from .survey import Anatomy

__all__ = ["Suitability", "judge"]

WARN, REFUSE = 0.9, 0.5  # shares of the cases


@dataclass(frozen=True)
class Suitability:
    """How alike a label is in all cases.

    Attributes:
        name: of the label.
        present: share of the cases that have it.
        topology: the most frequent [components, holes, cavities] of those.
        common: share of these that have it so.
        place: standard deviation of the centre, mm, mean over axes.
        volume: standard deviation of the volume by its mean.
        warnings: what the atlas will force, with the cases named.
        refused: whether fewer than half of the cases have it.
    """

    name: str
    present: float
    topology: tuple[int, ...]
    common: float
    place: float
    volume: float
    warnings: tuple[str, ...]
    refused: bool


def judge(anatomies: Sequence[Anatomy], table: LabelTable) -> list[Suitability]:
    """Judge every label."""
    return [_judge(index, name, anatomies) for index, name in enumerate(table.names[1:], start=1)]


def _judge(index: int, name: str, anatomies: Sequence[Anatomy]) -> Suitability:
    having = [case for case in anatomies if case.volumes[index - 1] > 0]
    shapes = Counter(tuple(case.signature.shapes[index,]) for case in having)
    topology, count = shapes.most_common(1)[0]
    present, common = len(having) / len(anatomies), count / len(having)
    warnings = []
    if present < WARN:
        lacking = [case.case.name for case in anatomies if case.volumes[index - 1] == 0]
        warnings.append(f"{name}: {len(lacking)} case(s) lack it, and the atlas will put it there: {some(lacking)}")
    if common < WARN:
        others = [case.case.name for case in having if tuple(case.signature.shapes[index,]) != topology]
        most = "most labels have" if common >= REFUSE else "no topology is that of most labels; the most frequent is"
        warnings.append(
            f"{name}: {most} {_shape(topology)}, which the atlas forces upon {len(others)} other(s): {some(others)}"
        )
    volumes = np.array([case.volumes[index - 1] for case in having])
    place = float(np.std([case.centres[index - 1] for case in having], axis=0).mean())
    refused = present < REFUSE
    return Suitability(
        name, present, topology, common, place, float(volumes.std() / volumes.mean()), tuple(warnings), refused
    )


def _shape(topology: Sequence[int]) -> str:
    components, holes, cavities = topology
    parts = [(components, "component"), (holes, "hole"), (cavities, "cavity")]
    return ", ".join(f"{n} {what}{'s' if n != 1 and what != 'cavity' else ''}" for n, what in parts if n) or "nothing"
