# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""What the stages have left of all rotations: scores of each method, and their means with intervals by patient."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from atlas_istn.evaluation.comparison.statistics import MIN_CASES, SIGNIFICANCE, bootstrap_means, paired_test
from atlas_istn.evaluation.scores import read_metrics

from .lists import LABELS, Direction
from .stages import FUSIONS, NETWORKS, PEERS

__all__ = [
    "MEAN",
    "RIVAL_RUNS",
    "TITLES",
    "Method",
    "by_target",
    "difference",
    "fused_methods",
    "mean_text",
    "read_rows",
    "single_methods",
    "times",
]

MEAN = "mean of three"
TITLES = {
    "before": "centre on centre",
    "greedy_affine": "greedy, affine",
    "greedy": "greedy",
    "syn": "SyN",
    "demons": "Demons",
    "one_way": "one-way",
    "no_itn": "two-way consistent, without ITN",
    "two_way": "two-way",
    "consistent": "two-way consistent",
    "velocity": "two-way, SVF",
    "true_crop": "two-way consistent, true crop",
    "mean_single": "mean single atlas",
    "best_single": "best single atlas, by its Dice",
    "vote": "majority vote",
    "non_local": "NLWV",
    "joint": "joint label fusion",
    "similarity": "similarity",
    "similarity_5": "similarity, the 5 most similar alike",
    "velocity_vote": "majority vote, SVF",
    "vote_true_crop": "majority vote, true crop",
    "learned_atlas": "atlas of Atlas-ISTN, by the consistent network",
    "unet": "U-Net of bSSFP",
    "itn": "ITN of bSSFP",
    "refine": "Atlas-ISTN of bSSFP, refined",
    "unet_lge": "U-Net of 4 LGE",
    "unet_lge_all": "U-Net of the 15 LGE that the registration has learned from",
}
"""Method → how tables call it, in their order."""
RIVAL_RUNS = {
    "unet": ("unet", "itn"),
    "itn": ("atlas_istn", "itn"),
    "refine": ("atlas_istn", "refine"),
    "unet_lge": ("unet_lge", "itn"),
    "unet_lge_all": ("unet_lge_all", "itn"),
}
"""Method → folder and result of a rival."""

Values = dict[str, float]
"""Case or target → a score."""


@dataclass(frozen=True)
class Method:
    """Scores of one way to do it, in one direction.

    Attributes:
        name: key of its title.
        direction: of atlases and targets.
        rows: as ``metrics.csv`` has them, of all rotations.
    """

    name: str
    direction: Direction
    rows: list[dict[str, Any]]

    @property
    def title(self) -> str:
        """For tables."""
        return TITLES[self.name]

    def values(self, label: str, metric: str = "dice") -> Values:
        """A score of each case, of a label or the mean of all."""
        found: dict[str, list[float]] = defaultdict(list)
        for row in self.rows:
            if label in (row["label"], MEAN):
                found[row["case"]].append(float(row[metric]))
        return {case: float(np.mean(scores)) for case, scores in found.items()}

    def only(self, cases: Iterable[str]) -> Method:
        """The same of some cases."""
        wanted = set(cases)
        return Method(self.name, self.direction, [row for row in self.rows if row["case"] in wanted])


def by_target(values: Values) -> Values:
    """Mean of the scores of each target over its atlases, where cases are ``TARGET__ATLAS``."""
    found: dict[str, list[float]] = defaultdict(list)
    for case, value in values.items():
        found[case.partition("__")[0]].append(value)
    return {target: float(np.mean(scores)) for target, scores in found.items()}


def mean_text(values: Values, digits: int = 3) -> str:
    """Mean over cases, and its interval by a bootstrap over the targets."""
    targets = np.array(list(by_target(values).values()))
    if not len(targets):
        return ""
    text = f"{targets.mean():.{digits}f}"
    if len(targets) < MIN_CASES:
        return text
    low, high = np.quantile(bootstrap_means(targets), [SIGNIFICANCE, 1 - SIGNIFICANCE])
    return f"{text} ({low:.{digits}f} to {high:.{digits}f})"


def difference(method: Values, reference: Values) -> str:
    """Mean difference over the targets that both have, its interval and the number of targets."""
    first, second = by_target(method), by_target(reference)
    common = sorted(first.keys() & second.keys())
    if not common:
        return ""
    test = paired_test(np.array([first[t] for t in common]), np.array([second[t] for t in common]), True)
    interval = f" ({test.low:+.3f} to {test.high:+.3f})" if test.low == test.low else ""
    return f"{test.difference:+.3f}{interval}, n = {test.n}"


def single_methods(output_dir: Path, direction: Direction) -> dict[str, Method]:
    """Single registrations: networks, peers, and pairs as they begin."""
    back = "one_way_back" if direction.backward else "one_way"
    sources = {name: (f"singles/{direction.name}_{name}", "network") for name in NETWORKS if "one_way" not in name}
    sources |= {"one_way": (f"singles/{direction.name}_{back}", "network")}
    sources |= {"true_crop": (f"singles/{direction.name}_true_crop", "network")}
    sources |= {"before": (f"singles/{direction.name}_consistent", "before")}
    sources |= {name: (f"peers/{direction.name}", name) for name in PEERS}
    return _methods(output_dir, direction, sources)


def fused_methods(output_dir: Path, direction: Direction) -> dict[str, Method]:
    """Whole segmentations, and what single atlases of the consistent network give."""
    sources = {name: (f"fused/{direction.name}_{name}", "fused") for name in (*FUSIONS, "learned_atlas")}
    sources |= {"velocity_vote": (f"fused/{direction.name}_velocity", "fused")}
    sources |= {"vote_true_crop": (f"fused/{direction.name}_true_crop", "fused")}
    sources |= {name: (f"fused/{direction.name}_{folder}", result) for name, (folder, result) in RIVAL_RUNS.items()}
    methods = _methods(output_dir, direction, sources)
    singles = single_methods(output_dir, direction)
    if "consistent" in singles:
        methods |= _of_singles(singles["consistent"])
    return methods


def _methods(output_dir: Path, direction: Direction, sources: Mapping[str, tuple[str, str]]) -> dict[str, Method]:
    methods = {}
    for name in TITLES:
        if name in sources:
            folder, result = sources[name]
            paths = sorted(output_dir.glob(f"rotation_*/{folder}/metrics.csv"))
            rows = [row for path in paths for row in read_metrics(path) if row["result"] == result]
            if rows:
                methods[name] = Method(name, direction, rows)
    return methods


def _of_singles(single: Method) -> dict[str, Method]:
    """The mean of the atlases of each target, and the one with the highest Dice, which nobody knows beforehand."""
    atlases: dict[str, list[str]] = defaultdict(list)
    dice = single.values(MEAN)
    for case in dice:
        atlases[case.partition("__")[0]].append(case)
    rows: dict[str, list[dict[str, Any]]] = {"mean_single": [], "best_single": []}
    for target, cases in atlases.items():
        best = max(cases, key=lambda case: dice[case])
        for label in LABELS.values():
            mine = [row for row in single.rows if row["label"] == label and row["case"] in cases]
            means = {metric: float(np.mean([row[metric] for row in mine])) for metric in ("dice", "hd")}
            rows["mean_single"].append({"case": target, "label": label, **means})
            rows["best_single"] += [{**row, "case": target} for row in mine if row["case"] == best]
    return {name: Method(name, single.direction, found) for name, found in rows.items()}


def read_rows(paths: Iterable[Path]) -> list[dict[str, str]]:
    """Rows of tables, as texts."""
    rows = []
    for path in paths:
        with path.open(newline="", encoding="utf-8") as file:
            rows += list(csv.DictReader(file))
    return rows


def times(output_dir: Path, name: str) -> list[float]:
    """Processor seconds of a command in each rotation that has run it."""
    paths = sorted(output_dir.glob(f"rotation_*/{name}.json"))
    return [float(json.loads(path.read_text(encoding="utf-8"))["seconds"]) for path in paths]
