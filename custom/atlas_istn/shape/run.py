# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""The folder that an inference run wrote, as its commands see it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
from monai.data import MetaTensor

from ..errors import InputError
from ..io.loading import PixelSize, read_volume
from ..io.names import is_png, safe_name
from ..io.registration import Registration, read_registration
from ..io.results import length_unit, read_case_report, result_file

__all__ = ["ATLAS", "Run", "check_count", "counted"]

ATLAS = "atlas"
"""Name of the atlas where a case could stand."""

_SHOWN = 5  # cases that a message names


@dataclass(frozen=True)
class Run:
    """Cases and atlas of an inference run.

    Attributes:
        folder: the folder.
        cases: names of the cases that have a registration, sorted.
    """

    folder: Path
    cases: tuple[str, ...]

    @classmethod
    def open(cls, output_dir: str | Path) -> Run:
        """Look through a folder.

        Raises:
            InputError: it holds no atlas, or no case with a registration.
        """
        folder = Path(output_dir)
        cases = sorted(path.parent.name for path in folder.glob("*/*_registration.npz") if _own(path))
        if not cases or not (folder / "atlas" / "atlas_probabilities.nii.gz").is_file():
            raise InputError(
                f"{folder}: no results of inference. Expected the folder atlas and, for each case, "
                "CASE/CASE_registration.npz. Give the output_dir of an inference run; one of an older version must be "
                "run again."
            )
        return cls(folder, tuple(cases))

    def choose(self, names: str | Iterable[str], atlas: bool = False) -> list[str]:
        """The cases of a list, in its order; ``"all"`` for all of them.

        Args:
            names: names of cases, or one string with commas between them.
            atlas: the atlas may be among them.

        Raises:
            InputError: a name that is no case of this run.
        """
        if names == "all":
            return list(self.cases)
        wanted = names.split(",") if isinstance(names, str) else [str(name) for name in names]
        wanted = [name.strip() for name in wanted if name.strip()]
        unknown = [name for name in wanted if name not in self.cases and not (atlas and name == ATLAS)]
        if unknown or not wanted:
            shown = ", ".join(self.cases[:_SHOWN]) + (", …" if len(self.cases) > _SHOWN else "")
            known = f"names of its {counted(len(self.cases), 'case')} ({shown}){f' or {ATLAS}' if atlas else ''}"
            raise InputError(f"{self.folder}: expected {known}, found {f'{unknown[0]!r}' if unknown else 'no name'}.")
        return wanted

    def check(self, names: Iterable[str], grids: bool = False) -> None:
        """Find out whether the files of cases can be read, before anything is written for the first of them.

        Args:
            names: cases; the atlas may be among them.
            grids: also the label maps, besides the registrations.

        Raises:
            InputError: one cannot be read.
        """
        for name in dict.fromkeys(names):
            if name != ATLAS:
                self.registration(name)
            if grids:
                self.grid(name)

    def registration(self, case: str) -> Registration:
        """The registration of a case.

        Raises:
            InputError: it cannot be read.
        """
        return read_registration(self.folder / case / f"{case}_registration.npz")

    @cached_property
    def dim(self) -> int:
        """2 or 3."""
        return self.registration(self.cases[0]).dim

    @property
    def unit(self) -> str:
        """Of lengths, in words."""
        return length_unit(result_file(self.folder / self.cases[0], "seg"), self.pixel_size(self.cases[0]))

    def pixel_size(self, case: str) -> PixelSize | None:
        """Size of a pixel, where the image of a case is a PNG and the run was told.

        Raises:
            InputError: the report of the case cannot be read.
        """
        return read_case_report(self.folder / case).get("pixel_size")

    def grid(self, name: str) -> MetaTensor:
        """The labelmap ``[1, *shape]`` of a case on the grid of its image, or of the atlas.

        Raises:
            InputError: it cannot be read.
        """
        path = self.atlas_file("labelmap") if name == ATLAS else result_file(self.folder / name, "seg")
        return self.read(path, name)

    def read(self, path: str | Path, name: str) -> MetaTensor:
        """An image or labelmap ``[1, *shape]`` in the space of a case or of the atlas.

        Raises:
            InputError: it cannot be read.
        """
        return read_volume(path, self.dim, self.pixel_size(name) if is_png(path) and name != ATLAS else None)

    def atlas_file(self, name: str) -> Path:
        """The file ``image``, ``labelmap`` or ``probabilities`` of the atlas."""
        return self.folder / "atlas" / f"atlas_{name}.nii.gz"

    def probabilities(self) -> npt.NDArray[np.float32]:
        """Soft labelmap of the atlas ``[Nc, *shape]``, background first.

        Raises:
            InputError: it cannot be read.
        """
        path = self.atlas_file("probabilities")
        shape = self.registration(self.cases[0]).transform.shape
        try:
            voxels = np.asarray(nib.load(path).get_fdata(dtype=np.float32))
            return np.moveaxis(voxels.reshape(*shape, -1), -1, 0)
        except Exception as error:  # of a damaged file nibabel, gzip and zlib complain with an exception each
            raise InputError(f"{path}: the atlas cannot be read. Run inference again.") from error

    def label_names(self) -> list[str]:
        """Names of the foreground labels in the order of the atlas's channels, fit for file names.

        Raises:
            InputError: the report of the first case cannot be read.
        """
        case = self.cases[0]
        path = self.folder / case / f"{case}.json"
        try:
            names = list(json.loads(path.read_text(encoding="utf-8"))["topology"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}: expected the report that inference writes. Run inference again.") from error
        return [safe_name(name) for name in names]

    def label_values(self) -> list[int]:
        """Values of the foreground labels in the labelmap files, in the order of the atlas's channels.

        Raises:
            InputError: the atlas cannot be read, or a label has no voxel in it.
        """
        classes = self.probabilities().argmax(axis=0)
        values = read_volume(self.atlas_file("labelmap"), self.dim)[0].numpy().round().astype(int)
        result = []
        for index, name in enumerate(self.label_names(), start=1):
            found = values[classes == index]
            if not found.size:
                raise InputError(f"{self.atlas_file('labelmap')}: the atlas has no voxel of {name}. Train it longer.")
            result.append(int(found[0]))
        return result


def check_count(cases: Sequence[str], least: int, purpose: str) -> None:
    """Refuse too few cases.

    Raises:
        InputError: there are fewer than ``least``.
    """
    if len(cases) < least:
        raise InputError(
            f"{purpose} needs at least {counted(least, 'case')}, found {len(cases)}. Name more in --cases, or run "
            "inference on more."
        )


def counted(number: int, noun: str) -> str:
    """Number and noun, in the plural where that is right."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _own(path: Path) -> bool:
    return path.name == f"{path.parent.name}_registration.npz"
