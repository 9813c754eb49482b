# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Which series of a DICOM study suit the model.

The rules look at what the model needs, and at headers that every image series has: the test series, a crop around the
hippocampus, has no body part, no protocol and no acquisition type. Messages hold neither file names nor identifiers.
"""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom

from atlas_istn.errors import InputError
from atlas_istn.io.dicom_files import IMAGE, read_dataset, silent, why_no_image
from atlas_istn.io.loading import read_volume

__all__ = ["ANY", "Range", "Rules", "Selection", "select_series"]

Range = tuple[np.ndarray, np.ndarray]
"""Least and greatest."""
ANY = "n/a"
"""Modality in the metadata of a bundle that does not say for which it is."""

logger = logging.getLogger(__name__)

_ENDS = ("least", "greatest")
_DAMAGED = "rule 'regular grid'"
_TAGS = ["SeriesInstanceUID", "SeriesNumber", "Modality"]


@dataclass(frozen=True)
class Rules:
    """What a series must be like. Axes are in any order, so the numbers of the three rise.

    Attributes:
        modality: DICOM modality; `ANY` where the bundle does not say.
        min_slices: least number of slices; scouts have fewer.
        voxel_size: least and greatest voxel size in mm, each ``[3]``.
        field_of_view: least and greatest extent in mm, each ``[3]``; what lies beyond the model's grid is left out.
    """

    modality: str
    min_slices: int
    voxel_size: Range
    field_of_view: Range

    @classmethod
    def of(
        cls,
        config: Mapping[str, Any],
        metadata: Mapping[str, Any],
        voxel_size: Sequence[float],
        field_of_view: Sequence[float],
    ) -> Rules:
        """Take the rules from a bundle.

        Args:
            config: its ``inference.yaml``.
            metadata: its ``metadata.json``. Where it has the fingerprint of the training images, these are the measure;
                else the model's grid is.
            voxel_size: how small and how large voxels may be, as fractions of the least and of the greatest of these.
            field_of_view: the same of extents. A model with a locator takes images of any size above the least.
        """
        grid = {"shape": config["spatial_size"], "spacing": config["spacing"]}
        seen = metadata.get("training", {}).get("fingerprint") or {
            name: dict.fromkeys(_ENDS, grid[name]) for name in grid
        }
        ends = [(np.asarray(seen["shape"][end]), np.asarray(seen["spacing"][end])) for end in _ENDS]
        voxels = [np.sort(spacing) * factor for (_, spacing), factor in zip(ends, voxel_size, strict=True)]
        extents = [np.sort(shape * spacing) * f for (shape, spacing), f in zip(ends, field_of_view, strict=True)]
        if config.get("localise"):
            extents[1] = np.full(3, np.inf)
        slices = math.ceil(extents[0].min() / voxels[1].max())  # with fewer one of the two would be broken anyhow
        image = metadata["network_data_format"]["inputs"]["image"]
        return cls(image["modality"], slices, (voxels[0], voxels[1]), (extents[0], extents[1]))

    def broken(self, series: _Series) -> str:
        """The first rule that a series breaks, with what was expected and found; empty if it suits."""
        if self.modality not in (ANY, series.modality):
            return f"rule 'modality': expected {self.modality}, found {series.modality or 'none'}"
        if series.images < self.min_slices:
            return f"rule 'slices': expected {self.min_slices} or more, found {series.images}"
        try:
            volume = read_volume(series.folder, spatial_dims=3)
        except InputError as error:
            return f"{_DAMAGED}: {str(error).removeprefix(f'{series.folder}: ')}"
        voxels = np.asarray(volume.pixdim, dtype=float)
        return _outside("voxel size", np.sort(voxels), self.voxel_size) or _outside(
            "field of view", np.sort(voxels * volume.shape[1:]), self.field_of_view
        )


@dataclass(frozen=True)
class _Series:
    """A series in a folder of its own."""

    folder: Path
    number: str
    modality: str
    images: int

    def __str__(self) -> str:
        number = f"number {self.number}, " if self.number else ""
        return f"{self.folder.name.replace('_', ' ')} ({number}{self.modality or 'no modality'}, {self.images} images)"


@dataclass(frozen=True)
class Selection:
    """What a study holds for the model.

    Attributes:
        folder: takes a folder of links for each series that suits, ``series_1``, ``series_2``, …
        damaged: a line for each series that would have to be segmented if it were whole, and for files that belong to
            none.
    """

    folder: Path
    damaged: list[str]


def select_series(study_dir: Path, series_dir: Path, rules: Rules) -> Selection:
    """Find the series of a study that suit the model, and put each into a folder of its own.

    Args:
        study_dir: DICOM files in any arrangement, searched at any depth.
        series_dir: takes the folders of the series, one or more.
        rules: what to look for.

    Raises:
        InputError: none suits, with the rule that each breaks; or there are no series at all.
    """
    found, damaged = _sort_into_folders(study_dir, series_dir)
    broken = {series: rules.broken(series) for series in found}
    if all(broken.values()):
        reasons = [*(f"{series}: {reason}" for series, reason in broken.items()), *damaged]
        raise InputError("no series of the study suits the model:\n" + "\n".join(f"  {line}" for line in reasons))
    for series, reason in broken.items():
        if reason.startswith(_DAMAGED):
            damaged.append(f"{series}: {reason}")
        elif reason:
            logger.info("left out: %s: %s", series, reason)
        if reason:
            shutil.rmtree(series.folder)
    return Selection(series_dir, damaged)


def _sort_into_folders(study_dir: Path, series_dir: Path) -> tuple[list[_Series], list[str]]:
    """The series, and what is to be said of files that are none's."""
    files: dict[str, list[Path]] = {}
    headers: dict[str, pydicom.Dataset] = {}
    damaged = 0
    for path in sorted(item for item in study_dir.rglob("*") if item.is_file() and not item.name.startswith(".")):
        if why_no_image(path) != IMAGE:
            continue
        try:
            with silent():
                header = read_dataset(path, _TAGS)
                uid = str(header.SeriesInstanceUID)
        except Exception:  # pydicom raises many types on damaged files
            damaged += 1
            continue
        files.setdefault(uid, []).append(path)
        headers.setdefault(uid, header)
    lost = [f"{damaged} damaged DICOM files. Expected complete files. Copy the study again."] if damaged else []
    if not files:
        why = f", but {lost[0]}" if lost else ". Expected a folder with DICOM files. Check the path."
        raise InputError(f"the study holds no DICOM series{why}")
    series = []
    for position, uid in enumerate(
        sorted(files, key=lambda uid: (headers[uid].get("SeriesNumber") or 0, uid)), start=1
    ):
        folder = series_dir / f"series_{position}"
        folder.mkdir(parents=True)
        for index, path in enumerate(files[uid]):
            (folder / f"{index:05}.dcm").symlink_to(path.resolve())
        header = headers[uid]
        number = "" if header.get("SeriesNumber") is None else str(header.SeriesNumber)
        series.append(_Series(folder, number, str(header.get("Modality", "")), len(files[uid])))
    return series, lost


def _outside(name: str, found: np.ndarray, limits: Range) -> str:
    low, high = limits
    if ((found >= low) & (found <= high)).all():
        return ""
    expected = " × ".join(f"{a:.3g}-{b:.3g}" for a, b in zip(low, high, strict=True))
    return f"rule '{name}': expected {expected} mm, found {' × '.join(f'{size:.3g}' for size in found)} mm"
