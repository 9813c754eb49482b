# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Where a data set has the images of a run."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from ..errors import InputError
from .cases import read_data_lists
from .channels import ImagePath, in_folder, join_channels, without_channel
from .layouts import labelled_images
from .names import IMAGE_SUFFIXES, case_names
from .results import find_labelled_cases

__all__ = ["find_sources"]

Sources = dict[str, dict[str, str]]  # case → "image" and, where there is one, "label"

_SHOWN = 3  # cases that a message names


def find_sources(dataset: Path, data_list: str, cases: Collection[str], several_channels: bool = False) -> Sources:
    """Find the images of a run's cases, and their labels where the data set has them.

    Args:
        dataset: the data set that was run.
        data_list: list of its ``dataset.json``; empty for whatever list has a case.
        cases: names of the cases.
        several_channels: the images of the run have several, see `find_cases`.

    Returns:
        Case → its files, for the cases that were found.

    Raises:
        InputError: no case was found, two lists have different images of one name, or the list cannot be read.
    """
    if data_list and (found := _in_list(dataset, data_list, cases, several_channels)):
        return found
    lists = _search(dataset, cases, several_channels)
    if data_list or not lists:
        shown = ", ".join(sorted(cases)[:_SHOWN]) + (", …" if len(cases) > _SHOWN else "")
        where = ", ".join(f"'{name}' ({len(found)})" for name, found in lists.items())
        raise InputError(
            f"{dataset}: expected the images of the run's {len(cases)} cases ({shown}), found none of them"
            + (f" in the list '{data_list}'" if data_list else "")
            + (f"; these lists have them: {where}. Choose one as data_list, or leave it out." if where else ".")
            + ("" if where else " Pass the dataset_dir that was run.")
        )
    sources: Sources = {}
    for found in lists.values():
        for case, source in found.items():
            if sources.get(case, source)["image"] != source["image"]:
                names = " and ".join(f"'{name}'" for name, others in lists.items() if case in others)
                raise InputError(f"{dataset}: the lists {names} have different images of {case}. Choose a data_list.")
            if case not in sources or "label" in source:
                sources[case] = source
    return sources


def _in_list(dataset: Path, name: str, cases: Collection[str], several_channels: bool) -> Sources:
    found = find_labelled_cases(dataset, name, several_channels)
    return {case["case"]: case for case in found if case["case"] in cases}


def _in_folders(dataset: Path, cases: Collection[str], several_channels: bool) -> Sources:
    """Images and labels of folders without lists as `plan` takes them; and images of folders ``images*`` without."""
    images = sorted(path for path in dataset.glob("images*/*") if path.name.lower().endswith(IMAGE_SUFFIXES))
    joined = join_channels(images) if several_channels else [ImagePath([str(path)]) for path in images]
    names = case_names([without_channel(image) if several_channels else image for image in joined])
    found: Sources = {name: {"image": image} for name, image in zip(names, joined, strict=True)}
    for case in labelled_images(dataset).cases:
        found[case.name] = {"image": in_folder(dataset, case.image), "label": str(dataset / case.label)}
    return {name: source for name, source in found.items() if name in cases}


def _search(dataset: Path, cases: Collection[str], several_channels: bool) -> dict[str, Sources]:
    """The lists that have cases of the run. A list that cannot be read is of no concern if another one has them."""
    try:
        names = [name for name, entries in read_data_lists(dataset / "dataset.json").items() if entries]
    except InputError:
        names = []  # a folder of images, or a bad file: what is wrong with it is said below
    if not names and (found := _in_folders(dataset, cases, several_channels)):
        return {"images": found}
    lists, refusals = {}, []
    for name in names or [""]:
        try:
            lists[name] = _in_list(dataset, name, cases, several_channels)
        except InputError as error:
            refusals.append(error)
    lists = {name: found for name, found in lists.items() if found}
    if refusals and not lists:
        raise refusals[0]
    return lists
