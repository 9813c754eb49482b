# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Reading back what an inference run wrote, beside the data set that it ran on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from monai.data import MetaTensor
from monai.transforms import Orientation

from ..errors import InputError
from .cases import find_cases
from .itk_transforms import CompositeTransform, read_transform
from .loading import read_volume

__all__ = ["FILES", "find_labelled_cases", "read_atlas_to_subject", "read_case_report", "read_oriented", "result_file"]

FILES = {"itn": "itn", "one_pass": "one_pass", "refine": "seg"}
"""Name of a result → ending of its file name."""


def find_labelled_cases(dataset: Path, data_list: str) -> list[dict[str, str]]:
    """Find the cases of a list, with their labels where the whole list has them.

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
    return [case for anonymous in (False, True) for case in find_cases(str(dataset), data_list, labelled, anonymous)]


def read_oriented(path: str | Path, dim: int) -> MetaTensor:
    """Read an image or labelmap ``[1, *shape]``; the axes of a volume are brought to right, anterior, superior.

    Raises:
        InputError: as `read_volume` does.
    """
    volume = read_volume(path, dim)
    return volume if dim == 2 else Orientation("RAS", labels=None)(volume)


def result_file(folder: Path, ending: str) -> Path:
    """The file of a case's folder with this ending (``seg``, ``itn``, ``one_pass``), whatever its format.

    Raises:
        InputError: there is none, though every run writes it; other files need not exist.
    """
    stem = f"{folder.name}_{ending}"
    found = sorted(folder.glob(f"{stem}.*"))
    if not found and ending in FILES.values():
        raise InputError(
            f"{folder / stem}.*: no such file. Expected the label map that inference writes for each case (.nii.gz or "
            ".png). Run inference again."
        )
    return found[0] if found else folder / stem


def read_atlas_to_subject(folder: Path) -> CompositeTransform:
    """The transform of a case that resamples the atlas onto the subject; it takes LPS points to the atlas.

    Raises:
        InputError: it cannot be read.
    """
    return read_transform(folder / f"{folder.name}_atlas_to_subject.h5")


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
