# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Names of cases, which become names of folders and files."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

__all__ = ["IMAGE_SUFFIXES", "case_names", "is_png", "patients_of", "safe_name"]

IMAGE_SUFFIXES = (".nii.gz", ".nii", ".png", ".nrrd", ".mha", ".mhd")
_TAKEN = ("atlas", "summary.csv", "summary.json", "metrics.csv")  # what a run writes beside the folders of its cases
_CASES_PER_PATIENT = 4  # on average at most, for what names have in common to be a patient
_LONGEST = 100  # characters; endings follow, and file systems take 255 bytes


def safe_name(text: str) -> str:
    """Return a text with underscores in place of all that is neither letter nor digit."""
    return "".join(character if character.isalnum() else "_" for character in text)


def is_png(path: str | os.PathLike[str]) -> bool:
    """Return whether a file is a PNG by its name: the one format that states no voxel size."""
    return str(path).lower().endswith(".png")


def case_names(paths: Sequence[str | os.PathLike[str]]) -> list[str]:
    """Name cases by their files or folders, without extension.

    A symbolic link gives its own name: that of its target may be a hash, or a patient's.

    Args:
        paths: of the images.

    Returns:
        For each path a name of safe characters that no other case has, also where a file system ignores upper and lower
        case, and that is no name which the results of a run need themselves.
    """
    names: list[str] = []
    taken = set(_TAKEN)
    for path in paths:
        stem = Path(os.path.abspath(path)).name  # noqa: PTH100 (Path.resolve follows links)
        suffix = next((end for end in IMAGE_SUFFIXES if stem.lower().endswith(end)), "")
        safe = re.sub(r"[^\w.-]+", "_", stem[: len(stem) - len(suffix)]).strip("._-")
        safe = safe[:_LONGEST].rstrip("._-") or "case"
        name, copy = safe, 1
        while name.casefold() in taken:
            copy += 1
            name = f"{safe}_{copy}"
        taken.add(name.casefold())
        names.append(name)
    return names


def patients_of(names: Sequence[str]) -> list[str]:
    """Name the patient of each case, as far as the names of the cases tell.

    A patient is ``sub-…`` of BIDS, or the shortest beginning of a name, up to a separator, that has a number and is not
    common to more than four cases on average; where there is none, each case is a patient of its own.
    """
    tokens = [re.findall(r"[^-_. ]+[-_. ]*", name) for name in names]
    for length in range(1, max(map(len, tokens), default=0) + 1):
        patients = [
            "".join(parts[: length + name.startswith("sub-")]).rstrip("-_. ")
            for name, parts in zip(names, tokens, strict=True)
        ]
        number = len(set(patients))
        numbered = all(re.search(r"\d", patient) for patient in patients)
        if numbered and number * _CASES_PER_PATIENT >= len(names) and (number > 1 or len(names) == 1):
            return patients
    return list(names)
