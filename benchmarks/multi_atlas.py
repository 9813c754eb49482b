# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Table 1 of MAS-refine on hippocampus: registrations by fusions by refinements, in two regimes; by one command.

    python benchmarks/multi_atlas.py DATA/hippocampus --output_dir output/multi_atlas

The first ten training cases are the atlases. Regime ``all``: networks learn from every training case; ``ten``: from the
atlases alone. What is done already is not done again; a training that was stopped goes on. Stages, in the order in
which they need each other:

``unet`` (of all cases, and of two halves: an atlas is seen by the half that lacks it), ``registrations`` (DI and
DIS), ``votes`` (VoteNet+ for each registration), ``search`` (weights of the refinement, on ``validation``), ``segment``
(``validation`` and ``test``), ``tables`` (also with what is missing yet).
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from runs import CONFIGS, Runner

from atlas_istn.evaluation.comparison.statistics import paired_test
from atlas_istn.evaluation.scores import read_metrics
from atlas_istn.io.outputs import write_json

ATLASES, FULL_STEPS = 10, 1500
LABELS = ("anterior", "posterior")
DATA = f"{CONFIGS}/data/hippocampus.yaml"
PAIR_DATA = [f"{CONFIGS}/pair/data/hippocampus.yaml", f"{CONFIGS}/pair/transformations/displacements.yaml"]
REGISTRATIONS = ("affine", "di", "dis", "velocity")
"""``velocity`` is the instance optimisation that a multi-atlas segmentation does by default; no network."""
REFINEMENTS = ("", "i", "is")
FUSIONS = {
    "vote": "{'_target_': 'atlas_istn.fusion.vote.PluralityVote'}",
    "joint": "",
    "vote_net": "",
    "local": "{'_target_': 'atlas_istn.fusion.vote.LocallyWeightedVote'}",
    "staple": "{'_target_': 'atlas_istn.fusion.staple.Staple'}",
}
COMMON = ("vote", "joint", "vote_net")
ALL_FUSIONS_ON = "dis"
SEARCH = {
    "i": [{"gamma": gamma} for gamma in (0.1, 0.3, 1.0)],
    "is": [{"gamma": gamma, "alpha": 3.0} for gamma in (0.1, 0.3, 1.0)]
    + [{"gamma": 0.3, "alpha": alpha} for alpha in (1.0, 10.0, 1000.0)],
}
"""Weights of bending (gamma) and labels (alpha) that are tried; the last one lets the network decide alone."""
SEARCHED = ("affine", "dis")


@dataclass(frozen=True)
class Row:
    """One way to segment."""

    registration: str
    refinement: str = ""
    fusion: str = "joint"
    weights: tuple[tuple[str, float], ...] = ()

    @property
    def name(self) -> str:
        """Of its folder."""
        weights = "_".join(f"{name}{value:g}" for name, value in self.weights)
        return "_".join(part for part in (self.registration, self.refinement, self.fusion, weights) if part)


class Study:
    """All that is run of one regime.

    Args:
        data: data set.
        folder: of all that is written.
        regime: ``all`` or ``ten``.
        steps: of a registration network; other trainings are as much shorter or longer than their own full length.
        quick: a smoke test with few cases.
    """

    def __init__(self, data: Path, folder: Path, regime: str, steps: int, quick: bool) -> None:
        self.runner, self.regime, self.steps, self.quick = Runner(folder / regime), regime, steps, quick
        self.data = folder / regime / "data"
        if not (self.data / "dataset.json").exists():
            self._write_lists(data)

    def _write_lists(self, data: Path) -> None:
        content = json.loads((data / "dataset.json").read_text(encoding="utf-8"))
        cases = {name: content[name] for name in ("training", "validation", "test")}
        cases["atlases"] = cases["training"][: 4 if self.quick else ATLASES]
        if self.quick:
            cases["validation"], cases["test"] = cases["validation"][:2], cases["test"][:2]
        if self.regime == "ten" or self.quick:
            cases["training"] = cases["atlases"]
        # Of two halves, so that each atlas is new to one of them, and both have atlases.
        cases |= {f"half_{number}": cases["training"][number::2] for number in (0, 1)}
        absolute = {
            name: [{key: str((data / path).resolve()) for key, path in item.items()} for item in items]
            for name, items in cases.items()
        }
        write_json(absolute, self.data / "dataset.json")

    def _length(self, full: int) -> int:
        return max(1, round(full * self.steps / FULL_STEPS))

    def train_unets(self) -> None:
        """Train and score U-Nets of all training cases and of each half, as many steps each."""
        cases = {name: len(items) for name, items in self._lists().items()}
        for name in ("training", "half_0", "half_1"):
            work = self._unet(name)
            epochs = self._length(20 * 160 // cases[name])
            settings = {
                "dataset_dir": self.data,
                "output_dir": work,
                "bundle_root": work,
                "train_list": name,
                "val_list": "validation",
                "max_epochs": epochs,
                "val_interval": max(1, epochs // 5),
                "learning_rate_half_life": max(1.0, epochs / 4),
                "amp": "true",
                "resume": "true",
            }
            stack = [f"{CONFIGS}/train.yaml", DATA, f"{CONFIGS}/variants/unet.yaml"]
            self.runner.bundle(f"train_unet_{name}", "training", stack, **settings)
        lists = {"dataset_dir": self.data, "test_list": "test", "output_dir": self.runner.folder / "test" / "unet"}
        config = [str(self._unet("training") / "configs" / "evaluate.yaml")]
        self.runner.bundle("test_unet", "evaluate", config, **lists)

    def _unet(self, name: str) -> Path:
        return self.runner.folder / "unet" / name

    def _lists(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.data / "dataset.json").read_text(encoding="utf-8"))
        return found

    def train_registrations(self) -> None:
        """Train DI, and DIS, which learns from labels too."""
        count = len(self._lists()["training"])
        pairs = min(100, count * (count - 1))
        epochs = -(-2 * self.steps // pairs)
        for name, variants in (("di", ["di"]), ("dis", ["di", "dis"])):
            stack = [f"{CONFIGS}/pair/train.yaml", *(f"{CONFIGS}/pair/variants/{one}.yaml" for one in variants)]
            settings = {
                "dataset_dir": self.data,
                "output_dir": self.runner.folder / name,
                "bundle_root": self.runner.folder / name,
                "random_pairs": pairs,
                "val_random_pairs": 2 if self.quick else 20,
                "max_epochs": epochs,
                "val_interval": max(1, epochs // 5),
                "amp": "true",
                "resume": "true",
            }
            self.runner.bundle(f"train_{name}", "training", [*stack, *PAIR_DATA], **settings)

    def train_votes(self) -> None:
        """Train VoteNet+ on what each registration makes of the atlases."""
        for name in REGISTRATIONS:
            stack = [f"{CONFIGS}/inference.yaml", DATA, f"{CONFIGS}/multi_atlas.yaml", f"{CONFIGS}/vote_net.yaml"]
            settings = {
                **self._registering(name),
                "output_dir": self._votes(name),
                "max_epochs": self._length(20),
                "pairs_per_epoch": 8 if self.quick else 100,
                "resume": "true",
            }
            self.runner.bundle(f"train_votes_{name}", "training", [*stack, f"{CONFIGS}/train_fusion.yaml"], **settings)

    def _votes(self, registration: str) -> Path:
        return self.runner.folder / "votes" / registration

    def _registering(self, name: str) -> dict[str, Any]:
        settings: dict[str, Any] = {"dataset_dir": self.data, "atlas_dir": self.data, "atlas_list": "atlases"}
        if name == "affine":
            settings["deformable_registration"] = "null"
        elif name != "velocity":
            settings["atlas_registration"] = self.runner.folder / name
        return settings

    def segment(self, row: Row, cases: str) -> Path:
        """Segment and score a list; return the table of scores."""
        stack = [f"{CONFIGS}/evaluate.yaml", DATA, f"{CONFIGS}/multi_atlas.yaml"]
        output = self.runner.folder / cases / row.name
        settings = self._registering(row.registration) | {
            "test_list": cases,
            "output_dir": output,
            "atlas_cache": self.runner.folder / "cache",
        }
        if row.fusion == "vote_net":
            stack.append(f"{CONFIGS}/vote_net.yaml")
            settings["fusion_path"] = self._votes(row.registration) / "models" / "model.pt"
        elif FUSIONS[row.fusion]:
            settings["fusion"] = FUSIONS[row.fusion]
        if row.refinement:
            stack.append(f"{CONFIGS}/multi_atlas_refine.yaml")
            weights = dict(row.weights)
            settings |= {"atlas_refinement#regularisation": weights["gamma"]}
            if row.refinement == "is":
                halves = [str(self._unet(name)) for name in ("half_0", "half_1")]
                settings |= {"segmenter_folds": str(halves), "label_weight": weights["alpha"]}
            else:
                settings["segmenter"] = "null"
        self.runner.bundle(f"{cases}_{row.name}", "evaluate", stack, **settings)
        return output / "metrics.csv"

    def search(self) -> None:
        """Try weights of each refinement on the validation list; keep those of the best mean Dice of both fusions."""
        for refinement, tried in SEARCH.items():
            scores = {}
            for weights in (tuple(values.items()) for values in (tried[:1] if self.quick else tried)):
                rows = [Row(name, refinement, fusion, weights) for name in SEARCHED for fusion in ("vote", "joint")]
                scores[weights] = float(np.mean([mean_dice(self.segment(row, "validation")) for row in rows]))
            chosen = max(scores, key=lambda weights: scores[weights])
            lines = [{"weights": dict(weights), "dice": dice} for weights, dice in scores.items()]
            write_json({"tried": lines, "chosen": dict(chosen)}, self._choice(refinement))

    def _choice(self, refinement: str) -> Path:
        return self.runner.folder / f"search_{refinement}.json"

    def rows(self) -> list[Row]:
        """Those of the table, with the weights that were chosen."""
        found = []
        for registration in REGISTRATIONS:
            fusions = FUSIONS if registration == ALL_FUSIONS_ON else COMMON
            for refinement in REFINEMENTS:
                weights = ()
                if refinement:
                    weights = tuple(json.loads(self._choice(refinement).read_text(encoding="utf-8"))["chosen"].items())
                found += [Row(registration, refinement, fusion, weights) for fusion in fusions]
        return found

    def segment_all(self) -> None:
        """Segment both lists in every way: the best row is chosen on ``validation``, and counts on ``test``."""
        for cases in ("validation", "test"):
            for row in self.rows():
                self.segment(row, cases)


def mean_dice(path: Path) -> float:
    """Of a table of scores."""
    return float(np.mean(list(by_case(path, "dice").values())))


def by_case(path: Path, metric: str, label: str = "") -> dict[str, float]:
    """A score of each case, the mean of both labels unless one is named."""
    found: dict[str, list[float]] = defaultdict(list)
    for row in read_metrics(path):
        if row["label"] in ((label,) if label else LABELS):
            found[row["case"]].append(float(row[metric]))
    return {case: float(np.mean(values)) for case, values in found.items()}


def write_table(study: Study) -> None:
    """Print each row of the test list, and how far it is above the U-Net; missing ones are left out."""
    folder = study.runner.folder
    unet = folder / "test" / "unet" / "metrics.csv"
    rival = by_case(unet, "dice") if unet.exists() else {}
    lines = []
    for path in sorted((folder / "test").glob("*/metrics.csv")):
        line = {"regime": study.regime, "row": path.parent.name}
        for metric in ("dice", "asd", "hd95", "surface_dice"):
            for label in LABELS:
                line[f"{metric} {label}"] = f"{np.mean(list(by_case(path, metric, label).values())):.3f}"
        checked = folder / "validation" / path.parent.name / "metrics.csv"
        line["validation"] = f"{mean_dice(checked):.4f}" if checked.exists() else ""
        own = by_case(path, "dice")
        if rival and own.keys() == rival.keys():
            test = paired_test(np.array([own[c] for c in rival]), np.array(list(rival.values())), True)
            interval = f" ({test.low:+.4f} to {test.high:+.4f})" if test.low == test.low else ""  # few cases have none
            line["above the U-Net"] = f"{test.difference:+.4f}{interval}"
        lines.append(line)
    if lines:
        names = list(dict.fromkeys(name for line in lines for name in line))
        writer = csv.DictWriter(sys.stdout, names, restval="", delimiter="\t")
        writer.writeheader()
        writer.writerows(lines)


STAGES = {
    "unet": Study.train_unets,
    "registrations": Study.train_registrations,
    "votes": Study.train_votes,
    "search": Study.search,
    "segment": Study.segment_all,
    "tables": write_table,
}


def main() -> None:
    """Parse the arguments, and go from stage to stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--output_dir", type=Path, default=Path("output/multi_atlas"))
    parser.add_argument("--regimes", default="all,ten")
    parser.add_argument("--stages", default=",".join(STAGES))
    parser.add_argument("--steps", type=int, default=FULL_STEPS, help="of a registration network; others in proportion")
    parser.add_argument("--quick", action="store_true", help="few cases: a smoke test, with --steps 4")
    options = parser.parse_args()
    chosen = options.stages.split(",")
    if unknown := set(chosen) - set(STAGES):
        parser.error(f"stages {', '.join(sorted(unknown))}: expected some of {', '.join(STAGES)}.")
    for regime in options.regimes.split(","):
        study = Study(options.data.resolve(), options.output_dir.resolve(), regime, options.steps, options.quick)
        for name in (name for name in STAGES if name in chosen):
            STAGES[name](study)


if __name__ == "__main__":
    main()
