# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Which labelled cases a folder holds, in which lists, and what its labels are called."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..io.channels import ImagePath, channel_files, files_of, join_channels, namesake, without_channel
from ..io.names import IMAGE_SUFFIXES, case_names

__all__ = ["LISTS", "Case", "DataSet", "discover"]

LISTS = ("training", "validation", "test")
_FOLDERS = {"tr": "training", "train": "training", "training": "training", "val": "validation", "ts": "test"}
_FOLDERS |= {"validation": "validation", "test": "test"}
_LABEL_ENDS = re.compile(r"[-_.](seg|segmentation|label|labels|mask|gt|labelmap)$", re.IGNORECASE)
_SHOWN = 5


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
        has_json: whether there is a ``dataset.json``.
    """

    folder: Path
    cases: Sequence[Case]
    names: Mapping[int, str]
    ignored: Mapping[str, int] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    has_json: bool = False


def discover(dataset_dir: str, lists: Sequence[str] = ()) -> DataSet:
    """Find the labelled cases of a folder.

    The channels of an image may lie in several files, ``NAME_0000``, ``NAME_0001``, …

    Args:
        dataset_dir: a folder with a ``dataset.json`` (Medical Segmentation Decathlon), or with folders ``images*`` and
            ``labels*`` whose files have the same names.
        lists: of ``dataset.json``, or endings of the folders; by default those named ``training``, ``validation`` and
            ``test``, or all folders.

    Raises:
        InputError: there is no such folder, nothing with labels, or not the lists.
    """
    folder = Path(dataset_dir)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder. Expected a labelled data set. Check the path.")
    return _from_json(folder, lists) if (folder / "dataset.json").is_file() else _from_folders(folder, lists)


def _from_json(folder: Path, wanted: Sequence[str]) -> DataSet:
    source = folder / "dataset.json"
    try:
        content = dict(json.loads(source.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{source}: expected a JSON object, found none ({error}). Correct the file.") from error
    lists = {key: value for key, value in content.items() if isinstance(value, list)}
    if not lists:  # as nnU-Net has it
        return replace(_from_folders(folder, wanted), names=_label_names(content.get("labels")))
    labelled = {key: [entry for entry in value if _is_labelled(entry)] for key, value in lists.items()}
    available = ", ".join(f"{key} ({len(value)}, {len(labelled[key])} with labels)" for key, value in lists.items())
    missing = [name for name in wanted if not labelled.get(name)]
    used = list(wanted) or [name for name in LISTS if labelled.get(name)]
    if missing or ("training" not in used and not wanted):
        raise InputError(
            f"{source}: expected {'the list ' + ', '.join(missing) if missing else 'a list training'} with images and "
            f"labels. The lists there: {available or 'none'}. Choose with --lists."
        )
    cases = _named(
        [
            Case("", _image(channel_files(folder, entry["image"])), os.path.normpath(entry["label"]), name)
            for name in used
            for entry in labelled[name]
        ]
    )
    ignored = {name: len(value) for name, value in lists.items() if name not in used}
    unlabelled = {name: len(lists[name]) - len(labelled[name]) for name in used}
    warnings = [
        f"{count} entries of the list {name} have no label: left out" for name, count in unlabelled.items() if count
    ]
    return DataSet(folder, cases, _label_names(content.get("labels")), ignored, warnings, has_json=True)


def _is_labelled(entry: Any) -> bool:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("label"), str):
        return False
    images = entry.get("image")
    images = [images] if isinstance(images, str) else images
    return isinstance(images, list) and bool(images) and all(isinstance(image, str) for image in images)


def _image(files: Sequence[str]) -> ImagePath:
    return ImagePath([os.path.normpath(file) for file in files])


def _named(cases: Sequence[Case]) -> list[Case]:
    names = case_names([namesake(case.image) for case in cases])
    return [replace(case, name=name) for case, name in zip(cases, names, strict=True)]


def _label_names(table: Any) -> dict[int, str]:
    """Value → name, of a table that has either first."""
    names: dict[int, str] = {}
    for key, value in table.items() if isinstance(table, Mapping) else ():
        first, second = (value, key) if str(value).lstrip("-").isdigit() else (key, value)
        if str(first).lstrip("-").isdigit():
            names[int(first)] = str(second)
    return names


def _from_folders(folder: Path, wanted: Sequence[str]) -> DataSet:
    pairs = {}
    for images in sorted(path for path in folder.iterdir() if path.is_dir() and path.name.lower().startswith("image")):
        ending = re.sub(r"^images?[-_]?", "", images.name, flags=re.IGNORECASE)
        for labels in sorted(path for path in folder.iterdir() if path.is_dir()):
            if re.fullmatch(rf"(labels?|masks?|segmentations?)[-_]?{re.escape(ending)}", labels.name, re.IGNORECASE):
                pairs[ending] = (images, labels)
    if not pairs:
        raise InputError(
            f"{folder}: no labelled data set found. Expected a dataset.json, or folders images and labels (imagesTr "
            "and labelsTr, …) whose files have the same names. Check the path."
        )
    missing = [name for name in wanted if name not in pairs]
    if missing:
        raise InputError(
            f"{folder}: no folders images{missing[0]} and labels{missing[0]}. Choose of {', '.join(pairs)}."
        )
    cases: list[Case] = []
    warnings: list[str] = []
    for ending, (images, labels) in pairs.items():
        if not wanted or ending in wanted:
            source = _FOLDERS.get(ending.lower(), "") if len(pairs) > 1 else ""
            cases += _matched(folder, images, labels, source, warnings)
    ignored = {ending: len(_files(images)) for ending, (images, _) in pairs.items() if wanted and ending not in wanted}
    if not cases:
        raise InputError(
            f"{folder}: no image has a label of the same name. Expected both. Check the names of the files."
        )
    return DataSet(folder, _named(cases), {}, ignored, warnings)


def _matched(folder: Path, images: Path, labels: Path, source: str, warnings: list[str]) -> list[Case]:
    stems = {_LABEL_ENDS.sub("", _stem(path)): path for path in _files(labels)}
    paths = _files(images)
    whole = [path for path in paths if _stem(path) in stems]
    channels = join_channels([path for path in paths if path not in whole])
    cases, alone = [], []
    for image in sorted([*map(str, whole), *channels]):
        label = stems.pop(_stem(Path(image)), None) or stems.pop(_stem(Path(without_channel(image))), None)
        if label:
            files = [str(Path(file).relative_to(folder)) for file in files_of(image)]
            cases.append(Case("", _image(files), str(label.relative_to(folder)), source))
        else:
            alone += [Path(file).name for file in files_of(image)]
    for what, names in (
        ("images without a label", alone),
        ("labels without an image", [p.name for p in stems.values()]),
    ):
        if names:
            shown = ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
            warnings.append(f"{len(names)} {what} in {images.name}: left out ({shown})")
    return cases


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.name.lower().endswith(IMAGE_SUFFIXES) and not p.name.startswith("."))


def _stem(path: Path) -> str:
    suffix = next(end for end in IMAGE_SUFFIXES if path.name.lower().endswith(end))
    return path.name[: len(path.name) - len(suffix)]
