# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""How far a result can be trusted, without a reference: ok, review or fail, and why.

A case is measured by how well the refined atlas and the 1-pass fit the ITN's labels, how certain these and the
propagated labels are, and how unusual velocity, affine map and volumes are. Each measure is compared with a population
of cases that are known to be good, the validation cases say, by a robust z-score (median and MAD). Without such a
population only fixed limits apply. Beside the flag the Dice of each label is predicted, see `DicePredictor`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np

from ..errors import InputError
from ..settings import different
from .measures import Measures
from .prediction import DicePredictor, Estimate, Outcome

__all__ = ["REASONS", "Population", "Quality", "QualityCheck", "fingerprint"]

logger = logging.getLogger(__name__)

REASONS = {
    "misfit": "the atlas fits the ITN's labels worse than usual",
    "disagreement": "ITN and refined labels differ more than usual",
    "one_pass": "ITN and 1-pass labels differ more than usual",
    "itn_entropy": "the ITN is less certain than usual",
    "entropy": "the propagated labels are less certain than usual",
    "deformation": "the deformation is stronger than usual",
    "pose": "position, rotation or size is unusual",
    "volume": "the volume of a label is unusual",
}
"""Measure → what is said of a case in which it is too high."""
REVIEW_Z = 3.5  # the customary limit of a robust z-score (Iglewicz and Hoaglin, 1993), where none was calibrated
FAIL_RATIO, FAIL_MEASURES = 5.0 / 3.5, 3  # of the limit; one or two measures alone may be a harmless oddity
REVIEW_DISAGREEMENT, FAIL_DISAGREEMENT = 0.3, 0.5  # 1 − Dice; hold whatever the population
FEWEST_CASES = 8
_SMALLEST = 1e-3  # of a measure, and of the spread of T's entries: below, differences are rounding
_SMALLEST_LOG = 0.05  # of the spread of a logarithm: cases that are almost alike must not make 5 % an alarm


@dataclass(frozen=True)
class Population:
    """Measures of cases that are known to be good.

    Attributes:
        cases: number of cases.
        affine: median of each entry of T.
        affine_spread: spread of each entry.
        log_volumes: median of the logarithm of each label's volume.
        log_volumes_spread: spread of each.
        median: measure → median, of the logarithm.
        spread: measure → spread of the logarithm. A spread is 1.4826 MAD, the σ of a normal distribution.
        weights: fingerprint of the model file.
        review_z: z-score from which a case is to be reviewed.
        settings: of the refinement, see `refinement_settings`; empty in files of earlier versions.
        outcomes: runs of these cases, as they are and degraded, from which the Dice is predicted; likewise.
    """

    cases: int
    affine: list[float]
    affine_spread: list[float]
    log_volumes: list[float]
    log_volumes_spread: list[float]
    median: dict[str, float]
    spread: dict[str, float]
    weights: str = ""
    review_z: float = REVIEW_Z
    settings: dict[str, Any] = field(default_factory=dict)
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def sufficient(self) -> bool:
        """Whether there are cases enough to tell what is usual."""
        return self.cases >= FEWEST_CASES

    @cached_property
    def predictor(self) -> DicePredictor:
        """Predicts the Dice of a label from the outcomes."""
        return DicePredictor(self.outcomes)

    @classmethod
    def of(
        cls, measures: Sequence[Measures], weights: str = "", settings: Mapping[str, Any] | None = None
    ) -> Population:
        """Statistics over the measures of cases; their number alone where they are too few."""
        if len(measures) < FEWEST_CASES:
            return cls(len(measures), [], [], [], [], {}, {}, weights, settings=dict(settings or {}))
        affine = _median_and_spread(np.array([case.affine for case in measures]), _SMALLEST)
        volumes = _median_and_spread(np.array([case.log_volumes for case in measures]), _SMALLEST_LOG)
        columns = [column.tolist() for column in (*affine, *volumes)]
        start = cls(len(measures), *columns, {}, {}, weights, REVIEW_Z, dict(settings or {}))  # type: ignore[call-arg]
        logarithms = np.array([list(start._logarithms(case).values()) for case in measures])
        median, spread = _median_and_spread(logarithms, _SMALLEST_LOG)
        return replace(
            start,
            median=dict(zip(REASONS, median.tolist(), strict=True)),
            spread=dict(zip(REASONS, spread.tolist(), strict=True)),
        )

    @classmethod
    def load(cls, path: str | Path) -> Population:
        """Read a ``quality.json``.

        Raises:
            InputError: it cannot be read, or holds something else.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            population = cls(**content | {"outcomes": [Outcome(**row) for row in content.get("outcomes", [])]})
            _ = population.predictor  # made now, where outcomes that do not fit each other are told
            if population.sufficient and not set(REASONS) <= set(population.median) & set(population.spread):
                raise KeyError("a measure is missing")
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(
                f"{path}: expected the statistics that `calibrate` writes, found something else "
                f"({type(error).__name__}). Calibrate again, or remove the file."
            ) from error
        return population

    def z_scores(self, measures: Measures) -> dict[str, float]:
        """How many spreads each measure of a case lies above the median; negative below."""
        values = self._logarithms(measures)
        return {name: (values[name] - self.median[name]) / self.spread[name] for name in REASONS}

    def _logarithms(self, measures: Measures) -> dict[str, float]:
        pose = np.subtract(measures.affine, self.affine) / self.affine_spread
        volume = np.subtract(measures.log_volumes, self.log_volumes) / self.log_volumes_spread
        values = {**asdict(measures), "pose": np.sqrt(np.mean(pose**2)), "volume": np.abs(volume).max()}
        return {name: math.log(float(values[name]) + _SMALLEST) for name in REASONS}


def _median_and_spread(values: np.ndarray, smallest: float) -> tuple[np.ndarray, np.ndarray]:
    """Of each column of ``[cases, columns]``."""
    median = np.median(values, axis=0)
    spread = 1.4826 * np.median(np.abs(values - median), axis=0)
    return median, np.maximum(spread, smallest)


@dataclass(frozen=True)
class Quality:
    """The verdict on a case.

    Attributes:
        flag: ``"ok"``, ``"review"`` or ``"fail"``; ``"not calibrated (…)"`` where nothing is wrong by the fixed
            limits, and the calibration that there is cannot be used.
        score: largest z-score of the measures; without a population the disagreement of ITN and refined labels.
            Higher is worse.
        reasons: why a case is not ok, fixed limits before unusual measures, these the worst first.
    """

    flag: str
    score: float
    reasons: list[str]


class QualityCheck:
    """Flags cases.

    Args:
        path: ``quality.json``, as `QualityCalibration` writes it beside the model; where there is none, only fixed
            limits apply: labels that are empty, folding, and ITN and refined labels that disagree.
        ckpt_path: the model in use. Statistics of another model are not used.
        settings: of the refinement in use. Statistics of other settings are not used.

    Raises:
        InputError: the file cannot be used.
    """

    def __init__(
        self, path: str | Path = "", ckpt_path: str | Path = "", settings: Mapping[str, Any] | None = None
    ) -> None:
        self.population = Population.load(path) if path and Path(path).is_file() else None
        self.otherwise_ok = "ok"
        reason = self._unusable(ckpt_path, settings) if self.population else ""
        if reason:
            logger.warning("%s is not used: %s. Run calibrate for it.", path, reason)
            self.population = None
            self.otherwise_ok = f"not calibrated ({reason})"
        self.predictor = self.population.predictor if self.population else DicePredictor([])

    def _unusable(self, ckpt_path: str | Path, settings: Mapping[str, Any] | None) -> str:
        """Why the population cannot be used; empty where it can."""
        population = cast(Population, self.population)
        if ckpt_path and population.weights not in ("", fingerprint(ckpt_path)):
            return "belongs to another model"
        if settings is not None and population.settings and (others := different(population.settings, settings)):
            return f"other {', '.join(others)}"
        return "" if population.sufficient else f"n = {population.cases}"

    def __call__(
        self,
        measures: Measures,
        folded_fraction: float = 0.0,
        empty: int = 0,
        topology_kept: bool = True,
        cut: str = "",
    ) -> Quality:
        """Judge one case.

        Args:
            measures: of the case.
            folded_fraction: share of voxels in which the transform folds.
            empty: number of labels of the refined result without a voxel.
            topology_kept: whether the refined result has the atlas's topology.
            cut: faces of the model's grid that the labels touch, though the image goes on there.
        """
        reasons, failed = [], bool(empty)
        if empty:
            reasons.append(f"{empty} label{'s are' if empty > 1 else ' is'} empty")
        disagreement = measures.disagreement
        if disagreement > REVIEW_DISAGREEMENT:
            reasons.append(f"Dice of ITN and refined labels is {1 - disagreement:.2f}")
            failed |= disagreement > FAIL_DISAGREEMENT
        if folded_fraction > 0:
            reasons.append(f"{folded_fraction:.2%} of the transform folds")
        if not topology_kept:
            reasons.append("the topology is not the atlas's")
        if cut:
            reasons.append(f"the model's grid cuts the anatomy: {cut}")
        scores = self.population.z_scores(measures) if self.population else {}
        limit = self.population.review_z if self.population else math.inf
        unusual = sorted(((z, name) for name, z in scores.items() if z > limit), reverse=True)
        reasons += [f"{REASONS[name]} (z = {z:.1f})" for z, name in unusual]
        failed |= sum(z > FAIL_RATIO * limit for z, _ in unusual) >= FAIL_MEASURES
        flag = "fail" if failed else "review" if reasons else self.otherwise_ok
        return Quality(flag, max(scores.values(), default=disagreement), reasons)

    def predict(self, measures: Sequence[Sequence[float]]) -> list[Estimate | None] | str:
        """Predict the Dice of each label on the model's grid, or say why that cannot be done.

        Args:
            measures: of each label, see `atlas_istn.workflow.label_measures`.

        Returns:
            For each label the estimate, None where too few calibration cases have it; or ``"not calibrated (…)"``.
        """
        if self.predictor.usable:
            return self.predictor(measures)
        patients = self.predictor.patients
        number = f" (n = {patients})" if patients else ""
        return f"not calibrated{number}" if self.otherwise_ok == "ok" else self.otherwise_ok


def fingerprint(path: str | Path) -> str:
    """Short hash of a model file; empty where there is none."""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]
    except OSError:  # that there is no model, its loader says
        return ""
