# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""The same atlases registered by greedy, and fused by a vote, by ANTs and by our joint label fusion."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from label_fusion import fuse_by_ants, warp_by_greedy
from tqdm import tqdm

from atlas_istn.evaluation.metrics import score_labelmap
from atlas_istn.evaluation.scores import Evaluation
from atlas_istn.fusion.joint import JointLabelFusion
from atlas_istn.fusion.vote import PluralityVote
from atlas_istn.io.cases import find_cases

from .rows import LABELS

__all__ = ["segment_by_peers"]


def segment_by_peers(python: str, data: Path, folder: Path) -> None:
    """Segment the list ``test``; writes ``folder/test/greedy_…/metrics.csv``, and keeps the warps.

    Args:
        python: of the environment that has the peers.
        data: data set with the lists ``atlases`` and ``test``.
        folder: of a regime.
    """
    atlases, cases = (find_cases(str(data), name, with_labels=True) for name in ("atlases", "test"))
    pairs = [f"{case['image']}:{case['label']}" for case in atlases]
    evaluations = {name: Evaluation() for name in ("vote", "ants", "joint")}
    (folder / "greedy").mkdir(parents=True, exist_ok=True)
    for case in tqdm(cases, desc="greedy"):
        path = folder / "greedy" / f"{case['case']}.npz"
        _, warped = warp_by_greedy(python, Path(case["image"]), pairs, path)
        found: dict[str, Any] = {
            name: fusion(warped).labels for name, fusion in (("vote", PluralityVote()), ("joint", JointLabelFusion()))
        }
        found["ants"], _ = fuse_by_ants(python, path)
        truth = nib.load(case["label"])
        for name, labelmap in found.items():
            rows = score_labelmap(np.asarray(labelmap), np.asarray(truth.dataobj), LABELS, truth.header.get_zooms())
            evaluations[name].add(case["case"], "fused", rows)
    for name, evaluation in evaluations.items():
        evaluation.write(folder / "test" / f"greedy_{name}")
