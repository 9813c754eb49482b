# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Which cases a folder holds."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from .dicom import is_series_folder

__all__ = ["find_cases"]

_SUFFIXES = (".nii.gz", ".nii", ".png", ".nrrd", ".mha")
_SHOWN = 3  # missing files that a message names


def find_cases(dataset_dir: str, list_name: str = "test", with_labels: bool = False) -> list[dict[str, str]]:
    """Find the images of a folder, with a name for each.

    Where the folder holds a ``dataset.json`` (layout of the Medical Segmentation Decathlon), one of its lists is
    used. Otherwise it is every NIfTI, PNG, NRRD or MHA file directly in the folder, and every folder in it, at any
    depth and itself included, in which DICOM files lie.

    Args:
        dataset_dir: the folder.
        list_name: the list of ``dataset.json``; of no effect without that file.
        with_labels: add the path of each label; only a ``dataset.json`` can tell it.

    Returns:
        ``[{"case": name, "image": path, "label": path}]`` sorted by case. The name is the file or folder name without
        extension, made unique and fit for a file name. ``label`` is there only with ``with_labels``.

    Raises:
        InputError: if the folder, the list, a file or a label is missing, or no image is found.
    """
    folder = Path(dataset_dir)
    if not folder.is_dir():
        raise InputError(f"dataset_dir {folder}: no such folder. Expected a folder with images. Check the path.")
    if (folder / "dataset.json").is_file():
        entries = _listed(folder, list_name, with_labels)
    elif with_labels:
        raise InputError(f"{folder}: no dataset.json, which says where the labels are. Add one, or run without labels.")
    else:
        entries = [{"image": str(path)} for path in _found(folder)]
    names = _case_names([entry["image"] for entry in entries])
    cases = [{"case": name, **entry} for name, entry in zip(names, entries, strict=True)]
    return sorted(cases, key=lambda case: case["case"])


def _listed(folder: Path, list_name: str, with_labels: bool) -> list[dict[str, str]]:
    """Absolute or relative paths of one list of ``dataset.json``, all of them of files that exist."""
    source = folder / "dataset.json"
    items = _read_list(source, list_name)
    keys = ("image", "label") if with_labels else ("image",)
    entries = []
    for number, item in enumerate(items, start=1):
        fields = item if isinstance(item, Mapping) else {"image": item}
        absent = [key for key in keys if not isinstance(fields.get(key), str)]
        if absent:
            raise InputError(
                f"{source}: entry {number} of the list '{list_name}' has no path for '{absent[0]}'. Expected "
                f'{{"image": path, "label": path}}. Complete the entry, or choose another list.'
            )
        entries.append({key: str(folder / fields[key]) for key in keys})

    missing = [path for entry in entries for path in entry.values() if not Path(path).exists()]
    if missing:
        shown = ", ".join(missing[:_SHOWN]) + (", …" if len(missing) > _SHOWN else "")
        raise InputError(
            f"{source}: {len(missing)} files of the list '{list_name}' do not exist: {shown}. Copy them there, or "
            f"correct the list; paths are relative to {folder}."
        )
    return entries


def _read_list(source: Path, list_name: str) -> Sequence[Any]:
    try:
        content = json.loads(source.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{source}: not readable as JSON ({error}). Correct the file.") from error
    lists = (
        {key: value for key, value in content.items() if isinstance(value, list)} if isinstance(content, dict) else {}
    )
    if not lists.get(list_name):
        state = "is empty" if list_name in lists else "does not exist"
        available = ", ".join(f"'{key}' ({len(value)})" for key, value in lists.items()) or "none"
        raise InputError(f"{source}: the list '{list_name}' {state}. The lists there: {available}. Choose one of them.")
    return lists[list_name]


def _found(folder: Path) -> list[Path]:
    files = [
        path
        for path in folder.iterdir()
        if path.is_file() and path.name.lower().endswith(_SUFFIXES) and not path.name.startswith(".")
    ]
    series = [Path(inner) for inner, _, _ in os.walk(folder) if is_series_folder(inner)]
    if not files and not series:
        raise InputError(
            f"{folder}: no image found. Expected {', '.join(_SUFFIXES)} files directly in this folder, folders of "
            f"DICOM series, or a dataset.json. Check the path."
        )
    return sorted(files) + sorted(series)


def _case_names(paths: Sequence[str]) -> list[str]:
    """Names for output files: safe characters only, and different also where a file system ignores case."""
    names: list[str] = []
    taken: set[str] = set()
    for path in paths:
        stem = Path(path).resolve().name
        suffix = next((end for end in _SUFFIXES if stem.lower().endswith(end)), "")
        safe = re.sub(r"[^\w.-]+", "_", stem.removesuffix(stem[len(stem) - len(suffix) :])).strip("._-") or "case"
        name, copy = safe, 1
        while name.casefold() in taken:
            copy += 1
            name = f"{safe}_{copy}"
        taken.add(name.casefold())
        names.append(name)
    return names
