# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""What is written of the atlases of a multi-atlas segmentation, beside its result."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..io.outputs import write_labelmap, write_probability
from .results import CaseResult, class_indices, native_affine

__all__ = ["write_atlas_maps"]


def write_atlas_maps(case: CaseResult, folder: Path, label_values: Sequence[int]) -> None:
    """Write where the atlases of a case agree, which of them decides, and the labels of each; nothing if it has none.

    Files are ``<case>_agreement``, the share of the atlases that have the fused label; ``<case>_winner``, the number of
    the atlas that weighs most, as its labels ``<case>_atlas_<number>`` have it.

    Args:
        case: with `CaseResult.atlas_maps`.
        folder: of the case.
        label_values: the value that stands for each class.

    Raises:
        InputError: a file cannot be written.
    """
    if not case.atlas_maps:
        return
    suffix = ".png" if case.from_png else ".nii.gz"
    disagreement, winner, atlases = case.atlas_maps.values()
    affine, count = native_affine(winner), len(atlases)
    agreement = 1.0 - np.asarray(disagreement[0].cpu())
    write_probability(agreement, affine, folder / f"{case.case}_agreement{suffix}", case.source)
    write_labelmap(class_indices(winner), affine, range(count + 1), folder / f"{case.case}_winner{suffix}", case.source)
    for number in range(count):
        labels, path = class_indices(atlases[number : number + 1]), folder / f"{case.case}_atlas_{number + 1}{suffix}"
        write_labelmap(labels, affine, label_values, path, case.source)
