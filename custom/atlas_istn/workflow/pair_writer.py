# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Handler that writes the files of each registered pair, and a summary of the run."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events

from ..evaluation.deformation import deformation_figures, inverse_error
from ..io.files import check_writable, write_whole
from ..io.itk_transforms import write_transform
from ..io.loading import read_volume
from ..io.outputs import write_csv, write_json
from ..io.points import POINT_SUFFIXES, read_points
from ..io.warping import warp_labels, warp_volume, write_warped
from ..networks.pair import split_pair
from ..pictures.pair_figure import pair_figure
from .cases import failing_alone
from .cohort import KEY, Cohort, gathered
from .pair_cases import PairCase
from .pair_scorer import PairScorer

__all__ = ["PairWriter"]

logger = logging.getLogger(__name__)

_SCORES = ("dice", "asd", "hd95")  # that have a column in the summary
_FOLDS = "the deformation folds: raise refine_lambda, or choose a velocity field"


class PairWriter:
    """Handler that writes, for each pair, both transforms, what they move, and a report; and a summary of the run.

    In ``OUT/<pair>/``: ``<pair>_moving_to_fixed.h5`` resamples the moving image onto the fixed one,
    ``<pair>_fixed_to_moving.h5`` the other way; ``<pair>_warped`` the moving image on the fixed grid,
    ``<pair>_warped_labels`` its labels or maps, ``<pair>_moved_points`` its landmarks; ``<pair>_figure.png``;
    ``<pair>.json``.
    ``OUT/summary.csv`` has a row for each pair, ``OUT/metrics.csv`` and ``summary.json`` the scores.

    Args:
        output_dir: folder of the results.
        scorer: scores pairs whose truth is known; None where nothing is to be scored.
        cohort: the pairs of the run, of which others may be finished or fall to other processes; None where this
            process has all of them.

    Attributes:
        reports: of the pairs.
    """

    def __init__(self, output_dir: str, scorer: PairScorer | None = None, cohort: Cohort | None = None) -> None:
        self.output_dir = Path(output_dir)
        self.scorer = scorer
        self.cohort = cohort
        self.reports: list[dict[str, Any]] = []

    def attach(self, engine: Engine) -> None:
        """Register with a `PairEvaluator`."""
        engine.add_event_handler(Events.STARTED, self.begin)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._write_batch)
        engine.add_event_handler(Events.COMPLETED, self._finish)

    def begin(self) -> None:
        """Begin a run."""
        check_writable(str(self.output_dir))
        self.reports = []

    def _write_batch(self, engine: Engine) -> None:
        for case in engine.state.cases:
            with failing_alone(engine, case.case):
                self.write(case)

    def write(self, case: PairCase) -> dict[str, Any]:
        """Write the files of one pair, its report last: a pair that has one is finished.

        Returns:
            The report.

        Raises:
            InputError: a file cannot be read or written.
        """
        stem = self.output_dir / case.case / case.case
        to_fixed, to_moving = case.transforms
        write_transform(to_fixed, f"{stem}_moving_to_fixed.h5")
        write_transform(to_moving, f"{stem}_fixed_to_moving.h5")
        fixed = case.images["fixed"]
        write_warped(warp_volume(case.images["moving"], fixed, to_fixed)[0], fixed, f"{stem}_warped")
        self._write_structures(case, f"{stem}_warped_labels")
        if (source := Path(case.pair.get("moving_points", ""))).is_file():
            file = read_points(source, to_fixed.dim)
            moved = file.points.copy()
            moved[:, : to_fixed.dim] = to_moving(moved[:, : to_fixed.dim])
            file.write(moved, f"{stem}_moved_points{_point_suffix(source)}")
        picture = pair_figure(*split_pair(case.image), case.result.transform)
        write_whole(f"{stem}_figure.png", picture.save)
        report = self.report(case)
        if self.cohort:
            report[KEY] = self.cohort.key(case.pair)
        write_json(report, f"{stem}.json")
        self.reports.append(report)
        return report

    def _write_structures(self, case: PairCase, stem: str) -> None:
        path = Path(case.pair.get("moving_structure", ""))
        if not path.is_file():
            return
        volume, fixed, points = read_volume(path, case.transforms[0].dim), case.images["fixed"], case.transforms[0]
        if bool((volume == volume.round()).all()) and self._are_labels:
            write_warped(warp_labels(volume, fixed, points), fixed, stem, labels=True)
        else:
            write_warped(warp_volume(volume, fixed, points)[0], fixed, stem)

    @property
    def _are_labels(self) -> bool:
        return self.scorer is None or self.scorer.structures.kind == "labels"

    def report(self, case: PairCase) -> dict[str, Any]:
        """Everything that is worth knowing of a pair, as a JSON tree."""
        result = case.result
        figures = deformation_figures(result.transform)
        report: dict[str, Any] = {
            "case": case.case,
            "moving": Path(case.pair["moving"]).name,
            "fixed": Path(case.pair["fixed"]).name,
            "objective_identity": float(result.start[0]),
            "objective_before": float(result.fit.curve[0, 0]),
            "objective_after": float(result.fit.loss[0]),
            "iterations": int(result.fit.iterations[0]),
            "seconds": round(result.seconds, 4),
            "length_unit": case.unit,
            **figures,
            **inverse_error(*case.transforms, case.affines["fixed"], result.transform.shape),
            **(self.scorer.score(case) if self.scorer else {}),
        }
        report["warnings"] = [_FOLDS] if figures["folded_fraction"] > 0 else []
        report["objective_curve"] = [float(f"{value:.4g}") for value in result.fit.curve[:, 0].tolist()]
        return report

    def _finish(self, engine: Engine) -> None:
        failures = engine.state.failures
        if self.cohort:
            failures = engine.state.failures = gathered(failures)
            if idist.get_rank() > 0:
                return
            self.reports = self.cohort.reports()
        failed = [{"case": case, "error": message} for case, message in failures]
        write_csv([*map(_flat, self.reports), *failed], self.output_dir / "summary.csv")
        logger.info("results of %d pairs in %s", len(self.reports), self.output_dir)
        if self.scorer and self.scorer.evaluate(self.reports).rows:
            for case, message in failures:
                self.scorer.evaluation.add_failure(case, message)
            self.scorer.evaluation.write(self.output_dir)
            sys.stdout.write(self.scorer.evaluation.table() + "\n")


def _point_suffix(path: Path) -> str:
    return next(suffix for suffix in POINT_SUFFIXES if path.name.lower().endswith(suffix))


def _flat(report: Mapping[str, Any]) -> dict[str, Any]:
    """The row of a report in the summary."""
    row = {key: value for key, value in report.items() if not isinstance(value, (dict, list)) and key != KEY}
    for result, structures in report.get("scores", {}).items():
        row |= {f"{result} {name} {key}": scores[key] for name, scores in structures.items() for key in _SCORES}
    for result, errors in report.get("tre", {}).items():
        row |= {f"{result} tre {key}": value for key, value in errors.items()}
    return {**row, "warnings": "; ".join(report["warnings"])}
