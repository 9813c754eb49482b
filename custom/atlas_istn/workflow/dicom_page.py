# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""The page of a case for DICOM viewers: read what inference wrote, draw it, and put it into the patient's study."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ..io.results import RESULTS, find_results, read_case_report, read_oriented
from ..io.secondary_capture import write_secondary_capture
from ..pictures.dicom_page import NOTICE, draw_page

__all__ = ["write_dicom_capture"]


def write_dicom_capture(
    case_dir: str | os.PathLike[str],
    series_dir: str | os.PathLike[str],
    path: str | os.PathLike[str],
    notes: Sequence[str] = (),
) -> None:
    """Write the page of a case as a DICOM Secondary Capture image into the study of its source series.

    Args:
        case_dir: what inference wrote for the case: its label maps and the report.
        series_dir: folder of the one source series.
        path: ``.dcm``.
        notes: what else the reader of the page should be warned of, without identifiers.

    Raises:
        InputError: results or series cannot be read, or the file cannot be written.
    """
    folder = Path(case_dir)
    report = read_case_report(folder)
    report["warnings"] += notes
    files = find_results(folder, report)
    results = {RESULTS[name].title: read_oriented(file, 3)[0].numpy() for name, file in files.items()}
    image = read_oriented(Path(series_dir), 3)
    page = draw_page(image[0].numpy(), image.pixdim.tolist(), results, report)
    write_secondary_capture(page, series_dir, path, "Atlas-ISTN quality page", NOTICE)
