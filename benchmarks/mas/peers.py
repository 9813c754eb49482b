# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""The same atlases registered by greedy, and fused by a vote, by ANTs and by our joint label fusion."""

from __future__ import annotations

import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from scipy.ndimage import binary_dilation
from tqdm import tqdm

from atlas_istn.evaluation.metrics import score_labelmap
from atlas_istn.evaluation.scores import Evaluation
from atlas_istn.fusion.atlases import WarpedAtlases
from atlas_istn.fusion.joint import JointLabelFusion
from atlas_istn.fusion.vote import PluralityVote
from atlas_istn.io.cases import find_cases

from .rows import LABELS

__all__ = ["segment_by_peers"]

PEERS = Path(__file__).resolve().parents[1] / "label_fusion_peers.py"
MARGIN = 2  # voxels about the labels of all atlases, in which ANTs fuses


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
        if not path.exists():
            _run(python, "warp", case["image"], "--output", str(path), "--atlases", *pairs)
        warps = dict(np.load(path))
        everywhere = (warps["labels"] > 0).any(axis=0)
        warps["mask"] = binary_dilation(everywhere, np.ones([3] * everywhere.ndim), iterations=MARGIN)
        np.savez_compressed(path, **warps)
        _run(python, "fuse", str(path))
        labels, images, target = (torch.from_numpy(warps[key]) for key in ("labels", "images", "target"))
        warped = WarpedAtlases(labels, images[:, None], target[None])
        found = {
            name: fusion(warped).labels for name, fusion in (("vote", PluralityVote()), ("joint", JointLabelFusion()))
        }
        found["ants"] = np.load(path.with_suffix(".ants.npy"))
        truth = nib.load(case["label"])
        for name, labelmap in found.items():
            rows = score_labelmap(np.asarray(labelmap), np.asarray(truth.dataobj), LABELS, truth.header.get_zooms())
            evaluations[name].add(case["case"], "fused", rows)
    for name, evaluation in evaluations.items():
        evaluation.write(folder / "test" / f"greedy_{name}")


def _run(python: str, *command: str) -> None:
    done = subprocess.run([python, str(PEERS), *command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[:2])} failed:\n{done.stderr[-2000:]}")
