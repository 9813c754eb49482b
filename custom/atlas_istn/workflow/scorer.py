# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Handler that scores the labelmaps of each case against the original labels."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from monai.data import MetaTensor

from ..evaluation.metrics import score_labelmap
from ..evaluation.scores import Evaluation
from ..io.files import check_writable
from ..io.loading import LENGTH_UNIT
from ..spatial.consistency import Consistency
from .cases import failing_alone
from .results import CaseResult
from .writer import RESULTS

__all__ = ["CaseScorer"]


class CaseScorer:
    """Handler that scores the labelmaps of each result against the original labels.

    Args:
        output_dir: folder for ``metrics.csv`` and ``summary.json``.
        label_names: class index → name, background included.
        reference: transform that reads the label of a case onto the grid that is scored: ``{"image", "label"}``
            paths to class indices ``[1, *shape]``.
        surface_dice_tolerance: in millimetres; in pixels where the images are PNG files without a pixel size.
        results: key of a labelmap → name of the result.
    """

    def __init__(
        self,
        output_dir: str,
        label_names: Mapping[int, str],
        reference: Callable[[dict[str, Any]], Mapping[str, Any]],
        surface_dice_tolerance: float = 1.0,
        results: Mapping[str, str] = RESULTS,
    ) -> None:
        self.output_dir = output_dir
        self.labels = {int(index): name for index, name in label_names.items() if int(index) > 0}
        self.reference = reference
        self.tolerance = surface_dice_tolerance
        self.results = results
        self.evaluation = Evaluation()

    def attach(self, engine: Engine) -> None:
        """Register with an `AtlasEvaluator`."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._score_batch)
        engine.add_event_handler(Events.COMPLETED, lambda engine: self.finish(engine.state.failures))

    def start(self) -> None:
        """Begin an evaluation.

        Raises:
            InputError: the folder cannot be written.
        """
        check_writable(self.output_dir)
        self.evaluation = Evaluation()

    def _score_batch(self, engine: Engine) -> None:
        for case in engine.state.cases:
            with failing_alone(engine, case.case):
                self._score(case)

    def _score(self, case: CaseResult) -> None:
        label = self.read_reference(case.source, case.reference)
        labelmaps = {name: np.asarray(case.labelmaps[key][0].cpu()) for key, name in self.results.items()}
        self.add(case.case, label, labelmaps, case.consistency)

    def read_reference(self, image: str, label: str) -> MetaTensor:
        """Read the label of a case: class indices ``[1, *shape]`` on the grid that is scored.

        Args:
            image: path of the image.
            label: path of its label.

        Raises:
            InputError: one cannot be read, or they have different grids.
        """
        reference: MetaTensor = self.reference({"image": image, "label": label})["label"]
        return reference

    def add(
        self, case: str, label: MetaTensor, labelmaps: Mapping[str, np.ndarray], consistency: Consistency | None
    ) -> None:
        """Score the results of a case.

        Args:
            case: its name.
            label: as `read_reference` gives it.
            labelmaps: name of a result → class indices ``[*shape]``.
            consistency: of the registration, if there was one; it belongs to the result of the full method.
        """
        spacing = [float(s) for s in label.pixdim[: label.ndim - 1]]
        truth = np.asarray(label[0].cpu())
        for name, labelmap in labelmaps.items():
            rows = score_labelmap(labelmap, truth, self.labels, spacing, self.tolerance)
            if name == self.results["pred"] and consistency:
                # IC-DSC of each label, and the case's MICE with each of them
                figures = [{"ic_dice": dice, "mice": float(consistency.mice)} for dice in consistency.dice[0].tolist()]
                rows = [row | added for row, added in zip(rows, figures, strict=True)]
            self.evaluation.add(case, name, [{**row, LENGTH_UNIT: label.meta[LENGTH_UNIT]} for row in rows])

    def finish(self, failures: Sequence[tuple[str, str]]) -> None:
        """Write the scores, and print their table.

        Args:
            failures: case and message of each that could not be scored.
        """
        for case, message in failures:
            self.evaluation.add_failure(case, message)
        self.evaluation.write(self.output_dir)
        sys.stdout.write(self.evaluation.table() + "\n")
