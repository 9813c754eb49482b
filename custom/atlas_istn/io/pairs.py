# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Which pairs of images are to be registered, and where their structures of interest lie."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from .cases import Cases, read_data_list, read_data_lists
from .names import IMAGE_SUFFIXES, case_names, patients_of
from .points import POINT_SUFFIXES

__all__ = ["SIDES", "find_pairs", "pair_name"]

SIDES = ("moving", "fixed")


def pair_name(fixed: str, moving: str) -> str:
    """Name a pair by its files: ``<fixed>__<moving>``."""
    return "__".join(case_names([path])[0] for path in (fixed, moving))


def find_pairs(
    dataset_dir: str,
    list_name: str,
    structures_dir: str = "",
    landmarks_dir: str = "",
    random_pairs: int = 0,
    moving_list: str = "",
    seed: int = 0,
    with_structures: bool = True,
) -> Cases:
    """Find the pairs of a list of ``dataset.json``, as Learn2Reg has them, or draw pairs of its images.

    An entry is ``{"fixed": path, "moving": path}``, and may have ``"fixed_label"`` and ``"moving_label"``. For others
    the structure of an image is looked for under its own file name in a folder; without one, among the labels that the
    lists of the file give for that image, and then in the folder ``labels…`` beside ``images…``, or ``labels``. That of
    a DICOM series has the name of its folder and ``.nii.gz``.

    Args:
        dataset_dir: folder with a ``dataset.json``.
        list_name: one of its lists.
        structures_dir: folder within, in which files of structures have the names of the images.
        landmarks_dir: folder within, in which files of points have the names of the images; empty for none.
        random_pairs: number of pairs to draw from a list of images, without repetition; 0 for a list of pairs.
        moving_list: the list from which the moving images are drawn, such as that of another modality, never with a
            fixed image of the same patient, see `patients_of`; empty for list_name.
        seed: of the draw.
        with_structures: look for structures at all.

    Returns:
        Pairs ``{"case", "moving", "fixed"}``, with structures ``"moving_structure"``, ``"fixed_structure"``, with
        landmarks ``"moving_points"``, ``"fixed_points"``; sorted by name. Whether files exist, their readers say.

    Raises:
        InputError: the file, the list or an entry is none such, or there are not as many pairs to draw.
    """
    folder = Path(dataset_dir)
    source = folder / "dataset.json"
    if not source.is_file():
        raise InputError(f"{source}: no such file. Expected a dataset.json with lists of pairs. Check dataset_dir.")
    entries = read_data_list(source, list_name)
    if random_pairs:
        fixed = _images(entries, source, list_name)
        moving = _images(read_data_list(source, moving_list), source, moving_list) if moving_list else fixed
        entries = _drawn(fixed, moving, random_pairs, seed, f"{source}: random_pairs of the list '{list_name}'")
    labels = _labels(source)
    pairs: list[dict[str, str]] = []
    for number, entry in enumerate(entries, start=1):
        fields = entry if isinstance(entry, Mapping) else {}
        if not all(isinstance(fields.get(side), str) for side in SIDES):
            raise InputError(
                f"{source}: entry {number} of the list '{list_name}' is no pair. Expected "
                '{"fixed": path, "moving": path}. Choose a list of pairs, or set random_pairs to draw some of images.'
            )
        pair = {"case": pair_name(fields["fixed"], fields["moving"])}
        for side in SIDES:
            image = fields[side]
            pair[side] = str(folder / image)
            if with_structures:
                given = fields.get(f"{side}_label")
                found = folder / given if given else _structure(folder, image, structures_dir, labels)
                pair[f"{side}_structure"] = str(found)
            if landmarks_dir:
                pair[f"{side}_points"] = str(_points(folder / landmarks_dir, image))
        pairs.append(pair)
    repeated: dict[str, int] = {}
    for pair in pairs:
        repeated[pair["case"]] = repeated.get(pair["case"], 0) + 1
        if repeated[pair["case"]] > 1:
            pair["case"] += f"_{repeated[pair['case']]}"
    return Cases(sorted(pairs, key=lambda pair: pair["case"]))


def _images(items: Any, source: Path, list_name: str) -> list[str]:
    """Image of each entry of a list."""
    images = [item.get("image") if isinstance(item, Mapping) else item for item in items]
    found = [image for image in images if isinstance(image, str)]
    if len(found) < len(images):
        raise InputError(f"{source}: the list '{list_name}' has entries that are no images, of which to draw pairs.")
    return found


def _drawn(fixed: list[str], moving: list[str], count: int, seed: int, where: str) -> list[dict[str, str]]:
    """Pairs of different images, of two lists those of different patients."""
    keys = {image: image for image in fixed}
    if moving != fixed:
        names = [*fixed, *moving]
        keys = dict(zip(names, patients_of([case_names([name])[0] for name in names]), strict=True))
    possible = [(one, other) for one in fixed for other in moving if keys[one] != keys[other]]
    if count > len(possible):
        raise InputError(f"{where}: expected at most {len(possible)} pairs, as many as can be drawn, found {count}.")
    chosen = np.random.default_rng(seed).choice(len(possible), count, replace=False)
    return [{"fixed": possible[number][0], "moving": possible[number][1]} for number in chosen.tolist()]


def _labels(source: Path) -> dict[str, str]:
    """Image → label, of all lists; paths without ``./``."""
    return {
        str(Path(item["image"])): item["label"]
        for items in read_data_lists(source).values()
        for item in items
        if isinstance(item, Mapping) and isinstance(item.get("image"), str) and isinstance(item.get("label"), str)
    }


def _structure(folder: Path, image: str, structures_dir: str, labels: Mapping[str, str]) -> Path:
    path = Path(image)
    name = f"{path.name}.nii.gz" if (folder / path).is_dir() else path.name  # that of a DICOM series is no folder
    if structures_dir:
        return folder / structures_dir / name
    parent = path.parent.name
    beside = path.parent.with_name(parent.replace("images", "labels")) if "images" in parent else Path("labels")
    return folder / labels.get(str(path), str(beside / name))


def _points(folder: Path, image: str) -> Path:
    name = Path(image).name
    stem = name[: -len(next((end for end in IMAGE_SUFFIXES if name.lower().endswith(end)), "")) or None]
    candidates = [folder / f"{stem}{suffix}" for suffix in POINT_SUFFIXES]
    return next((path for path in candidates if path.is_file()), candidates[0])
