# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Scores of registered pairs whose structures or landmarks are known."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..data.structures import StructureReader, match_points
from ..evaluation.metrics import score_labelmap
from ..evaluation.scores import Evaluation
from ..io.itk_transforms import Points
from ..io.loading import LENGTH_UNIT
from ..io.pairs import SIDES
from ..io.points import read_points
from ..io.warping import PointMap, warp_volume
from ..networks.pair import split_pair
from ..registration.register import Registration
from ..spatial import Transform
from .pair_cases import PairCase

__all__ = ["PairScorer"]

_BORDER = 0.5  # value of a map of a structure at its border
Row = dict[str, Any]


class PairScorer:
    """Scores how well the structures and landmarks of pairs lie on each other, on the fixed image's own grid.

    Results are ``identity``, the pair as it begins; ``one_pass``; ``refine``; and ``bound``, the structures registered
    directly, from there on, which no registration of images can be expected to beat.

    Args:
        structures: reads the structures of interest.
        names: of the structures, one for each map.
        one_pass: score it too; there is none without a network.
        bound: registers structures directly; None leaves this out.
        surface_dice_tolerance: in millimetres.

    Attributes:
        evaluation: the rows of all pairs, see `evaluate`.
    """

    def __init__(
        self,
        structures: StructureReader,
        names: Sequence[str],
        one_pass: bool = True,
        bound: Registration | None = None,
        surface_dice_tolerance: float = 1.0,
    ) -> None:
        self.structures = structures
        self.names = dict(enumerate(names, start=1))
        self.one_pass = one_pass
        self.bound = bound
        self.tolerance = surface_dice_tolerance
        self.evaluation = Evaluation()

    def evaluate(self, reports: Sequence[Mapping[str, Any]]) -> Evaluation:
        """Collect the scores of all pairs from their reports, which have what `score` returned."""
        self.evaluation = Evaluation()
        for report in reports:
            for result, structures in report.get("scores", {}).items():
                rows = [{"label": name, LENGTH_UNIT: report[LENGTH_UNIT], **row} for name, row in structures.items()]
                known = [{key: math.nan if value is None else value for key, value in row.items()} for row in rows]
                self.evaluation.add(report["case"], result, known)
        return self.evaluation

    def score(self, case: PairCase) -> dict[str, Any]:
        """Score one pair.

        Returns:
            ``{"scores": {result: {structure: {metric: value}}}}`` where the structures are there, ``{"tre":
            {result: {"mean", "percentile_95", "points"}}}`` where the landmarks are; None for what is undefined.

        Raises:
            InputError: a file cannot be used.
        """
        maps = {name: case.in_world(transform)[0] for name, transform in self._transforms(case).items()}
        found: dict[str, Any] = {}
        shapes = self.structures.kind in ("labels", "maps")
        if shapes and all(Path(case.pair.get(f"{side}_structure", "")).is_file() for side in SIDES):
            found["scores"] = self._score_structures(case, maps)
        if all(Path(case.pair.get(f"{side}_points", "")).is_file() for side in SIDES):
            found["tre"] = self._target_errors(case, maps)
        return found

    def _transforms(self, case: PairCase) -> dict[str, Transform]:
        result = case.result
        still = Transform(None, _identity(result.transform), result.transform.shape, result.transform.spacing)
        found = {"identity": still}
        if self.one_pass and result.one_pass is not None:
            found["one_pass"] = result.one_pass
        found["refine"] = result.transform
        if self.bound is not None and case.structures is not None:
            # From where the refinement ended: images far from each other would be lost from the identity.
            start = result.fit.state
            found["bound"] = self.bound(*split_pair(case.structures), result.transform.spacing, start)[0]
        return found

    def _score_structures(self, case: PairCase, maps: Mapping[str, PointMap]) -> dict[str, dict[str, Row]]:
        moving, fixed = (self.structures(case.pair[f"{side}_structure"], case.images[side]) for side in SIDES)
        spacing = [float(s) for s in fixed.pixdim[: fixed.ndim - 1]]
        truth = fixed.numpy() > _BORDER
        scores = {}
        for result, points in maps.items():
            moved = warp_volume(moving, fixed, points) > _BORDER
            scores[result] = {
                row["label"]: {key: value if value == value else None for key, value in row.items() if key != "label"}
                for channel, name in enumerate(self.names.values())
                for row in score_labelmap(moved[channel], truth[channel], {1: name}, spacing, self.tolerance)
            }
        return scores

    def _target_errors(self, case: PairCase, maps: Mapping[str, PointMap]) -> dict[str, dict[str, float]]:
        dim = self.structures.spatial_dims
        of_moving, of_fixed = (read_points(case.pair[f"{side}_points"], dim) for side in SIDES)
        moving, fixed = (file.points[:, :dim] for file in match_points(of_moving, of_fixed))
        errors = {result: _distances(points(fixed), moving) for result, points in maps.items()}
        return {
            result: {
                "mean": float(values.mean()),
                "percentile_95": float(np.percentile(values, 95)),
                "points": len(values),
            }
            for result, values in errors.items()
        }


def _identity(transform: Transform) -> Tensor:
    dim = len(transform.shape)
    return torch.eye(dim, dim + 1, device=transform.affine.device)[None]


def _distances(first: Points, second: Points) -> npt.NDArray[np.float64]:
    return np.linalg.norm(first - second, axis=1)
