# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Labels and lists of cases: in an evaluation, and in a training."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np

from .row import Row, Work
from .runs import AFFINE, LABELLED, evaluate, labelled, save, train

__all__ = ["rows"]

Change = Callable[[np.ndarray], np.ndarray]
FILE, CASE, KEPT = LABELLED


def _voxels(change: Change, moved: float = 0.0) -> Callable[[Path], object]:
    def edit(data: Path) -> None:
        affine = AFFINE.copy()
        affine[0, 3] += moved
        save(data / FILE, change(np.asarray(nib.load(data / FILE).dataobj)), affine)

    return edit


def _at(value: float, kind: type) -> Callable[[Path], object]:
    def change(voxels: np.ndarray) -> np.ndarray:
        voxels = voxels.astype(kind)
        voxels[0, 0, 0] = value
        return voxels

    return _voxels(change)


def _lists(change: Callable[[dict[str, list[dict[str, str]]]], object]) -> Callable[[Path], object]:
    def edit(data: Path) -> None:
        lists = json.loads((data / "dataset.json").read_text())
        change(lists)
        (data / "dataset.json").write_text(json.dumps(lists))

    return edit


def _folder_instead(data: Path) -> None:
    (data / FILE).unlink()
    (data / FILE).mkdir()


def _repeated(name: str, lists: dict[str, list[dict[str, str]]]) -> None:
    lists[name].append(lists["training"][0])


def _every_label(change: Change) -> Callable[[Path], object]:
    def edit(data: Path) -> None:
        for path in (data / "labels").iterdir():
            save(path, change(np.asarray(nib.load(path).dataobj)))

    return edit


def _prepare(run: Callable[[Path], object], edit: Callable[[Path], object], folder: Path) -> Work:
    edit(labelled(folder / "data"))
    return lambda: run(folder)


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "a value that is no class": (_at(7, np.uint8), "unexpected label values 7"),
    "values between classes": (_at(0.4, np.float32), "unexpected label values 0.4"),
    "a negative value": (_at(-1, np.int16), "unexpected label values -1"),
    "a voxel not a number": (_at(np.nan, np.float32), "finite"),
    "two voxels aside": (_voxels(lambda voxels: voxels, 2.0), FILE),
    "another shape": (_voxels(lambda voxels: voxels[1:]), FILE),
    "channels": (_voxels(lambda voxels: np.stack([voxels, voxels], -1)), "channels"),
    "a plane": (_voxels(lambda voxels: voxels[..., 0]), "2 dimensions"),
    "cut off": (lambda data: (data / FILE).write_bytes((data / FILE).read_bytes()[:200]), "cannot be read"),
    "a folder in its place": (_folder_instead, FILE),
}
READ: dict[str, Callable[[Path], object]] = {
    "1.0000001": _voxels(lambda voxels: voxels.astype(np.float32) * np.float32(1.0000001)),
    "four micrometres aside": _voxels(lambda voxels: voxels, 0.004),
    "nothing but background": _voxels(np.zeros_like),
    "of 64 bits": _voxels(lambda voxels: voxels.astype(np.float64)),
}
LISTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no file": (lambda data: (data / FILE).unlink(), "1 files of the list 'test' do not exist"),
    "no label in an entry": (_lists(lambda lists: lists["test"][1].pop("label")), "entry 2"),
    "an empty list": (_lists(lambda lists: lists["test"].clear()), "is empty"),
    "no such list": (_lists(lambda lists: lists.pop("test")), "does not exist"),
    "a damaged dataset.json": (lambda data: (data / "dataset.json").write_text("{"), "not readable as JSON"),
    "no dataset.json": (lambda data: (data / "dataset.json").unlink(), "no dataset.json"),
}
TRAINED: dict[str, tuple[Callable[[Path], object], int, str]] = {
    "a class that no label has": (_every_label(lambda voxels: voxels * (voxels < 2)), 1, "small (class 2)"),
    "no class in one label": (
        lambda data: save(data / "labels" / "s1.nii.gz", np.zeros((20, 28, 20), np.uint8)),
        1,
        "nothing but background",
    ),
    "a bad value in two labels": (
        lambda data: [save(data / "labels" / f"s{n}.nii.gz", np.full((20, 28, 20), 9, np.uint8)) for n in (0, 2)],
        1,
        "s2.nii.gz: unexpected label values 9",
    ),
    "cases in both lists": (_lists(partial(_repeated, "validation")), 0, "validation list"),
    "cases twice in a list": (_lists(partial(_repeated, "training")), 0, "more than once"),
}


def rows() -> Iterator[Row]:
    """All faults of this kind."""
    for name, (edit, reason) in REFUSED.items():
        says = ("1 of 2 cases failed", CASE, reason)
        yield Row("labels", name, partial(_prepare, evaluate, edit), 1, says, (KEPT, "out/metrics.csv"))
    for name, read in READ.items():
        yield Row("labels", name, partial(_prepare, evaluate, read), 0, (), (KEPT, "out/s3/s3_seg.nii.gz"))
    for name, (edit, reason) in LISTS.items():
        yield Row("labels", name, partial(_prepare, evaluate, edit), 1, ("data", reason))
    for name, (edit, status, reason) in TRAINED.items():
        yield Row("labels", f"training: {name}", partial(_prepare, train, edit), status, (reason,))

    def large(folder: Path) -> Work:
        values = [0, 614454277, 312782574]
        _every_label(lambda voxels: np.choose(voxels, values).astype(np.uint32))(labelled(folder / "data"))
        return lambda: evaluate(folder, label_values=values)

    yield Row("labels", "identifiers of the Allen atlas", large, 0, (), (KEPT,))
