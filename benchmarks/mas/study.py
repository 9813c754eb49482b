# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""All that is trained and segmented in one regime."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from runs import CONFIGS, Runner

from atlas_istn.io.outputs import write_json

from .patch_search import compare_searches
from .rows import ALONE, FUSIONS, REGISTRATIONS, SEARCH, UNTRAINED, Row, Weights, rows_of_table
from .tables import mean_dice

__all__ = ["ATLASES", "FULL_STEPS", "Study"]

ATLASES, FULL_STEPS = 10, 3000
VOTE_TARGETS = 30
"""Cases onto which atlases are registered for the training of VoteNet+."""
TUNING = 6
"""Cases of ``validation`` by which weights and rows are chosen."""
COUNTS = (5, 20)
"""Numbers of atlases that are tried beside the ten."""
DATA = f"{CONFIGS}/data/hippocampus.yaml"
PAIR_DATA = [f"{CONFIGS}/pair/data/hippocampus.yaml", f"{CONFIGS}/pair/transformations/displacements.yaml"]
HALVES = ("half_0", "half_1")
LEARNED = "bundle"
"""Folder of the Atlas-ISTN whose atlas is used: the one that is shipped, of all training cases."""


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
        cases |= {f"atlases_{count}": content["training"][:count] for count in COUNTS}
        cases |= {"vote_targets": cases["training"][:VOTE_TARGETS], "tuning": cases["validation"][:TUNING]}
        # Of two halves, so that each atlas is new to one of them, and both have atlases.
        cases |= {f"half_{number}": cases["training"][number::2] for number in (0, 1)}
        absolute = {
            name: [{key: str((data / path).resolve()) for key, path in item.items()} for item in items]
            for name, items in cases.items()
        }
        write_json(absolute, self.data / "dataset.json")

    def _length(self, full: int) -> int:
        return max(1, round(full * self.steps / FULL_STEPS))

    def train_unet(self) -> None:
        """Train and score a U-Net of all training cases."""
        self._train_unet("training")
        lists = {"dataset_dir": self.data, "test_list": "test", "output_dir": self.runner.folder / "test" / "unet"}
        config = [str(self._unet("training") / "configs" / "evaluate.yaml")]
        self.runner.bundle("test_unet", "evaluate", config, **lists)

    def compare_folds(self) -> None:
        """Train U-Nets of halves, as many steps, and refine by the half that lacks an atlas."""
        for name in HALVES:
            self._train_unet(name)
        for fusion in UNTRAINED:
            self.segment(Row("affine", "is", fusion, self.chosen()["is"], folds=True), "test")

    def _train_unet(self, name: str) -> None:
        work = self._unet(name)
        epochs = self._length(20 * 160 // len(self._lists()[name]))
        settings = {
            "dataset_dir": self.data,
            "output_dir": work,
            "bundle_root": work,
            "train_list": name,
            "val_list": "validation",
            "max_epochs": epochs,
            "val_interval": max(1, epochs // 5),
            "amp": "true",
            "resume": "true",
        }
        stack = [f"{CONFIGS}/train.yaml", DATA, f"{CONFIGS}/variants/unet.yaml"]
        self.runner.bundle(f"train_unet_{name}", "training", stack, **settings)

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
                "train_list": "vote_targets",
                "val_list": "tuning",
                "max_epochs": self._length(8),
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
        elif name == "learned":
            settings["atlas_registration"] = LEARNED
        elif name != "velocity":
            settings["atlas_registration"] = self.runner.folder / name
        return settings

    def segment(self, row: Row, cases: str) -> Path:
        """Segment and score a list; return the table of scores."""
        stack, settings = self.configuration(row, cases)
        self.runner.bundle(f"{cases}_{row.name}", "evaluate", stack, **settings)
        return Path(settings["output_dir"]) / "metrics.csv"

    def configuration(self, row: Row, cases: str) -> tuple[list[str], dict[str, Any]]:
        """Files and settings of the run that segments a list."""
        stack = [f"{CONFIGS}/evaluate.yaml", DATA, f"{CONFIGS}/multi_atlas.yaml"]
        settings = self._registering(row.registration) | {
            "atlas_list": row.atlases,
            "test_list": cases,
            "output_dir": self.runner.folder / cases / row.name,
            "atlas_cache": self.runner.folder.parent / "cache",
        }
        if row.fusion == "vote_net":
            stack.append(f"{CONFIGS}/vote_net.yaml")
            settings["fusion_path"] = self._votes(row.registration) / "models" / "model.pt"
        elif FUSIONS[row.fusion]:
            settings["fusion"] = FUSIONS[row.fusion]
        if row.refinement:
            stack.append(f"{CONFIGS}/multi_atlas_refine.yaml")
            settings |= self._refining(row)
        if row.topology:
            settings["atlas_model"] = LEARNED
        return stack, settings

    def _refining(self, row: Row) -> dict[str, Any]:
        weights = dict(row.weights)
        settings: dict[str, Any] = {"atlas_refinement#regularisation": weights["gamma"]}
        if row.refinement == "i":
            return settings | {"segmenter": "null"}
        settings["label_weight"] = weights["alpha"]
        if row.folds:
            return settings | {"segmenter_folds": str([str(self._unet(name)) for name in HALVES])}
        return settings | {"ckpt_path": self._unet("training") / "models/model.pt"}

    def search(self) -> None:
        """Try weights of each refinement behind DIS; keep those of the best mean Dice of vote and joint fusion."""
        for refinement, tried in SEARCH.items():
            scores = {}
            for weights in tried[:1] if self.quick else tried:
                rows = [Row("dis", refinement, fusion, weights) for fusion in UNTRAINED]
                scores[weights] = float(np.mean([mean_dice(self.segment(row, "tuning")) for row in rows]))
            chosen = max(scores, key=lambda weights: scores[weights])
            lines = [{"weights": dict(weights), "dice": dice} for weights, dice in scores.items()]
            write_json({"tried": lines, "chosen": dict(chosen)}, self._choice(refinement))

    def _choice(self, refinement: str) -> Path:
        return self.runner.folder / f"search_{refinement}.json"

    def chosen(self) -> dict[str, Weights]:
        """Weights of each refinement that the search has chosen."""
        choices = {name: json.loads(self._choice(name).read_text(encoding="utf-8"))["chosen"] for name in SEARCH}
        return {name: tuple(weights.items()) for name, weights in choices.items()}

    def segment_all(self) -> None:
        """Segment cases in every way of the table: the best row is chosen on ``tuning``, and counts on ``test``."""
        for cases in ("test", "tuning"):
            for row in rows_of_table(self.chosen()):
                self.segment(row, cases)

    def compare_searches(self) -> None:
        """Refinement by a field beside a search of patches, on the warps of a poor and of a good registration."""
        for registration in ("affine", "dis"):
            rows = {"registered": Row(registration), "refined": Row(registration, "i", weights=self.chosen()["i"])}
            runs = {name: self.configuration(row, "test") for name, row in rows.items()}
            figures = compare_searches(runs, self.runner.folder / f"searches_{registration}.png")
            write_json(figures, self.runner.folder / f"searches_{registration}.json")

    def segment_beside(self) -> None:
        """Segment in ways beside those of the table, and the best ones of it with the topology of the learned atlas."""
        refined = self.chosen()["is"]
        rows = [Row("dis", "is", fusion, (refined[0], ("alpha", ALONE))) for fusion in UNTRAINED]
        if self.regime == "all":  # the learned atlas is of all training cases; atlases need no network
            rows += [Row("learned", fusion=fusion) for fusion in UNTRAINED]
            rows += [Row("velocity", topology=True), replace(self.best(), topology=True)]
            counted = [f"atlases_{count}" for count in COUNTS]
            rows += [Row("velocity", fusion=fusion, atlases=name) for name in counted for fusion in UNTRAINED]
        for row in rows:
            self.segment(row, "test")

    def best(self) -> Row:
        """The row of the table with the best mean Dice on ``tuning``, of those that are there."""
        scores = {row: self.runner.folder / "tuning" / row.name / "metrics.csv" for row in rows_of_table(self.chosen())}
        return max(scores, key=lambda row: mean_dice(scores[row]) if scores[row].exists() else 0.0)

    def searched(self) -> bool:
        """Whether the weights have been chosen."""
        return all(self._choice(name).exists() for name in SEARCH)
