# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""How far a result can be trusted, without a reference: ok, review or fail, and why.

A case is measured by how well the refined atlas and the 1-pass fit the ITN's labels, how certain these and the
propagated labels are, and how unusual velocity, affine map and volumes are. Each measure is compared with a population
of cases that are known to be good, the validation cases say, by a robust z-score (median and MAD). Without such a
population only fixed limits apply.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents
from torch import Tensor

from ..errors import InputError
from ..inferers.refine import disagreement
from ..io.outputs import write_json
from ..spatial import mean_squared_gradient

__all__ = [
    "CaseMeasures",
    "Population",
    "Quality",
    "QualityCalibration",
    "QualityCheck",
    "label_entropy",
    "measure_cases",
]

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
REVIEW_Z = 3.5  # the customary limit of a robust z-score (Iglewicz and Hoaglin, 1993)
FAIL_Z, FAIL_MEASURES = 5.0, 3  # one or two measures alone may be a harmless oddity
REVIEW_DISAGREEMENT, FAIL_DISAGREEMENT = 0.3, 0.5  # 1 − Dice; hold whatever the population
FEWEST_CASES = 8
_SMALLEST = 1e-3  # of a measure, and of the spread of T's entries: below, differences are rounding
_SMALLEST_LOG = 0.05  # of the spread of a logarithm: cases that are almost alike must not make 5 % an alarm


def label_entropy(probabilities: Tensor) -> Tensor:
    """Entropy of the label at every voxel, from 0 (certain) to 1 (all labels equally likely).

    Args:
        probabilities: soft labelmap ``[B, Nc, *shape]``; normalised here. A voxel without any label is certain.

    Returns:
        ``[B, 1, *shape]``, in units of log Nc.
    """
    positive = probabilities.clamp_min(0.0)
    share = positive / positive.sum(dim=1, keepdim=True).clamp_min(1e-6)
    return torch.special.entr(share).sum(dim=1, keepdim=True) / math.log(probabilities.shape[1])


def measure_cases(output: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the result of a batch tells about its quality, on the model's grid.

    Args:
        output: soft labels ``pred`` (refined), ``one_pass`` and ``itn`` ``[B, Nc, *shape]``, ``velocity``, ``affine``.

    Returns:
        Per case ``[B]``: ``misfit``, the squared error of refined and ITN's labels over the volume of the foreground;
        ``disagreement``, 1 − Dice of both, mean over labels; ``one_pass``, the same of 1-pass and ITN; ``entropy`` and
        ``itn_entropy`` of the propagated and of the ITN's labels over the volume of their foreground; ``deformation``,
        the mean squared gradient of the velocity. And ``affine`` ``[B, dim (dim + 1)]``, the entries of T, and
        ``log_volumes`` ``[B, Nc − 1]`` of the refined labels in voxels.
    """
    refined, one_pass, predicted = (torch.as_tensor(output[key]) for key in ("pred", "one_pass", "itn"))
    predicted = predicted.clamp(0.0, 1.0)
    volumes = refined[:, 1:].flatten(2).sum(dim=2).clamp_min(1.0)
    return {
        "misfit": (refined - predicted).square().flatten(1).sum(dim=1) / volumes.sum(dim=1),
        "disagreement": disagreement(predicted, refined),
        "one_pass": disagreement(predicted, one_pass),
        "entropy": _entropy_per_volume(refined),
        "itn_entropy": _entropy_per_volume(predicted),
        "deformation": mean_squared_gradient(torch.as_tensor(output["velocity"])),
        "affine": torch.as_tensor(output["affine"]).flatten(1),
        "log_volumes": volumes.log(),
    }


def _entropy_per_volume(soft: Tensor) -> Tensor:
    """Entropy of soft labels over the volume of their foreground, ``[B]``."""
    return label_entropy(soft).flatten(1).sum(dim=1) / soft[:, 1:].flatten(1).sum(dim=1).clamp_min(1.0)


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
    """

    cases: int
    affine: list[float]
    affine_spread: list[float]
    log_volumes: list[float]
    log_volumes_spread: list[float]
    median: dict[str, float]
    spread: dict[str, float]
    weights: str = ""

    @classmethod
    def of(cls, measures: Sequence[Mapping[str, Any]], weights: str = "") -> Population:
        """Statistics over the measures of cases, each as `measure_cases` gives them, without the batch.

        Raises:
            InputError: there are too few cases.
        """
        if len(measures) < FEWEST_CASES:
            raise InputError(
                f"calibration needs at least {FEWEST_CASES} cases, found {len(measures)}. Choose another list with "
                "test_list, or add cases."
            )
        vectors: dict[str, list[float]] = {}
        for name, smallest in (("affine", _SMALLEST), ("log_volumes", _SMALLEST_LOG)):
            values = np.array([np.asarray(case[name], dtype=float) for case in measures])
            median, spread = _median_and_spread(values, smallest)
            vectors |= {name: median.tolist(), f"{name}_spread": spread.tolist()}
        start = cls(len(measures), **vectors, median={}, spread={}, weights=weights)
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
            population = cls(**json.loads(Path(path).read_text(encoding="utf-8")))
            if not set(REASONS) <= set(population.median) & set(population.spread):
                raise KeyError("a measure is missing")
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(
                f"{path}: expected the statistics that `calibrate` writes, found something else "
                f"({type(error).__name__}). Calibrate again, or remove the file."
            ) from error
        return population

    def z_scores(self, measures: Mapping[str, Any]) -> dict[str, float]:
        """How many spreads each measure of a case lies above the median; negative below."""
        values = self._logarithms(measures)
        return {name: (values[name] - self.median[name]) / self.spread[name] for name in REASONS}

    def _logarithms(self, measures: Mapping[str, Any]) -> dict[str, float]:
        pose = (np.asarray(measures["affine"], dtype=float) - self.affine) / self.affine_spread
        volume = (np.asarray(measures["log_volumes"], dtype=float) - self.log_volumes) / self.log_volumes_spread
        values = {**measures, "pose": np.sqrt(np.mean(pose**2)), "volume": np.abs(volume).max()}
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
        flag: ``"ok"``, ``"review"`` or ``"fail"``.
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

    Raises:
        InputError: the file cannot be used.
    """

    def __init__(self, path: str | Path = "", ckpt_path: str | Path = "") -> None:
        self.population = Population.load(path) if path and Path(path).is_file() else None
        if self.population and ckpt_path and self.population.weights not in ("", _fingerprint(ckpt_path)):
            logger.warning("%s belongs to another model and is not used: run calibrate again", path)
            self.population = None

    def __call__(
        self, measures: Mapping[str, Any], folded_fraction: float = 0.0, empty: int = 0, topology_kept: bool = True
    ) -> Quality:
        """Judge one case.

        Args:
            measures: of `measure_cases`, without the batch.
            folded_fraction: share of voxels in which the transform folds.
            empty: number of labels of the refined result without a voxel.
            topology_kept: whether the refined result has the atlas's topology.
        """
        reasons, failed = [], bool(empty)
        if empty:
            reasons.append(f"{empty} label{'s are' if empty > 1 else ' is'} empty")
        disagreement = float(measures["disagreement"])
        if disagreement > REVIEW_DISAGREEMENT:
            reasons.append(f"Dice of ITN and refined labels is {1 - disagreement:.2f}")
            failed |= disagreement > FAIL_DISAGREEMENT
        if folded_fraction > 0:
            reasons.append(f"{folded_fraction:.2%} of the transform folds")
        if not topology_kept:
            reasons.append("the topology is not the atlas's")
        scores = self.population.z_scores(measures) if self.population else {}
        unusual = sorted(((z, name) for name, z in scores.items() if z > REVIEW_Z), reverse=True)
        reasons += [f"{REASONS[name]} (z = {z:.1f})" for z, name in unusual]
        failed |= sum(z > FAIL_Z for z, _ in unusual) >= FAIL_MEASURES
        flag = "fail" if failed else "review" if reasons else "ok"
        return Quality(flag, max(scores.values(), default=disagreement), reasons)


def _fingerprint(path: str | Path) -> str:
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]
    except OSError:  # that there is no model, its loader says
        return ""


class CaseMeasures:
    """Handler that adds the measures of each case to the output, before results leave the model's grid.

    Args:
        uncertainty: also add the `label_entropy` of the refined result, of the mean of the ensemble where there is one.
    """

    def __init__(self, uncertainty: bool = False) -> None:
        self.uncertainty = uncertainty

    def attach(self, engine: Engine) -> None:
        """Register with an `AtlasEvaluator`."""
        engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Add ``measures`` and, if asked for, ``uncertainty`` ``[B, 1, *shape]`` to the output of a batch."""
        output = engine.state.output
        if {"itn", "velocity"} <= output.keys():  # else there is no refinement to judge
            output["measures"] = {name: values.cpu() for name, values in measure_cases(output).items()}
        if self.uncertainty:
            output["uncertainty"] = label_entropy(torch.as_tensor(output.get("ensemble", output["pred"])))


class QualityCalibration:
    """Handler that writes the `Population` of a run as JSON; goes with `CaseMeasures`.

    Args:
        path: file to write, ``quality.json`` beside the model.
        ckpt_path: the model.
    """

    def __init__(self, path: str | Path, ckpt_path: str | Path = "") -> None:
        self.path = path
        self.ckpt_path = ckpt_path
        self.measures: list[Mapping[str, Any]] = []

    def attach(self, engine: Engine) -> None:
        """Register with an `AtlasEvaluator`."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _start(self) -> None:
        self.measures = []

    def _collect(self, engine: Engine) -> None:
        self.measures += [case["measures"] for case in engine.state.output]

    def _write(self) -> None:
        population = Population.of(self.measures, _fingerprint(self.ckpt_path) if self.ckpt_path else "")
        write_json(asdict(population), self.path)
        logger.info("calibrated on %d cases: %s", population.cases, self.path)
