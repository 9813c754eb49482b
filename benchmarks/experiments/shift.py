# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Shift: a trained model on images degraded as scanners and artefacts do, by kind and strength.

    python benchmarks/experiments/shift.py --dataset_dir data/hippocampus

The claim under test: refinement gains most where the images leave the training distribution. 1cc stands for the largest
component of each label of the ITN's result.
"""

from __future__ import annotations

from pathlib import Path

from runner import LARGEST_COMPONENT, Bench, argument_parser, first_cases
from tables import keep_comparison, write_tables

from atlas_istn.data.degradations import KINDS, degrade_dataset

__all__ = ["main"]

RESULTS = {"ITN": "itn", "ITN1cc": "itn1cc", "1-pass": "one_pass", "refine": "refine"}


def _degraded(source: Path, data_list: str, kind: str, strength: int, folder: Path) -> Path:
    if not (folder / "dataset.json").exists():  # it is written last
        degrade_dataset(source, folder, kind, strength, data_list)
    return folder


def _evaluate(bench: Bench, title: str, config: str, model: str, dataset_dir: Path, data_list: str) -> None:
    run = bench.evaluate(title, [config, LARGEST_COMPONENT], model, dataset_dir, test_list=data_list)
    methods = {name: (run, result) for name, result in RESULTS.items()}
    keep_comparison(bench.output_dir / "results" / title, methods)


def main() -> None:
    """Degrade, evaluate and compare."""
    parser = argument_parser(__doc__, "data/hippocampus")
    parser.set_defaults(output_dir="output/experiments/shift")
    parser.add_argument("--model", default="bundle/models/model.pt", help="model.pt; default: the one that ships")
    parser.add_argument("--config", default="bundle/configs/data/hippocampus.yaml", help="data config of the model")
    parser.add_argument("--test_list", default="test")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--strengths", nargs="+", type=int, choices=(1, 2, 3), default=[2, 3, 1])
    arguments = parser.parse_args()
    source, data_list = Path(arguments.dataset_dir), arguments.test_list
    bench = Bench(arguments.output_dir)
    conditions = [(kind, strength) for strength in arguments.strengths for kind in arguments.kinds]
    if arguments.quick:
        source = first_cases(source, bench.output_dir / "data/few", {data_list: 2})
        conditions = conditions[:1]

    _evaluate(bench, "none", arguments.config, arguments.model, source, data_list)
    for kind, strength in conditions:
        title = f"{kind}_{strength}"
        folder = _degraded(source, data_list, kind, strength, bench.output_dir / "data" / f"{source.name}_{title}")
        _evaluate(bench, title, arguments.config, arguments.model, folder, data_list)
    write_tables(bench.output_dir / "results")


if __name__ == "__main__":
    main()
