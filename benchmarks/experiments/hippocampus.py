# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Hippocampus: how variants bear few training cases, with and without augmentation.

    python benchmarks/experiments/hippocampus.py --dataset_dir data/hippocampus

Every training takes as many steps as one with all cases takes, whatever the number of its cases. The ITN is one
network, not the mean of two as in the config.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from runner import LARGEST_COMPONENT, Bench, argument_parser, first_cases
from tables import keep_comparison, write_tables

__all__ = ["main"]

DATA = "bundle/configs/data/hippocampus.yaml"
ALL_CASES = 160
VALIDATIONS = 2  # in a training
VARIANTS = ("full", "unet", "vml", "svf_only")
RESULTS = {
    "U-net": ("unet", "itn"),
    "U-net1cc": ("unet1cc", "itn"),
    "VML": ("vml", "one_pass"),
    "SVF": ("svf_only", "refine"),
    "ITN": ("full", "itn"),
    "ITN1cc": ("full", "itn1cc"),
    "1-pass": ("full", "one_pass"),
    "refine": ("full", "refine"),
}
"""Name in tables → run and its result."""
NO_AUGMENTATION: dict[str, Any] = {"train#augmentation": {"_target_": "Compose", "transforms": []}}
COARSE: dict[str, Any] = {"spatial_size": [24, 32, 24], "spacing": [2.0, 2.0, 2.0]}
QUICK = COARSE | {"refine_iterations": 5}


def _configs(name: str) -> list[str]:
    extra = {"full": [], "unet1cc": ["unet", "unet1cc"]}.get(name, [name])
    return [DATA, *(f"bundle/configs/variants/{variant}.yaml" for variant in extra)]


def _condition(
    bench: Bench, title: str, dataset_dir: Path, variants: list[str], training: dict[str, Any], testing: dict[str, Any]
) -> None:
    """Train and evaluate the variants, and keep their comparison."""
    models = {name: bench.train(f"{name}_{title}", _configs(name), dataset_dir, **training) for name in variants}
    if "unet" in models:
        models["unet1cc"] = models["unet"]
    runs = {
        name: bench.evaluate(
            f"{name}_{title}",
            [*_configs(name), *([LARGEST_COMPONENT] if name == "full" else [])],
            model,
            dataset_dir,
            **testing,
        )
        for name, model in models.items()
    }
    methods = {name: (runs[run], result) for name, (run, result) in RESULTS.items() if run in runs}
    keep_comparison(bench.output_dir / "results" / title, methods)


def main() -> None:
    """Train, evaluate and compare."""
    parser = argument_parser(__doc__, "data/hippocampus")
    parser.add_argument("--cases", nargs="+", type=int, default=[20, 80, ALL_CASES], help="numbers of training cases")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--augmentation", nargs="+", choices=("with", "without"), default=["with", "without"])
    parser.add_argument("--coarse", action="store_true", help="networks work on voxels of 2 mm: about 8 times faster")
    parser.add_argument("--epochs", type=int, default=60, help=f"of a training with {ALL_CASES} cases")
    arguments = parser.parse_args()
    bench, variants, numbers = Bench(arguments.output_dir), arguments.variants, arguments.cases
    shared = COARSE if arguments.coarse else {}
    if arguments.quick:
        variants, numbers, shared = ["full", "unet"], [6], shared | QUICK

    tested = 3 if arguments.quick else 0  # 0 are all
    for number in numbers:
        lists = {"training": number, "validation": tested, "test": tested}
        dataset_dir = first_cases(arguments.dataset_dir, bench.output_dir / f"data/{number}", lists)
        epochs = 1 if arguments.quick else arguments.epochs * ALL_CASES // number
        training = {
            **shared,
            "seed": arguments.seed,
            "max_epochs": epochs,
            "val_interval": max(1, epochs // VALIDATIONS),
        }
        for augmentation in arguments.augmentation:
            changes = NO_AUGMENTATION if augmentation == "without" else {}
            title = f"{number}_{augmentation}_augmentation"
            settings = training | changes | ({"final_atlas_rounds": 0} if arguments.quick else {})
            _condition(bench, title, dataset_dir, variants, settings, shared)
    write_tables(bench.output_dir / "results")


if __name__ == "__main__":
    main()
