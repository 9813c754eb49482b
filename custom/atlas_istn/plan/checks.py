# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""What is odd in a data set, all of it at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from .discover import Case
from .labels import LabelTable
from .survey import Anatomy, Scan, digests

__all__ = ["check_anatomy", "check_lists", "check_scans", "some"]

_SHOWN = 5
_FEW = 5  # cases with a class, from which it can hardly be learned
_SIZES = (0.02, 20.0)  # mm of a voxel that are credible
_RATIO = 3.0  # of a spacing to the median of all


def some(names: Sequence[str]) -> str:
    """Name some of many."""
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def check_scans(scans: Sequence[Scan], unit: str) -> Iterator[str]:
    """Yield what is odd in images and headers; ``unit`` is that of lengths."""
    spacings = np.array([scan.spacing for scan in scans])
    median = np.median(spacings, axis=0)
    odd = [
        scan.case.name
        for scan, spacing in zip(scans, spacings, strict=True)
        if (spacing < _SIZES[0]).any()
        or (spacing > _SIZES[1]).any()
        or (spacing / median > _RATIO).any()
        or (median / spacing > _RATIO).any()
    ]
    if odd:
        yield f"voxel sizes unlike the others' ({_sizes(median)} {unit}), perhaps in another unit: {some(odd)}"
    axes = Counter(scan.axes for scan in scans)
    if len(axes) > 1:
        counts = ", ".join(f"{name} ({count})" for name, count in axes.most_common())
        yield f"stored in several orientations, which is allowed: {counts}"
    for group in digests(scans).values():
        yield f"the same image, voxel by voxel: {some([scan.case.name for scan in group])}"


def check_lists(lists: Mapping[str, Sequence[Case]], scans: Sequence[Scan]) -> Iterator[str]:
    """Yield which cases stand in several lists, or twice in one."""
    digest = {(scan.case.image, scan.case.source): scan.digest for scan in scans}
    places: dict[str, list[str]] = {}
    for name, cases in lists.items():
        for case in cases:
            places.setdefault(digest.get((case.image, case.source), case.image), []).append(f"{case.name} ({name})")
    shared = [" = ".join(found) for found in places.values() if len(found) > 1]
    if shared:
        yield f"{len(shared)} images stand more than once in the lists, so that scores will be too good: {some(shared)}"


def check_anatomy(anatomies: Sequence[Anatomy], table: LabelTable) -> Iterator[str]:
    """Yield what is odd in labels."""
    present = np.array([anatomy.volumes > 0 for anatomy in anatomies])
    for name, column in zip(table.names[1:], present.T, strict=True):
        if column.sum() < _FEW:
            yield f"{name}: in {column.sum()} case(s) only"
    touching = [anatomy.case.name for anatomy in anatomies if anatomy.border]
    if touching:
        yield f"labels touch the border of {len(touching)} image(s), and may be cut: {some(touching)}"


def _sizes(spacing: np.ndarray) -> str:
    return " × ".join(f"{size:.3g}" for size in spacing)
