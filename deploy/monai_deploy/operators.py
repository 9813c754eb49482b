# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""The operators of the application: the series that suit, and their segmentation by the bundle's own workflow."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from monai.bundle import ConfigWorkflow
from monai.deploy.core import Fragment, Operator, OperatorSpec
from series import Rules, Selection, select_series

from atlas_istn.errors import InputError, explanation_of
from atlas_istn.io.files import write_whole
from atlas_istn.workflow.dicom_page import write_dicom_capture

__all__ = ["BundleInference", "SeriesSelector"]


class SeriesSelector(Operator):
    """Selects the series of a study by rules.

    Deploy's own loader and selector are not used: the loader drops images that share a position without a word, where
    `run inference` refuses the series, and both log identifiers.

    Output: ``selection``, a `Selection`.

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
        spec.output("selection")

    def compute(self, op_input: Any, op_output: Any, context: Any) -> None:  # noqa: ARG002 (the host's signature)
        """Select the series."""
        op_output.emit(select_series(self.study_dir, self.series_dir, self.rules), "selection")


class BundleInference(Operator):
    """Runs the bundle's inference workflow, and writes a DICOM SEG and a page of quality figures for each series.

    Deploy's bundle operator is not used: it takes one tensor from the inferer, and the figures come with the whole
    result. The workflow is the one that `python -m monai.bundle run inference` runs.

    Input: ``selection``. What is wrong with some series stands on the pages of the others, and ends the application
    with a message when those are written.

    Args:
        fragment: the application.
        conditions: when to run.
        bundle_root: folder of the bundle.
        work_dir: takes the files of the workflow.
        output_dir: takes ``series_N_seg.dcm`` and ``series_N_page.dcm``, when all series are done.
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
        spec.input("selection")

    def compute(self, op_input: Any, op_output: Any, context: Any) -> None:  # noqa: ARG002 (the host's signature)
        """Segment the series."""
        selection: Selection = op_input.receive("selection")
        results, finished = self.work_dir / "results", self.work_dir / "finished"
        finished.mkdir()
        problems = [*selection.damaged, *self._segment(selection.folder, results)]
        for folder in sorted(selection.folder.iterdir()):
            segmentation = results / folder.name / f"{folder.name}_seg.dcm"
            if segmentation.is_file():
                shutil.copy(segmentation, finished)
                try:
                    write_dicom_capture(segmentation.parent, folder, finished / f"{folder.name}_page.dcm", problems)
                except InputError as error:
                    problems.append(f"{folder.name}: no page: {error}")
        for file in sorted(finished.iterdir()):
            write_whole(self.output_dir / file.name, lambda part, source=file: shutil.copyfile(source, part))
        if problems:
            lines = "\n".join(f"  {problem}" for problem in problems)
            raise InputError(f"a part of the study could not be segmented:\n{lines}")

    def _segment(self, series_dir: Path, results: Path) -> list[str]:
        """Run the bundle's workflow; return what is to be said of series that failed."""
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
        try:
            workflow.run()
        except Exception as error:  # MONAI wraps what the workflow raises
            if not explanation_of(error):
                raise
            return [line.strip().replace(f"{series_dir}/", "") for line in explanation_of(error).splitlines()]
        return []
