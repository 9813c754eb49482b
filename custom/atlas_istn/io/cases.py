# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Which cases a folder holds."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from .channels import ImagePath, channel_files, files_of, in_folder, join_channels, namesake
from .dicom_files import IMAGE, why_no_image
from .files import walk
from .names import IMAGE_SUFFIXES, case_names

__all__ = ["Cases", "find_cases", "read_data_list", "read_data_lists", "read_data_object"]

_SHOWN = 3  # missing files that a message names
_VOXELS = (".raw", ".zraw")  # of an .mhd file
_LONGEST = 64 * 2**20  # bytes of a dataset.json; the largest known data sets need a hundredth


class Cases(list[dict[str, str]]):
    """Cases ``{"case": name, "image": path}``, with labels also ``"label"``; images may be `ImagePath`s.

    Args:
        cases: the cases.
        unused: what lies beside the images and is not used, file or folder within the data set → why. Hidden files are
            none of it.
        anonymous: the names are numbers, and no file names are to be shown.

    Attributes:
        of: how many cases there are, where these are some of them.
    """

    def __init__(
        self, cases: Sequence[dict[str, str]] = (), unused: Mapping[str, str] | None = None, anonymous: bool = False
    ) -> None:
        super().__init__(cases)
        self.unused = dict(unused or {})
        self.anonymous = anonymous
        self.of = len(self)


def find_cases(
    dataset_dir: str,
    list_name: str = "test",
    with_labels: bool = False,
    anonymous: bool | str = False,
    data_list_file: str | None = None,
    several_channels: bool = False,
) -> Cases:
    """Find the images of a folder, with a name for each.

    Where the folder holds a ``dataset.json`` (layout of the Medical Segmentation Decathlon), one of its lists is
    used. Otherwise it is every NIfTI, PNG, NRRD, MHA or MHD file directly in the folder, and every folder in it, at any
    depth and itself included, in which DICOM images lie; hidden files and folders are passed over. An entry of a list
    may have a name of its own, ``"case"``.

    Args:
        dataset_dir: the folder.
        list_name: the list of ``dataset.json``; of no effect without that file.
        with_labels: add the path of each label; only a ``dataset.json`` can tell it.
        anonymous: number the cases in the order of their names, ``case_001``, in place of naming them.
        data_list_file: a ``dataset.json`` somewhere else, as `plan` writes it: its ``"root"`` is the folder that the
            paths in it are relative to. For any other folder it is of no effect.
        several_channels: files ``NAME_0000``, ``NAME_0001``, … of a folder without lists are the channels of one image.
            In a list they always are, where it has ``NAME``, or a list of files, for an image.

    Returns:
        The cases, sorted by their names (see `case_names`), and what else lies in the folder.

    Raises:
        InputError: if the folder, the list, a file or a label is missing, or no image is found.
    """
    folder = Path(dataset_dir)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder. Expected a data set, a folder with images. Check the path.")
    unused: dict[str, str] = {}
    source = _list_file(folder, data_list_file)
    if source.is_file():
        entries = _listed(folder, source, list_name, with_labels)
    elif with_labels:
        raise InputError(
            f"{folder}: no dataset.json, which says where the labels are. Have `python -m atlas_istn plan` make one "
            "(data_list_file), or run without labels."
        )
    else:
        images, unused = _found(folder)
        joined = join_channels(images) if several_channels else [ImagePath([str(path)]) for path in images]
        entries = [{"image": image} for image in joined]
    names = case_names([entry.pop("case", "") or namesake(entry["image"]) for entry in entries])
    cases = sorted(
        ({"case": name, **entry} for name, entry in zip(names, entries, strict=True)), key=lambda c: c["case"]
    )
    if str(anonymous).lower() != "true":
        return Cases(cases, unused)
    numbered = [{**case, "case": f"case_{number:03}"} for number, case in enumerate(cases, start=1)]
    counts = Counter(unused.values())
    return Cases(numbered, {f"{count} in the folder": reason for reason, count in counts.items()}, anonymous=True)


def _list_file(folder: Path, elsewhere: str | None) -> Path:
    """The ``dataset.json`` that holds for a folder, its own or another; there need not be one."""
    own = folder / "dataset.json"
    if not elsewhere or not Path(elsewhere).is_file():
        return own
    root = read_data_object(Path(elsewhere)).get("root")
    return Path(elsewhere) if root and Path(root).resolve() == folder.resolve() else own


def _listed(folder: Path, source: Path, list_name: str, with_labels: bool) -> list[dict[str, str]]:
    """Absolute or relative paths of one list of ``dataset.json``, all of them of files that exist."""
    items = read_data_list(source, list_name)
    keys = ("image", "label") if with_labels else ("image",)
    entries = []
    for number, item in enumerate(items, start=1):
        fields = item if isinstance(item, Mapping) else {"image": item}
        absent = [key for key in keys if not _is_path(fields.get(key), several=key == "image" and fields is item)]
        if absent:
            raise InputError(
                f"{source}: entry {number} of the list '{list_name}' has no path for '{absent[0]}'. Expected "
                f'{{"image": path, "label": path}}. Complete the entry, or choose another list.'
            )
        image = in_folder(folder, ImagePath(channel_files(folder, fields["image"])))
        entry = {"image": image, **({"label": str(folder / fields["label"])} if with_labels else {})}
        entries.append(entry | ({"case": str(fields["case"])} if fields.get("case") else {}))

    paths = [path for entry in entries for key in keys for path in files_of(entry[key])]
    missing = [path for path in paths if not Path(path).exists()]
    if missing:
        shown = ", ".join(missing[:_SHOWN]) + (", …" if len(missing) > _SHOWN else "")
        raise InputError(
            f"{source}: {len(missing)} files of the list '{list_name}' do not exist: {shown}. Copy them there, or "
            f"correct the list; paths are relative to {folder}."
        )
    return entries


def _is_path(value: Any, several: bool) -> bool:
    if several and isinstance(value, list) and value:
        return all(isinstance(path, str) for path in value)
    return isinstance(value, str)


def read_data_list(source: Path, list_name: str) -> Sequence[Any]:
    """Read the entries of one list of a ``dataset.json``.

    Raises:
        InputError: the file cannot be read, or has no such list, or an empty one.
    """
    lists = read_data_lists(source)
    if not lists.get(list_name):
        state = "is empty" if list_name in lists else "does not exist"
        available = ", ".join(f"'{key}' ({len(value)})" for key, value in lists.items()) or "none"
        raise InputError(
            f"{source}: the list '{list_name}' {state}. The lists there: {available}. Choose one of them, with "
            "--train_list, --val_list or --test_list."
        )
    return lists[list_name]


def read_data_lists(source: Path) -> dict[str, list[Any]]:
    """Read the lists of cases of a ``dataset.json``; a list of numbers is none.

    Raises:
        InputError: the file cannot be read.
    """
    lists = {key: value for key, value in read_data_object(source).items() if isinstance(value, list)}
    return {
        key: value
        for key, value in lists.items()
        if not value or any(isinstance(entry, (str, Mapping)) for entry in value)
    }


def read_data_object(source: Path) -> dict[str, Any]:
    """Read the object in a ``dataset.json``; what is no object has nothing.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        if source.stat().st_size > _LONGEST:
            raise ValueError(f"more than {_LONGEST / 2**20:.0f} MiB")
        content = json.loads(source.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{source}: not readable as JSON ({error}). Correct the file.") from error
    return content if isinstance(content, dict) else {}


def _found(folder: Path) -> tuple[list[Path], dict[str, str]]:
    """Images and series folders, and why other files are none."""
    images: list[Path] = []
    series: list[Path] = []
    unused: dict[str, str] = {}
    for inner, files in walk(folder):
        reasons: dict[str, list[Path]] = defaultdict(list)
        for path in files:
            if path.suffix.lower() in _VOXELS and path.with_suffix(".mhd") in files:
                continue
            if not path.name.lower().endswith(IMAGE_SUFFIXES):
                reasons[why_no_image(path)].append(path)
            elif inner == folder:
                images.append(path)
            else:
                reasons["image in a sub-folder, where only DICOM is looked for"].append(path)
        if reasons.pop(IMAGE, None):
            series.append(inner)
        for reason, paths in reasons.items():
            name = str(paths[0].relative_to(folder))
            unused[name if len(paths) == 1 else f"{name} and {len(paths) - 1} more"] = reason
    if not images and not series:
        seen = "; ".join(f"{path}: {reason}" for path, reason in list(unused.items())[:_SHOWN])
        raise InputError(
            f"{folder}: no image found{f' ({seen})' if seen else ''}. Expected {', '.join(IMAGE_SUFFIXES)} files "
            f"directly in this folder, folders of DICOM series, or a dataset.json. Check the path."
        )
    return images + sorted(series), unused
