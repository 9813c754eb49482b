# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Single registrations: how well each atlas lies on each target, and how well both directions undo each other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from torch import Tensor
from tqdm import tqdm

from atlas_istn.evaluation.metrics import score_labelmap
from atlas_istn.evaluation.scores import Evaluation
from atlas_istn.io.cases import find_cases
from atlas_istn.io.loading import read_volume
from atlas_istn.io.outputs import write_csv
from atlas_istn.io.pairs import SIDES, pair_name
from atlas_istn.io.warping import warp_labels
from atlas_istn.networks.pair import split_pair
from atlas_istn.spatial import Transform, compose_displacements, jacobian_determinant
from atlas_istn.workflow.pair_cases import ALONE, PairCase

from .lists import LABELS, Direction, size_of

__all__ = ["draw_pairs", "measure_network", "measure_warped"]

Row = dict[str, Any]


def measure_network(model: Path, data: Path, direction: Direction, backward: bool, output_dir: Path) -> None:
    """Register all atlases to all test images of a rotation by a trained network.

    Writes ``metrics.csv``, a case being ``TARGET__ATLAS``, its results ``before`` (centre on centre) and ``network``,
    on the target's own grid; and ``figures.csv``: of the map that resamples the atlas, at the heart of the target and
    on the network's grid, the error of there and back and the length of the displacement (in voxels and mm), the share
    of voxels where it folds (also of the whole grid), and wall seconds.

    Args:
        model: folder of the training.
        data: with the lists of the rotation.
        direction: which atlases on which targets.
        backward: the network's moving images are the targets.
        output_dir: for the tables.
    """
    lists = f"{direction.target}_test", direction.atlas
    fixed, moving = lists[::-1] if backward else lists
    config = ConfigParser()
    config.read_config(str(model / "configs" / "registration.yaml"))
    config.update(
        {
            **ALONE,
            "bundle_root": str(model),
            "dataset_dir": str(data),
            "test_list": fixed,
            "moving_list": moving,
            "random_pairs": size_of(data, fixed, moving),
            "device": "cpu",
            "handlers": [],
        }
    )
    network, inferer, dataset = (config.get_parsed_content(name) for name in ("network", "inferer", "dataset"))
    config.get_parsed_content("loader")()
    evaluation, figures = Evaluation(), []
    for number in tqdm(range(len(dataset)), desc=output_dir.name):
        case = _registered(dataset[number], network.eval(), inferer)
        source, target = SIDES[::-1] if backward else SIDES
        name = pair_name(case.pair[target], case.pair[source])
        still = Transform(None, torch.eye(3, 4)[None], case.result.transform.shape, case.result.transform.spacing)
        for result, transform in (("before", still), ("network", case.result.transform)):
            points = case.in_world(transform)[int(backward)]
            labels = {side: read_volume(case.pair[f"{side}_structure"], 3) for side in SIDES}
            evaluation.add(name, result, _scores(warp_labels(labels[source], labels[target], points), labels[target]))
        structures = case.structures
        if structures is None:
            raise SystemExit(f"{case.case}: no labels.")
        moving_heart, fixed_heart = (part.amax(dim=1)[0] > 0.5 for part in split_pair(structures))
        heart = moving_heart if backward else fixed_heart
        regularity = _regularity(case.result.transform, backward, heart)
        figures.append({"case": name, "seconds": case.result.seconds, **regularity})
    evaluation.write(output_dir)
    write_csv(figures, output_dir / "figures.csv")


def _registered(item: Mapping[str, Any], network: Any, inferer: Any) -> PairCase:
    if "error" in item:
        raise SystemExit(f"{item['case']}: {item['error']}")
    image = torch.as_tensor(item["image"]).as_subclass(Tensor)[None]
    affines = {side: np.asarray(item[f"{side}_affine"]) for side in SIDES}
    structures = torch.as_tensor(item["label"]).as_subclass(Tensor)[None]
    return PairCase(item["case"], item["pair"], affines, inferer.infer(image, network), image, structures)


def _scores(found: np.ndarray, truth: MetaTensor, labels: Mapping[int, str] = LABELS) -> list[Row]:
    spacing = [float(s) for s in truth.pixdim[:3]]
    return score_labelmap(found, truth[0].numpy(), labels, spacing)


def _regularity(transform: Transform, backward: bool, heart: Tensor) -> Row:
    """Figures of the map that resamples the atlas; ``heart`` ``[*shape]`` is that of the target."""
    there, back = transform.moving_to_fixed(), transform.fixed_to_moving()
    if backward:
        there, back = back, there
    folds = (jacobian_determinant(there)[0] <= 0).float()
    figures = {"folded": float(folds.mean()), "folded_heart": float(folds[heart].mean())}
    sizes = torch.tensor(transform.spacing).reshape(1, 3, 1, 1, 1)
    for name, field in (("inverse", compose_displacements(there, back)), ("displacement", there)):
        for unit, lengths in (("voxels", field), ("mm", field * sizes)):
            figures[f"{name}_{unit}"] = float(lengths.norm(dim=1)[0][heart].mean())
    return figures


def draw_pairs(data: Path, direction: Direction, count: int, seed: int) -> list[dict[str, str]]:
    """Pairs for peers: each target with as many atlases as the count gives it, drawn by a seed; 0 for all."""
    targets = find_cases(str(data), f"{direction.target}_test", with_labels=True)
    atlases = find_cases(str(data), direction.atlas, with_labels=True)
    each = -(-count // len(targets)) if count else len(atlases)
    draw = np.random.default_rng(seed)
    return [
        {
            "case": pair_name(target["image"], atlases[index]["image"]),
            "fixed": target["image"],
            "fixed_label": target["label"],
            "moving": atlases[index]["image"],
            "moving_label": atlases[index]["label"],
        }
        for target in targets
        for index in sorted(draw.permutation(len(atlases))[:each])
    ]


def measure_warped(pairs: list[dict[str, str]], folder: Path, labels: Mapping[int, str] = LABELS) -> None:
    """Score label maps ``folder/RESULT/CASE.nii.gz`` that others have warped; writes ``metrics.csv`` there."""
    evaluation = Evaluation()
    for pair in pairs:
        truth = read_volume(pair["fixed_label"], 3)
        for result in sorted(path.name for path in folder.iterdir() if path.is_dir()):
            path = folder / result / f"{pair['case']}.nii.gz"
            if path.exists():
                evaluation.add(pair["case"], result, _scores(read_volume(str(path), 3)[0].numpy(), truth, labels))
    evaluation.write(folder)
