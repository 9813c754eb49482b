# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Handler that writes DICOM SEG beside the NIfTI files of an inference run."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from ignite.engine import Engine, Events

from ..errors import InputError
from ..io.dicom_seg import segment_specs, write_dicom_seg
from ..pictures.palette import label_colour
from .cases import failing_alone
from .results import class_indices, native_affine

__all__ = ["DicomSegWriter"]

logger = logging.getLogger(__name__)


class DicomSegWriter:
    """Handler that writes the refined segmentation of each DICOM series as ``<case>/<case>_seg.dcm``.

    Args:
        output_dir: folder of the results.
        output_format: ``nifti`` writes nothing, ``dicom_seg`` the DICOM SEG.
        label_names: class index → name, background included.
        segment_codes: coded concepts of the labels, see `segment_specs`.

    Raises:
        InputError: the format is unknown or the codes are not well formed.
    """

    def __init__(
        self,
        output_dir: str,
        output_format: str,
        label_names: Mapping[int, str],
        segment_codes: Mapping[str, Mapping[str, Sequence[str]]],
    ) -> None:
        if output_format not in ("nifti", "dicom_seg"):
            raise InputError(f"output_format {output_format}: unknown. Expected nifti or dicom_seg. Choose one.")
        self.output_dir = Path(output_dir)
        self.enabled = output_format == "dicom_seg"
        self.segments = segment_specs(label_names, segment_codes, label_colour)

    def attach(self, engine: Engine) -> None:
        """Register with an `AtlasEvaluator`."""
        if self.enabled:
            engine.add_event_handler(Events.STARTED, self._check_sources)
            engine.add_event_handler(Events.ITERATION_COMPLETED, self._write_batch)

    def _check_sources(self, engine: Engine) -> None:
        cases = engine.data_loader.dataset.data
        others = [case["case"] for case in cases if not Path(case["image"]).is_dir()]
        if len(others) == len(cases):
            raise InputError(
                "output_format dicom_seg: none of the images is a DICOM series. Expected folders of DICOM files, since "
                "a DICOM SEG refers to the images of its series. Set dataset_dir to such folders, or use output_format "
                "nifti."
            )
        if others:
            logger.warning("no DICOM SEG for %d of %d cases, which are no DICOM series", len(others), len(cases))

    def _write_batch(self, engine: Engine) -> None:
        for case in engine.state.cases:
            if not Path(case.source).is_dir():
                continue
            path = self.output_dir / case.case / f"{case.case}_seg.dcm"
            with failing_alone(engine, case.case):
                affine = native_affine(case.segmentation)
                write_dicom_seg(class_indices(case.segmentation), affine, case.source, path, self.segments)
