# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Scoring of the label maps that an inference run has written, without running the network again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from tqdm import tqdm

from ..errors import InputError
from ..io.geometry import check_same_grid
from ..io.label_table import LabelValues, written_values
from ..io.loading import PixelSize, label_classes, read_volume
from ..io.names import is_png
from ..io.results import find_results, read_case_report
from ..spatial.consistency import Consistency
from .cases import failure_error, reason_of
from .scorer import CaseScorer

__all__ = ["StoredResults"]


class StoredResults:
    """The results of an inference run, to be scored as `evaluate` scores those that it makes.

    Args:
        results_dir: output folder of the run; None where there is none to score.
        data: cases with labels, as `find_cases` lists them; named as in the run.
        scorer: scores them.
        label_values: values of each class, see `atlas_istn.io.label_table`.
        spatial_dims: 2 or 3.
        pixel_size: of PNG files.
        space: grid on which results are scored; label maps that were written are on that of the images.
    """

    def __init__(
        self,
        results_dir: str | None,
        data: Sequence[Mapping[str, str]],
        scorer: CaseScorer,
        label_values: LabelValues,
        spatial_dims: int,
        pixel_size: PixelSize | None = None,
        space: str = "native",
    ) -> None:
        self.folder = Path(results_dir or "")
        self.data = data
        self.scorer = scorer
        self.values = written_values(label_values)
        self.spatial_dims = spatial_dims
        self.pixel_size = pixel_size
        self.space = space

    def score(self) -> None:
        """Score all cases, and write and print the table.

        Raises:
            InputError: it is no such run, the space is another, or cases could not be scored, after all others were.
        """
        if self.space != "native":
            raise InputError(
                f"evaluate_space: expected native with results_dir, found {self.space}. What a run wrote is on the "
                "grid of the images. Leave results_dir out."
            )
        if not self.folder.is_dir():
            raise InputError(f"results_dir {self.folder}: no such folder. Expected the output_dir of an inference run.")
        self.scorer.start()
        failures = []
        for case in tqdm(self.data, desc="evaluation"):
            try:
                self._score(case)
            except Exception as error:  # whatever a reader raises, the other cases go on
                failures.append((case["case"], reason_of(error, self.data, case)))
        self.scorer.finish(failures)
        if failures:
            raise failure_error(failures, len(self.data))

    def _score(self, case: Mapping[str, str]) -> None:
        folder = self.folder / case["case"]
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder. Expected the results of this case. Run inference on it.")
        report = read_case_report(folder)
        expected = {name: self.values[index] for index, name in self.scorer.labels.items()}
        if report["labels"] != expected:
            raise InputError(
                f"{folder}: expected results with the labels {expected}, found {report['labels']}. Evaluate with the "
                "configuration of the run."
            )
        label = self.scorer.read_reference(case["image"], case["label"])
        found = find_results(folder, report)
        missing = [name for name in self.scorer.results.values() if name not in found]
        if missing:
            raise InputError(f"{folder}: no label map of {missing[0]}. Evaluate with the configuration of the run.")
        labelmaps = {name: self._classes(found[name], label) for name in self.scorer.results.values()}
        self.scorer.add(case["case"], label, labelmaps, _consistency(report))

    def _classes(self, path: Path, label: MetaTensor) -> np.ndarray:
        """Class indices ``[*shape]`` of a label map that lies on the grid of a label."""
        volume = read_volume(path, self.spatial_dims, self.pixel_size if is_png(path) else None)
        check_same_grid(label, volume)
        return np.asarray(label_classes(volume, self.values)[0])


def _consistency(report: Mapping[str, Any]) -> Consistency | None:
    """The figures of a registration that its case's report has."""
    if "label_ic_dice" not in report:
        return None
    dice = [math.nan if value is None else value for value in report["label_ic_dice"].values()]
    return Consistency(torch.tensor([dice], dtype=torch.float64), torch.tensor([report["mice"]], dtype=torch.float64))
