# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Letter B: every variant of the method on clean and on corrupted letters, and a sweep over λ of the refinement.

    python benchmarks/experiments/letter_b.py

Where --dataset_dir holds no data set, it is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runner import LARGEST_COMPONENT, Bench, argument_parser, first_cases
from tables import keep_comparison, write_tables

from atlas_istn.data.letter_b import generate_letter_b

__all__ = ["main"]

DATA = "bundle/configs/data/letter_b.yaml"
LISTS = {"clean": "validation", "corrupted": "test_corrupt"}
RESULTS = {
    "U-net": ("unet", "itn"),
    "U-net1cc": ("unet1cc", "itn"),
    "VML": ("vml", "one_pass"),
    "−Ls": ("no_seg_loss", "one_pass"),
    "Independent": ("independent", "refine"),
    "Fixed": ("fixed_atlas", "refine"),
    "SVF": ("svf_only", "refine"),
    "ITN": ("full", "itn"),
    "ITN1cc": ("full", "itn1cc"),
    "1-pass": ("full", "one_pass"),
    "refine": ("full", "refine"),
}
"""Name in tables → run and its result."""
LAMBDAS = [0.01, 0.03, 0.1, 0.3, 1.0]
QUICK = {"max_epochs": 1, "val_interval": 1, "final_atlas_rounds": 0}


def _configs(*variants: str) -> list[str]:
    return [DATA, *(f"bundle/configs/variants/{name}.yaml" for name in variants)]


def _train(bench: Bench, variants: Sequence[str], dataset_dir: Path, settings: dict[str, Any]) -> dict[str, Path]:
    """Model of each variant; the independent one is put together from the U-net and needs no training."""
    models = {"full": bench.train("full", _configs(), dataset_dir, **settings)}
    for name in variants:
        own = {"unet_path": str(models["unet"])} if name == "independent" else {}
        models[name] = bench.train(name, _configs(name), dataset_dir, **settings, **own)
    return models


def _evaluate(bench: Bench, models: dict[str, Path], dataset_dir: Path, data_list: str) -> dict[str, Path]:
    """Evaluation of each model on a list, and of the U-net's largest components."""
    runs = {name: (_configs(name), model) for name, model in models.items() if name != "full"}
    runs["full"] = ([DATA, LARGEST_COMPONENT], models["full"])
    runs["unet1cc"] = (_configs("unet", "unet1cc"), models["unet"])
    return {
        name: bench.evaluate(name, configs, model, dataset_dir, test_list=data_list)
        for name, (configs, model) in runs.items()
    }


def _sweep(bench: Bench, model: Path, dataset_dir: Path, data_list: str, values: Sequence[float]) -> dict[str, Path]:
    return {
        f"{value:g}": bench.evaluate(
            f"lambda_{value:g}",
            [DATA],
            model,
            dataset_dir,
            test_list=data_list,
            refine_weights={"beta": 1.0, "gamma": 0.0, "lambda": value},
        )
        for value in values
    }


def main() -> None:
    """Train, evaluate and compare."""
    parser = argument_parser(__doc__, "data/letter_b")
    parser.add_argument(
        "--variants",
        nargs="*",
        default=["unet", "vml", "no_seg_loss", "fixed_atlas", "svf_only", "independent"],
        help="beside the full method; unet is always one",
    )
    parser.add_argument("--epochs", type=int, default=24)
    arguments = parser.parse_args()
    output_dir, dataset_dir = Path(arguments.output_dir), Path(arguments.dataset_dir)
    variants = list(dict.fromkeys(["unet", *arguments.variants]))
    lists, lambdas = LISTS, LAMBDAS
    settings: dict[str, Any] = {"seed": arguments.seed, "max_epochs": arguments.epochs}
    if not (dataset_dir / "dataset.json").exists():
        generate_letter_b(dataset_dir)
    if arguments.quick:
        variants, lists, lambdas, settings = ["unet"], {"corrupted": "test_corrupt"}, LAMBDAS[:2], settings | QUICK
        numbers = {"training": 20, "validation": 5, "test_corrupt": 6}
        dataset_dir = first_cases(dataset_dir, output_dir / "data", numbers)

    bench, results = Bench(output_dir), output_dir / "results"
    models = _train(bench, variants, dataset_dir, settings)
    for title, data_list in lists.items():
        runs = _evaluate(bench, models, dataset_dir, data_list)
        methods = {name: (runs[run], result) for name, (run, result) in RESULTS.items() if run in runs}
        keep_comparison(results / title, methods, holes={"B": 2})
        swept = _sweep(bench, models["full"], dataset_dir, data_list, lambdas)
        keep_comparison(results / f"{title}_lambda", {n: (path, "") for n, path in swept.items()}, sweep="lambda")
    write_tables(results)


if __name__ == "__main__":
    main()
