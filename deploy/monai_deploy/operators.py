# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""The operators of the application: the series that suit, and their segmentation by the bundle's own workflow."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from monai.bundle import ConfigWorkflow
from monai.deploy.core import Fragment, Operator, OperatorSpec
from series import Rules, select_series

from atlas_istn.io.files import write_whole
from atlas_istn.workflow.dicom_page import write_dicom_capture

__all__ = ["BundleInference", "SeriesSelector"]


class SeriesSelector(Operator):
    """Selects the series of a study by rules.

    Deploy's own loader and selector are not used: the loader drops images that share a position without a word, where
    `run inference` refuses the series, and both log identifiers.

    Output: ``series_dir``, a folder with a folder for each series.

    Args:
        fragment: the application.
        conditions: when to run.
        study_dir: DICOM files in any arrangement.
        work_dir: takes the folder of series.
        rules: what a series must be like.
        kwargs: of every operator.
    """

    def __init__(
        self, fragment: Fragment, *conditions: Any, study_dir: Path, work_dir: Path, rules: Rules, **kwargs: Any
    ) -> None:
        self.study_dir = study_dir
        self.series_dir = work_dir / "series"
        self.rules = rules
        super().__init__(fragment, *conditions, **kwargs)

    def setup(self, spec: OperatorSpec) -> None:
        """Declare the output."""
        spec.output("series_dir")

    def compute(self, op_input: Any, op_output: Any, context: Any) -> None:  # noqa: ARG002 (the host's signature)
        """Select the series."""
        select_series(self.study_dir, self.series_dir, self.rules)
        op_output.emit(str(self.series_dir), "series_dir")


class BundleInference(Operator):
    """Runs the bundle's inference workflow, and writes a DICOM SEG and a page of quality figures for each series.

    Deploy's bundle operator is not used: it takes one tensor from the inferer, and the figures come with the whole
    result. The workflow is the one that `python -m monai.bundle run inference` runs.

    Input: ``series_dir``.

    Args:
        fragment: the application.
        conditions: when to run.
        bundle_root: folder of the bundle.
        work_dir: takes the files of the workflow.
        output_dir: takes ``series_N_seg.dcm`` and ``series_N_page.dcm``, when those of all series are complete.
        kwargs: of every operator.
    """

    def __init__(
        self, fragment: Fragment, *conditions: Any, bundle_root: Path, work_dir: Path, output_dir: Path, **kwargs: Any
    ) -> None:
        self.bundle_root = bundle_root
        self.work_dir = work_dir
        self.output_dir = output_dir
        super().__init__(fragment, *conditions, **kwargs)

    def setup(self, spec: OperatorSpec) -> None:
        """Declare the input."""
        spec.input("series_dir")

    def compute(self, op_input: Any, op_output: Any, context: Any) -> None:  # noqa: ARG002 (the host's signature)
        """Segment the series."""
        series_dir = Path(op_input.receive("series_dir"))
        results, finished = self.work_dir / "results", self.work_dir / "finished"
        finished.mkdir()
        workflow = ConfigWorkflow(
            config_file=str(self.bundle_root / "configs" / "inference.yaml"),
            meta_file=str(self.bundle_root / "configs" / "metadata.json"),
            logging_file=False,
            workflow_type="infer",
            bundle_root=str(self.bundle_root),
            dataset_dir=str(series_dir),
            output_dir=str(results),
            output_format="dicom_seg",
            write_transforms=False,  # nobody would read them
        )
        workflow.initialize()
        workflow.run()
        for folder in sorted(series_dir.iterdir()):
            case = results / folder.name
            shutil.copy(case / f"{folder.name}_seg.dcm", finished)
            write_dicom_capture(case, folder, finished / f"{folder.name}_page.dcm")
        for file in sorted(finished.iterdir()):
            write_whole(self.output_dir / file.name, lambda part, source=file: shutil.copyfile(source, part))
