# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""The Dice of a result, predicted without a reference, and the interval that holds it in nine of ten cases.

The logit of a label's Dice is a line of the logits of its measures, with weights that all labels share and that are not
positive: a worse measure never promises a better Dice. The interval is conformal, a CV+ (Barber et al. 2021) with
residuals in units of what is usual at such measures; nor does a worse measure promise smaller ones. The residual of a
run is that of a line which has seen neither its patient nor, if its image is degraded, its kind of fault, so the
interval allows for faults that nobody thought of. Each patient weighs the same, however many runs of him there are
(hierarchical conformal prediction, Lee et al. 2023).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

__all__ = ["COVERAGE", "FEWEST_PATIENTS", "DicePredictor", "Estimate", "Outcome"]

COVERAGE = 0.9
FEWEST_PATIENTS = math.ceil(COVERAGE / (1 - COVERAGE) - 1e-9)
"""A new patient lies beyond all of n with a probability of 1 / (n + 1): of fewer, no finite interval is wide enough."""
_RIDGE = 0.1  # of the number of patients: measures that tell the same share the weight
_EDGE = 0.005  # Dice at both ends that the logit does not tell apart
_FLAT = 1e-3  # least standard deviation of a logit
_SMALL = 0.03  # residual of a logit below which size means nothing

Array = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int_]


@dataclass(frozen=True)
class Outcome:
    """One run of one case, and how good it was.

    Attributes:
        patient: number of the patient.
        kind: of the image's fault; empty where the image is as it was.
        measures: of each label, see `atlas_istn.workflow.label_measures`; all from 0, well, to 1.
        dice: of each label; None where the reference has none of it.
    """

    patient: int
    kind: str
    measures: Sequence[Sequence[float]]
    dice: Sequence[float | None]


class Estimate(NamedTuple):
    """The Dice that is expected of a label, and the ends of the interval."""

    dice: float
    low: float
    high: float


class DicePredictor:
    """Predicts the Dice of each label.

    Args:
        outcomes: runs with a reference, in any order; all with the same labels and measures.
    """

    def __init__(self, outcomes: Sequence[Outcome]) -> None:
        measures = _logit(np.array([outcome.measures for outcome in outcomes], dtype=float))
        dice = _logit(np.array([outcome.dice for outcome in outcomes], dtype=float))
        patients = np.array([outcome.patient for outcome in outcomes])
        kinds = np.array([outcome.kind for outcome in outcomes])
        self.patients = len(np.unique(patients))
        shares = _shares(patients, np.isfinite(dice)) if len(dice) else np.zeros((0, 0))
        count = shares.sum(axis=0)
        self._enough = count.round() >= FEWEST_PATIENTS
        self._weights = shares / (count + 1.0)  # the new patient weighs as much as each of those that are known
        if not self.usable:
            return
        self._line = _Line(measures, dice, patients)
        self._others: list[_Line] = []
        self._other_of = np.zeros(len(dice), int)
        self._scores = np.zeros_like(dice)
        for patient, kind in sorted(set(zip(patients.tolist(), kinds.tolist(), strict=True))):
            own = (patients == patient) & (kinds == kind)
            seen = (patients != patient) & ((kinds != kind) | (kinds == ""))
            line = _Line(measures[seen], dice[seen], patients[seen])
            mean, spread = line(measures[own])
            self._scores[own] = np.abs(dice[own] - mean) / spread
            self._other_of[own] = len(self._others)
            self._others.append(line)
        self._scores[np.isnan(dice)] = 0.0  # of no weight

    @property
    def usable(self) -> bool:
        """Whether there is a label that enough patients have."""
        return bool(self._enough.any())

    def __call__(self, measures: Sequence[Sequence[float]]) -> list[Estimate | None]:
        """Predict the Dice of each label; None of a label that too few patients have.

        Args:
            measures: of each label, as in `Outcome`.
        """
        if not self.usable:
            return [None] * len(measures)
        values = _logit(np.array(measures, dtype=float))
        expected, _ = self._line(values)
        mean, spread = np.stack([line(values) for line in self._others])[self._other_of].swapaxes(0, 1)
        reach = self._scores * spread
        estimates: list[Estimate | None] = []
        for label, enough in enumerate(self._enough):
            weights = self._weights[:, label]
            low = -_quantile(reach[:, label] - mean[:, label], weights)
            high = _quantile(reach[:, label] + mean[:, label], weights)
            ends = (float(_inverse(value)) for value in (np.clip(expected[label], low, high), low, high))
            estimates.append(Estimate(*ends) if enough else None)
        return estimates


class _Line:
    """Logits of measures ``[…, L, F]`` to the logit of the Dice that is expected, and the usual size of its residual.

    Args:
        measures: ``[S, L, F]``.
        dice: logits ``[S, L]``; NaN where there is none.
        patients: of each run, ``[S]``; all weigh the same.
    """

    def __init__(self, measures: Array, dice: Array, patients: Numbers) -> None:
        known = np.isfinite(dice)
        share = _shares(patients, known)
        total = np.maximum(share.sum(axis=0), _FLAT)
        self.centre = np.einsum("sl,slf->lf", share, measures) / total[:, None]
        variance = np.einsum("sl,slf->lf", share, (measures - self.centre) ** 2) / total[:, None]
        self.scale = np.maximum(np.sqrt(variance), _FLAT)
        self.offset = (share * np.where(known, dice, 0.0)).sum(axis=0) / total
        rows, weights = ((measures - self.centre) / self.scale)[known], share[known]
        self.weights = -_not_negative(-rows, (dice - self.offset)[known], weights)
        residuals = (dice - self.offset)[known] - rows @ self.weights
        sizes = np.log(np.abs(residuals) + _SMALL)
        self.growth = _not_negative(rows, sizes - np.average(sizes, weights=weights), weights)

    def __call__(self, measures: Array) -> tuple[Array, Array]:
        values = (measures - self.centre) / self.scale
        return self.offset + values @ self.weights, np.exp(values @ self.growth)


def _not_negative(rows: Array, aims: Array, weights: Array) -> Array:
    """Weights of a ridge regression, none of them negative."""
    root = np.sqrt(weights)
    ridge = math.sqrt(_RIDGE * weights.sum()) * np.eye(rows.shape[1])
    found: Array = nnls(np.concatenate([root[:, None] * rows, ridge]), np.append(root * aims, np.zeros(len(ridge))))[0]
    return found


def _shares(patients: Numbers, known: npt.NDArray[np.bool_]) -> Array:
    """What each run counts for each label, ``[S, L]``: those of a patient together 1, if there are any."""
    runs = (patients[:, None] == patients) @ known.astype(float)
    shares: Array = known / np.maximum(runs, 1.0)
    return shares


def _quantile(values: Array, weights: Array) -> float:
    """The least value up to which the weights sum to the coverage; infinite if there is none."""
    order = np.argsort(values, kind="stable")
    reached = np.flatnonzero(np.cumsum(weights[order]) >= COVERAGE - 1e-9)
    return float(values[order[reached[0]]]) if len(reached) else math.inf


def _logit(share: Array) -> Array:
    inner = _EDGE + (1 - 2 * _EDGE) * np.clip(share, 0.0, 1.0)
    return np.log(inner / (1 - inner))


def _inverse(logit: float) -> float:
    inner = 0.5 * (1 + math.tanh(0.5 * logit))
    return min(max((inner - _EDGE) / (1 - 2 * _EDGE), 0.0), 1.0)
