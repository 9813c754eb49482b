# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""What a user gets for his own data: plan and training with nothing else, on several sets, and rivals in the same time.

    python benchmarks/own_data.py DATA_DIR --output_dir output/own_data --hours 0.2 --sets letter_b,cardiac_mr

DATA_DIR holds the data sets, a folder each. For each set this runs the commands that a user types. Then the same
time is given to the segmentation network alone (``variants/unet.yaml``, same split, grid and settings) and, where the
repository has one, to the configuration that is tuned for the set. Time is the processor time of the training, which
other load on the machine hardly changes. All are scored on the same cases in native space, and `compare` makes the
table. What is done already is not done again; a training that was stopped goes on.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import yaml
from runs import CONFIGS, ROOT, Runner

PLANS = {
    "cardiac_mr": ["--lists", "bssfp"],
    "brain_2d": ["--labels", "L-Thal=5,L-Caud=6,L-Put=7,L-Pall=8,R-Thal=18,R-Caud=19,R-Put=20,R-Pall=21"],
    "mouse_brain": ["--labels", "hippocampus=1+21"],
}
"""Data set → what its plan has to be told."""
SETS = ["letter_b", "hippocampus", *PLANS]
TEST_LISTS = {"letter_b": ("validation", "test_corrupt"), "mouse_brain": ("validation",)}
"""Data set → the lists to score, where it is not ``test`` alone."""
RIVALS = ("unet", "tuned")
TRIAL_EPOCHS = (2, 8)


def train_as_long(runner: Runner, name: str, configs: Sequence[str], seconds: float) -> None:
    """Train configurations for as many epochs as fit into the seconds, see ``TRIAL_EPOCHS``."""
    stack = [f"{CONFIGS}/train.yaml", *configs]
    trial = {"output_dir": runner.folder / "trial", "bundle_root": runner.folder / "trial", "overwrite": "true"}
    few, more = (
        runner.bundle(f"{name}_{n}", "training", stack, max_epochs=n, val_interval=9, **trial) for n in TRIAL_EPOCHS
    )
    epoch = (more - few) / (TRIAL_EPOCHS[1] - TRIAL_EPOCHS[0])
    epochs = max(1, round(TRIAL_EPOCHS[0] + (seconds - few) / epoch))
    length = {"max_epochs": epochs, "val_interval": max(1, epochs // 8)}
    work = runner.folder / name
    runner.bundle(name, "training", stack, output_dir=work, bundle_root=work, resume="true", **length)


def walk(data: Path, folder: Path, hours: float, chosen: Sequence[str]) -> None:
    """Go the whole way with one data set and the chosen of its rivals, and make its tables."""
    runner, work = Runner(folder), folder / "own"
    budget = [f"--hours={hours}"] if hours else []
    runner.run("plan", "atlas_istn", "plan", str(data), "--output_dir", str(work), *budget, *PLANS.get(data.name, []))
    own = work / "configs" / "data.yaml"
    seconds = runner.bundle("own", "training", [f"{CONFIGS}/train.yaml", str(own)], resume="true")
    rivals = {"unet": [str(own), f"{CONFIGS}/variants/unet.yaml"]}
    if (ROOT / CONFIGS / "data" / f"{data.name}.yaml").exists():
        rivals["tuned"] = [str(own_lists(own, folder)), f"{CONFIGS}/data/{data.name}.yaml"]
    rivals = {name: configs for name, configs in rivals.items() if name in chosen}
    for name, configs in rivals.items():
        train_as_long(runner, name, configs, seconds)
    for test_list in TEST_LISTS.get(data.name, ("test",)):
        scores = {name: folder / f"{name}_{test_list}" for name in ("own", *rivals)}
        for name, results in scores.items():
            evaluate = [str(folder / name / "configs" / "evaluate.yaml")]
            runner.bundle(f"evaluate_{results.name}", "evaluate", evaluate, test_list=test_list, output_dir=results)
        comparison = str(folder / f"comparison_{test_list}")
        runner.run(
            f"compare_{test_list}", "atlas_istn", "compare", *map(str, scores.values()), "--output_dir", comparison
        )


def own_lists(own: Path, folder: Path) -> Path:
    """Write what a tuned configuration needs to know of the plan: where the cases are, and their labels."""
    plan = yaml.safe_load(own.read_text(encoding="utf-8"))
    known = {key: plan[key] for key in ("dataset_dir", "data_list_file", "localise") if key in plan}
    path = folder / "lists.yaml"
    path.write_text(yaml.safe_dump(known), encoding="utf-8")
    return path


def main() -> None:
    """Parse the arguments and go the way with each set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("--output_dir", type=Path, default=Path("output/own_data"))
    parser.add_argument("--hours", type=float, default=0, help="of each plan; by default plan's own")
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--rivals", default=",".join(RIVALS))
    arguments = parser.parse_args()
    for name in arguments.sets.split(","):
        folder = arguments.output_dir.resolve() / name
        walk(arguments.data_dir.resolve() / name, folder, arguments.hours, arguments.rivals.split(","))


if __name__ == "__main__":
    main()
