# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Reading back what an inference run wrote, beside the data set that it ran on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
from monai.data import MetaTensor
from monai.transforms import Orientation
from nibabel.filebasedimages import ImageFileError

from ..errors import InputError
from .cases import find_cases
from .itk_transforms import CompositeTransform, read_transform
from .loading import PixelSize, read_volume
from .names import is_png

__all__ = [
    "RESULTS",
    "ResultKind",
    "find_case_folders",
    "find_labelled_cases",
    "find_results",
    "image_dimensions",
    "is_registered",
    "length_unit",
    "read_atlas_to_subject",
    "read_case_report",
    "read_oriented",
    "result_file",
]

FULL = "seg"
"""Ending of the file with the result of the full method, whichever that is in a run."""

_SUFFIXES = (".nii.gz", ".png")  # beside them may lie the same as DICOM


@dataclass(frozen=True)
class ResultKind:
    """One of the results of the method.

    Attributes:
        title: as people read it.
        ending: of its file name.
    """

    title: str
    ending: str


RESULTS = {
    "itn": ResultKind("ITN", "itn"),
    "fused": ResultKind("fused", "fused"),
    "one_pass": ResultKind("1-pass", "one_pass"),
    "refine": ResultKind("refined", FULL),
}
"""Name of a result, as ``metrics.csv`` and configurations have it → what it is; each builds on one before."""


def find_labelled_cases(dataset: Path, data_list: str, several_channels: bool = False) -> list[dict[str, str]]:
    """Find the cases of a list, with their labels where the whole list has them.

    Args:
        dataset: folder of the images.
        data_list: the list.
        several_channels: as for `find_cases`.

    Returns:
        Each case under its name and, for runs that number them, under its number.

    Raises:
        InputError: as `find_cases` does.
    """
    try:
        items = json.loads((dataset / "dataset.json").read_text(encoding="utf-8"))[data_list]
        labelled = all("label" in item for item in items)
    except (OSError, ValueError, KeyError, TypeError):
        labelled = False  # no list, or a bad one: what is wrong with it, `find_cases` says
    return [
        case
        for anonymous in (False, True)
        for case in find_cases(str(dataset), data_list, labelled, anonymous, several_channels=several_channels)
    ]


def length_unit(path: str | Path, pixel_size: PixelSize | None) -> str:
    """Return the unit of lengths in an image or labelmap of a run: ``"mm"``, or ``"pixels"`` where nobody states more.

    Args:
        path: of the file.
        pixel_size: of PNG files, ``"pixel_size"`` in the report of a case.
    """
    return "pixels" if is_png(path) and not pixel_size else "mm"


def read_oriented(path: str | Path, dim: int, pixel_size: PixelSize | None = None, label: bool = False) -> MetaTensor:
    """Read an image or labelmap ``[C, *shape]``; the axes of a volume are brought to right, anterior, superior.

    Args:
        path: of the file. Of an `ImagePath` of several, it is the first that is read.
        dim: 2 or 3.
        pixel_size: of PNG files, ``"pixel_size"`` in the report of a case; other files have their own.
        label: it is a label of the data set, see `read_volume`.

    Raises:
        InputError: as `read_volume` does.
    """
    volume = read_volume(Path(path), dim, pixel_size if is_png(path) else None, None, label)
    return volume if dim == 2 else Orientation("RAS", labels=None)(volume)


def result_file(folder: Path, ending: str) -> Path:
    """Find the file of a case's folder with this ending (``seg``, ``itn``, ``one_pass``), whatever its format.

    Raises:
        InputError: there is no ``seg``, though every run writes it; other files need not exist.
    """
    stem = f"{folder.name}_{ending}"
    found = [path for suffix in _SUFFIXES if (path := folder / f"{stem}{suffix}").is_file()]
    if not found and ending == FULL:
        raise InputError(
            f"{folder / stem}.*: no such file. Expected the label map that inference writes for each case (.nii.gz or "
            ".png). Run inference again."
        )
    return found[0] if found else folder / stem


def find_case_folders(output: Path) -> list[Path]:
    """Find the folders of the cases of a run, in the order of their names."""
    return sorted(file.parent for file in output.glob("*/*.json") if file.stem == file.parent.name)


def find_results(folder: Path, report: Mapping[str, Any]) -> dict[str, Path]:
    """Find the label maps of a case: a U-net's run has that of the ITN alone, and VML none that is refined.

    Of a run by atlases it is that of their fused labels, to which a learned atlas may be registered.

    Args:
        folder: of the case.
        report: its JSON.

    Returns:
        Name of a result → its file, in the order of `RESULTS`; the last one is that of the full method.

    Raises:
        InputError: there is no label map of the full method.
    """
    unregistered = "fused" if "atlases" in report else "itn"
    full = "refine" if "iterations" in report else "one_pass" if is_registered(folder) else unregistered
    before = list(RESULTS)[: list(RESULTS).index(full)]
    files = {name: result_file(folder, RESULTS[name].ending) for name in before}
    return {name: file for name, file in files.items() if file.is_file()} | {full: result_file(folder, FULL)}


def image_dimensions(path: Path) -> int:
    """Return 2 or 3, the dimensions of an image in a file; a single slice has 2.

    Raises:
        InputError: it cannot be read.
    """
    if is_png(path):
        return 2
    try:
        shape = nib.load(path).shape
    except (OSError, ImageFileError) as error:
        raise InputError(
            f"{path}: expected an image, found a file that cannot be read. Run inference again."
        ) from error
    return 3 if len(shape) > 2 and shape[2] > 1 else 2


def is_registered(folder: Path) -> bool:
    """Return whether a case has a transform between atlas and subject."""
    return _atlas_to_subject(folder).is_file()


def _atlas_to_subject(folder: Path) -> Path:
    return folder / f"{folder.name}_atlas_to_subject.h5"


def read_atlas_to_subject(folder: Path) -> CompositeTransform:
    """The transform of a case that resamples the atlas onto the subject; it takes LPS points to the atlas.

    Raises:
        InputError: it cannot be read.
    """
    return read_transform(_atlas_to_subject(folder))


def read_case_report(folder: Path) -> dict[str, Any]:
    """The JSON of a case.

    Raises:
        InputError: it cannot be read.
    """
    path = folder / f"{folder.name}.json"
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if not {"case", "topology", "labels", "loss_curve"} <= set(content):
            raise KeyError("labels or loss_curve")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: expected the JSON that inference writes for a case, found {type(error).__name__}. Run inference "
            "again."
        ) from error
    return content
