# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Which labelled cases a folder holds, in which lists, and what its labels are called."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..io.cases import read_data_lists, read_data_object
from ..io.channels import ImagePath, channel_files, files_of, namesake
from ..io.files import walk
from ..io.layouts import fits, labelled_images
from ..io.names import IMAGE_SUFFIXES, case_names

__all__ = ["LISTS", "Case", "DataSet", "discover"]

LISTS = ("training", "validation", "test")
_GROUPS = {"tr": "training", "train": "training", "training": "training", "ts": "test", "test": "test"}
_GROUPS |= {"testing": "test", "val": "validation", "valid": "validation", "validation": "validation"}


@dataclass(frozen=True)
class Case:
    """A labelled case.

    Attributes:
        name: as results will have it.
        image: path, relative to the data set; an `ImagePath` where the channels lie in several files.
        label: likewise.
        source: the list that it stands in; empty where there are no lists.
    """

    name: str
    image: str
    label: str
    source: str


@dataclass(frozen=True)
class DataSet:
    """What was found.

    Attributes:
        folder: of the data set; paths are relative to it.
        cases: the labelled ones of the lists in use.
        names: value of a label → its name, as far as the data set tells.
        ignored: lists that are not used → number of entries.
        warnings: what lies there and is not used.
        has_lists: whether there is a ``dataset.json`` with lists.
    """

    folder: Path
    cases: Sequence[Case]
    names: Mapping[int, str]
    ignored: Mapping[str, int] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    has_lists: bool = False


def discover(dataset_dir: str, lists: Sequence[str] = (), leave_out: Sequence[str] = ()) -> DataSet:
    """Find the labelled cases of a folder.

    The channels of an image may lie in several files, ``NAME_0000``, ``NAME_0001``, …

    Args:
        dataset_dir: a folder with a ``dataset.json`` (Medical Segmentation Decathlon, nnU-Net), or with images and
            labels as `labelled_images` finds them.
        lists: of ``dataset.json``, or groups of folders; by default those named ``training``, ``validation`` and
            ``test``, or all.
        leave_out: patterns with ``*`` of the names of cases and files that are not to be used.

    Raises:
        InputError: there is no such folder, nothing with labels, not the lists, or nothing to leave out.
    """
    folder = Path(dataset_dir)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder. Expected a labelled data set. Check the path.")
    source = folder / "dataset.json"
    content = read_data_object(source) if source.is_file() else {}
    entries = read_data_lists(source) if content else {}
    found = _from_lists(source, entries, lists) if entries else _from_folders(folder, lists, leave_out)
    cases = [case for case in found.cases if not _left_out(case, leave_out)]
    files = [path.relative_to(folder) for _, paths in walk(folder) for path in paths] if leave_out else []
    for pattern in leave_out:
        if not any(fits(path, [pattern]) for path in files) and not any(_left_out(c, [pattern]) for c in found.cases):
            raise InputError(f"--leave_out {pattern}: expected the name of a case or file, or a pattern; it fits none.")
    if not cases:
        raise InputError(f"{folder}: --leave_out {','.join(leave_out)} leaves no case. Leave out less.")
    return replace(found, cases=cases, names=_label_names(content.get("labels")))


def _left_out(case: Case, patterns: Sequence[str]) -> bool:
    return any(fits(Path(path), patterns) for path in (case.name, case.label, *files_of(case.image)))


def _from_lists(source: Path, lists: Mapping[str, Sequence[Any]], wanted: Sequence[str]) -> DataSet:
    labelled = {key: [entry for entry in value if _is_labelled(entry)] for key, value in lists.items()}
    available = ", ".join(f"{key} ({len(value)}, {len(labelled[key])} with labels)" for key, value in lists.items())
    missing = [name for name in wanted if not labelled.get(name)]
    used = list(wanted) or [name for name in LISTS if labelled.get(name)]
    if missing or ("training" not in used and not wanted):
        raise InputError(
            f"{source}: expected {'the list ' + ', '.join(missing) if missing else 'a list training'} with images and "
            f"labels. The lists there: {available}. Choose with --lists."
        )
    folder = source.parent
    cases = [
        Case("", _image(channel_files(folder, entry["image"])), os.path.normpath(entry["label"]), name)
        for name in used
        for entry in labelled[name]
    ]
    names = case_names([namesake(case.image) for case in cases])
    ignored = {name: len(value) for name, value in lists.items() if name not in used}
    unlabelled = {name: len(lists[name]) - len(labelled[name]) for name in used}
    warnings = [
        f"{count} entries of the list {name} have no label: left out" for name, count in unlabelled.items() if count
    ]
    cases = [replace(case, name=name) for case, name in zip(cases, names, strict=True)]
    return DataSet(folder, cases, {}, ignored, warnings, has_lists=True)


def _is_labelled(entry: Any) -> bool:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("label"), str):
        return False
    images = entry.get("image")
    images = [images] if isinstance(images, str) else images
    return isinstance(images, list) and bool(images) and all(isinstance(image, str) for image in images)


def _image(files: Sequence[str]) -> ImagePath:
    return ImagePath([os.path.normpath(file) for file in files])


def _label_names(table: Any) -> dict[int, str]:
    """Value → name, of a table that has either first.

    A region of nnU-Net has several values. Regions lie in each other, so a value is called by the smallest that has it,
    and values of one name are one class. ``ignore`` is the name of voxels that nobody labelled, and of no class.
    """
    regions: list[tuple[list[int], str]] = []
    for key, value in table.items() if isinstance(table, Mapping) else ():
        first, second = (key, value) if str(key).lstrip("-").isdigit() else (value, key)
        values = first if isinstance(first, list) else [first]
        if values and all(str(number).lstrip("-").isdigit() for number in values):
            regions.append(([int(number) for number in values], str(second)))
    names: dict[int, str] = {}
    for values, name in sorted(regions, key=lambda region: len(region[0])):
        for number in values:
            names.setdefault(number, name)
    return names


def _from_folders(folder: Path, wanted: Sequence[str], leave_out: Sequence[str]) -> DataSet:
    found = labelled_images(folder, leave_out)
    groups = Counter(case.group for case in found.cases)
    if not groups:
        seen = "; ".join(found.warnings) or f"files of {', '.join(IMAGE_SUFFIXES)} are read"
        raise InputError(
            f"{folder}: no labelled data set found ({seen}). Expected a dataset.json with lists; "
            "or folders images and labels (imagesTr and labelsTr, …) whose files have the same names; or labels beside "
            "their images, called NAME_seg, NAME_gt, NAME_label, or segmentation in a folder for each case. Check the "
            "path and the names; what may mislead can be left out with --leave_out."
        )
    missing = [name for name in wanted if name not in groups]
    if missing:
        raise InputError(f"{folder}: no images of {missing[0]}. Choose of {', '.join(filter(None, groups))}.")
    cases = [
        Case(case.name, case.image, case.label, _GROUPS.get(case.group.lower(), "") if len(groups) > 1 else "")
        for case in found.cases
        if not wanted or case.group in wanted
    ]
    ignored = {group: count for group, count in groups.items() if wanted and group not in wanted}
    return DataSet(folder, cases, {}, ignored, found.warnings)
