# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""One page for any DICOM viewer: the contours of a case in three planes and its quality figures.

The page is a Secondary Capture image of the patient's study. It has the patient's identifiers in its header, as every
image of a study must, and none in its pixels.
"""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import highdicom
import numpy as np
import numpy.typing as npt
import pydicom
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure
from matplotlib.patheffects import withStroke
from monai.data import MetaTensor
from monai.transforms import Orientation
from pydicom.uid import ExplicitVRLittleEndian

from .. import __version__
from ..errors import InputError
from ..io.dicom import read_series
from ..io.dicom_files import silent
from ..io.dicom_headers import series_number, source_headers
from ..io.files import write_whole
from ..io.loading import read_volume
from ..io.results import FILES
from ..pictures.conventions import RESULTS
from ..pictures.figure import COLOURS

__all__ = ["draw_page", "page_text", "write_dicom_capture"]

NOTICE = "Research use only. Not a medical device."
PLANES: dict[str, tuple[int, Literal["upper", "lower"], str]] = {
    "axial": (2, "upper", "RLAP"),
    "coronal": (1, "lower", "RLSI"),
    "sagittal": (0, "lower", "APSI"),
}
"""Plane → axis of LPS voxels that it cuts, side of the image on which its rows begin, letters of the four edges."""
_EDGES = (
    (0.02, 0.5, "left", "center"),
    (0.98, 0.5, "right", "center"),
    (0.5, 0.98, "center", "top"),
    (0.5, 0.02, "center", "bottom"),
)
_SIZE = (12.8, 9.6)  # inches at 100 dots each
_SERIES_OFFSET = 2000  # added to the number of the source series, so that the page is listed after the segmentation
_WIDTH = 40  # characters of a line of text
_COLOUR, _ALARM = "white", "#ffd740"
_OUTLINE = [withStroke(linewidth=2, foreground="black")]


def write_dicom_capture(
    case_dir: str | os.PathLike[str], series_dir: str | os.PathLike[str], path: str | os.PathLike[str]
) -> None:
    """Write the page of a case as a DICOM Secondary Capture image into the study of its source series.

    Args:
        case_dir: what inference wrote for the case: the label maps of ITN, 1-pass and refinement, and the report.
        series_dir: folder of the one source series.
        path: ``.dcm``.

    Raises:
        InputError: results or series cannot be read, or the file cannot be written.
    """
    folder = Path(case_dir)
    headers = source_headers(read_series(series_dir))
    image, *maps = (
        _lps(source) for source in (series_dir, *(folder / f"{folder.name}_{FILES[name]}.nii.gz" for name in RESULTS))
    )
    report_path = folder / f"{folder.name}.json"
    try:
        report = json.loads(report_path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{report_path}: the report cannot be read. Run inference again.") from error
    page = draw_page(image, dict(zip(RESULTS.values(), maps, strict=True)), report)
    with silent():
        capture = _capture(page, headers)
        write_whole(path, lambda part: capture.save_as(part, enforce_file_format=True))


def draw_page(image: MetaTensor, results: Mapping[str, MetaTensor], report: Mapping[str, Any]) -> npt.NDArray[np.uint8]:
    """Draw the contours of the results on the image, in three planes as radiologists see them, and the figures.

    Each plane is the one that holds most of the last result.

    Args:
        image: ``[1, X, Y, Z]``, axes towards left, posterior and superior.
        results: title → label map on the same grid; the last is the refined one.
        report: quality figures of the case and the label values, as inference writes them.

    Returns:
        RGB ``[H, W, 3]``.
    """
    figure = Figure(figsize=_SIZE, dpi=100, layout="constrained", facecolor="black")
    halves: Any = figure.subfigures(1, 2, width_ratios=(3, 1), facecolor="black")  # its type does not tell how many
    pictures, text = halves
    refined = list(results.values())[-1]
    columns = {"image": None, **results}
    _, depth, height = np.multiply(image.pixdim, image.shape[1:])
    rows = pictures.subplots(len(PLANES), len(columns), height_ratios=(depth, height, height))
    for row, (plane, (axis, _, _)) in zip(rows, PLANES.items(), strict=True):
        index = _fullest(refined, axis)
        for axes, (title, result) in zip(row, columns.items(), strict=True):
            _draw_plane(axes, plane, index, image, result, list(report["labels"].values()))
            axes.set_title(f"{plane}, {title}", color=_COLOUR, fontsize=9)
    _write_text(text, page_text(refined, report))
    figure.suptitle(f"Atlas-ISTN {__version__}. {NOTICE}", color=_ALARM, fontsize=11)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])


def _lps(source: str | os.PathLike[str]) -> MetaTensor:
    volume: MetaTensor = Orientation("LPS", labels=None)(read_volume(source, 3))
    return volume


def _fullest(labelmap: MetaTensor, axis: int) -> int:
    """Index along an axis at which most voxels are labelled; the middle where none is."""
    others = tuple(other for other in range(3) if other != axis)
    counts = (labelmap[0] > 0).sum(dim=others)
    return int(counts.argmax()) if counts.any() else len(counts) // 2


def _draw_plane(
    axes: Axes, plane: str, index: int, image: MetaTensor, labelmap: MetaTensor | None, values: Sequence[int]
) -> None:
    axis, origin, letters = PLANES[plane]
    across, up = np.delete(np.asarray(image.pixdim), axis)
    voxels = image[0].numpy()
    window = np.percentile(voxels, (1, 99))
    axes.imshow(
        voxels.take(index, axis).T, cmap="gray", vmin=window[0], vmax=window[1], origin=origin, aspect=up / across
    )
    axes.set_axis_off()
    for letter, (x, y, ha, va) in zip(letters, _EDGES, strict=True):
        placed: dict[str, Any] = {"transform": axes.transAxes, "ha": ha, "va": va}
        axes.text(x, y, letter, color=_ALARM, fontsize=9, path_effects=_OUTLINE, **placed)
    if labelmap is None:
        return
    section = labelmap[0].numpy().take(index, axis).T
    for number, value in enumerate(values):
        if (section == value).any():
            axes.contour(section == value, levels=[0.5], colors=_contour_colour(number), linewidths=1.2)


def page_text(refined: MetaTensor, report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The figures of a case as lines with their colours; those of a label have the colour of its contours.

    Args:
        refined: label map ``[1, X, Y, Z]``, from which the volumes are taken.
        report: quality figures of the case and the label values, as inference writes them.
    """
    figures = [
        f"objective, 1-pass: {report['loss_before']:.4g}",
        f"objective, refined: {report['loss_after']:.4g}",
        f"iterations: {report['iterations']}",
        f"seconds: {report['seconds']:.1f}",
        f"minimal Jacobian: {report['min_jacobian']:.2f}",
        f"folded fraction: {report['folded_fraction']:.2%}",
        f"quality: {report.get('quality', 'not judged')}",
        f"warnings: {len(report['warnings']) or 'none'}",
    ]
    lines = [(line, _COLOUR) for line in figures]
    voxel = float(np.prod(np.asarray(refined.pixdim))) / 1000  # ml
    for number, (name, value) in enumerate(report["labels"].items()):
        volume, components = int((refined == value).sum()) * voxel, report["topology"][name]["components"]
        lines.append((f"{name}: {volume:.2f} ml, components: {components}", _contour_colour(number)))
    alarms = [*report["warnings"], *report.get("quality_reasons", [])]
    return lines + [(f"! {alarm}", _ALARM) for alarm in alarms]


def _write_text(column: SubFigure, lines: Sequence[tuple[str, str]]) -> None:
    """Fill the column of text, from the top down."""
    wrapped = [(part, colour) for line, colour in lines for part in textwrap.wrap(line, _WIDTH)]
    for number, (line, colour) in enumerate(wrapped):
        column.text(0.02, 0.96 - 0.026 * number, line, color=colour, fontsize=9, va="top")


def _contour_colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def _capture(page: npt.NDArray[np.uint8], sources: Sequence[pydicom.Dataset]) -> highdicom.sc.SCImage:
    capture = highdicom.sc.SCImage.from_ref_dataset(
        sources[0],
        pixel_array=page,
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "P"),
        series_instance_uid=highdicom.UID(),
        sop_instance_uid=highdicom.UID(),
        series_number=series_number(sources[0], _SERIES_OFFSET),
        instance_number=1,
        manufacturer="Atlas-ISTN bundle developers",
        manufacturer_model_name="Atlas-ISTN",
        software_versions=__version__,
        series_description="Atlas-ISTN quality page",
        transfer_syntax_uid=ExplicitVRLittleEndian,  # every viewer shows it
    )
    capture.PatientOrientation = []  # highdicom wants one, and a page of three planes has none
    capture.Laterality = ""  # which side a paired organ is of, nobody asked
    capture.BurnedInAnnotation = "NO"
    capture.ImageComments = NOTICE
    capture.SourceImageSequence = [_reference(source) for source in sources]
    return capture


def _reference(source: pydicom.Dataset) -> pydicom.Dataset:
    item = pydicom.Dataset()
    item.ReferencedSOPClassUID = source.SOPClassUID
    item.ReferencedSOPInstanceUID = source.SOPInstanceUID
    return item
