# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""The experiments: what they run, how often, on which patients, and the tables that they keep."""

from __future__ import annotations

import gzip
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from atlas_istn.evaluation.scores import Evaluation
from atlas_istn.io.cases import find_cases
from support import ROOT

EXPERIMENTS = ROOT / "benchmarks" / "experiments"


@pytest.fixture(scope="module")
def modules() -> dict[str, ModuleType]:
    """The experiments are scripts that lie side by side, so their folder is on the path when they are imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXPERIMENTS)
        return {name: importlib.import_module(name) for name in ("runner", "tables", "cardiac")}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """12 patients with a bSSFP and an LGE image each."""
    folder = tmp_path / "data"
    (folder / "images").mkdir(parents=True)
    lists: dict[str, list[dict[str, str]]] = {"bssfp": [], "lge": []}
    for patient in range(12):
        for name, entries in lists.items():
            entry = {key: f"images/patient{patient}_{name}.{key}.nii.gz" for key in ("image", "label")}
            entry["image"] = f"images/patient{patient}_{name}.nii.gz"
            for path in entry.values():
                (folder / path).touch()
            entries.append(entry)
    (folder / "dataset.json").write_text(json.dumps({"name": "heart", "labels": {"0": "background"}, **lists}))
    return folder


@pytest.fixture
def commands(modules: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """The options of every command, which is not run: training leaves a model, evaluation an empty folder."""
    seen: list[dict[str, str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert command[:4] == [sys.executable, "-m", "monai.bundle", "run"]
        options = dict(zip([name.removeprefix("--") for name in command[5::2]], command[6::2], strict=True))
        seen.append({"run": command[4], **options})
        model = Path(options["output_dir"]) / "models" / "model.pt"
        model.parent.mkdir()
        model.write_bytes(b"weights")
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(modules["runner"].subprocess, "run", run)
    return seen


def test_the_split_is_by_patient(modules: dict[str, ModuleType], data: Path, tmp_path: Path) -> None:
    split = modules["cardiac"].split_by_patient(data, tmp_path / "deep" / "split")
    lists = {
        name: [case["case"] for case in find_cases(str(split), name, True)]  # which needs the files to be found
        for name in ("training", "validation", "test_bssfp", "test_lge")
    }
    patients = {name: {case.split("_")[0] for case in cases} for name, cases in lists.items()}
    assert [len(cases) for cases in lists.values()] == [3, 3, 6, 6]
    assert patients["test_bssfp"] == patients["test_lge"]
    assert patients["training"] | patients["validation"] | patients["test_lge"] == {f"patient{n}" for n in range(12)}
    for name, sequence in {
        "training": "bssfp",
        "validation": "bssfp",
        "test_bssfp": "bssfp",
        "test_lge": "lge",
    }.items():
        assert all(case.endswith(sequence) for case in lists[name])
    content = json.loads((split / "dataset.json").read_text())
    assert content["name"] == "heart"
    assert str(data) not in json.dumps(content)  # the paths are relative


def test_the_split_depends_on_the_seed_alone(modules: dict[str, ModuleType], data: Path, tmp_path: Path) -> None:
    split = modules["cardiac"].split_by_patient
    first, again, other = (split(data, tmp_path / f"split{n}", seed) for n, seed in enumerate((0, 0, 1)))
    texts = [(folder / "dataset.json").read_text() for folder in (first, again, other)]
    assert texts[0] == texts[1] != texts[2]


def test_the_commands_are_those_of_the_bundle(
    modules: dict[str, ModuleType], data: Path, tmp_path: Path, commands: list[dict[str, str]]
) -> None:
    bench = modules["runner"].Bench(tmp_path / "out")
    configs = ["bundle/configs/data/letter_b.yaml"]
    model = bench.train("full", configs, data, max_epochs=3)
    folder = bench.evaluate("full", [*configs, modules["runner"].LARGEST_COMPONENT], model, data, test_list="lge")

    training, evaluation = commands
    assert training["run"] == "training"
    assert training["resume"] == "true"
    assert training["max_epochs"] == "3"
    assert training["config_file"] == str(["bundle/configs/train.yaml", *configs])
    assert evaluation["run"] == "evaluate"
    assert evaluation["ckpt_path"] == str(model)
    assert evaluation["test_list"] == "lge"
    assert evaluation["output_dir"] == str(folder)
    assert evaluation["dataset_dir"] == training["dataset_dir"] == str(data)
    for config in (training["config_file"], evaluation["config_file"]):
        assert all((ROOT / path.strip(" '")).is_file() for path in config.strip("[]").split(","))


def test_nothing_is_run_twice(
    modules: dict[str, ModuleType], data: Path, tmp_path: Path, commands: list[dict[str, str]]
) -> None:
    bench = modules["runner"].Bench(tmp_path / "out")
    config = ["bundle/configs/data/letter_b.yaml"]
    model = bench.train("full", config, data, max_epochs=3)
    assert bench.train("full", config, data, max_epochs=3) == model
    evaluated = bench.evaluate("full", config, model, data)
    assert bench.evaluate("full", config, model, data) == evaluated
    assert len(commands) == 2

    assert bench.train("full", config, data, max_epochs=4) != model  # another setting
    assert bench.train("full", ["bundle/configs/data/hippocampus.yaml"], data, max_epochs=3) != model  # another config
    model.write_bytes(b"other weights")
    assert bench.evaluate("full", config, model, data) != evaluated
    (data / "dataset.json").write_text("{}")  # another list
    assert bench.train("full", config, data, max_epochs=3) != model
    assert len(commands) == 6


def test_what_failed_is_run_again(
    modules: dict[str, ModuleType], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(command: list[str], stdout: Any, **_: Any) -> subprocess.CompletedProcess[str]:
        stdout.write("no such checkpoint\n")
        stdout.flush()
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(modules["runner"].subprocess, "run", fail)
    bench = modules["runner"].Bench(tmp_path / "out")
    for _ in range(2):
        with pytest.raises(SystemExit, match=r"(?s)no such checkpoint.*training full failed.*--max_epochs 3"):
            bench.train("full", [], data, max_epochs=3)


def write_scores(folder: Path, dice: list[float], hd: list[float]) -> Path:
    evaluation = Evaluation()
    for case, (overlap, distance) in enumerate(zip(dice, hd, strict=True)):
        row = {
            "label": "B",
            "dice": overlap,
            "asd": distance / 3,
            "hd": distance,
            "hd95": distance,
            "surface_dice": 1.0,
        }
        about = {"components": 1, "holes": case % 2, "empty_prediction": False, "empty_reference": False}
        evaluation.add(f"case_{case}", "refine", [row | about])
    evaluation.write(folder)
    return folder


def test_tables_reproduce_from_the_scores_that_are_kept(modules: dict[str, ModuleType], tmp_path: Path) -> None:
    tables = modules["tables"]
    better = write_scores(tmp_path / "full-12345678", [0.9, 0.8, 0.7, 0.95, 0.85], [1 / 3, 2, 3, 1, 2])
    worse = write_scores(tmp_path / "svf-12345678", [0.8, 0.7, 0.6, 0.85, 0.75], [2, 3, 4, 2, 3])
    results = tmp_path / "results"
    methods = {"refine": (better, "refine"), "SVF": (worse, "refine")}
    tables.keep_comparison(results / "clean", methods, holes={"B": 1})
    kept = {path.name: path.read_bytes() for path in (results / "clean").iterdir()}
    assert set(kept) == {"comparison.json", "full.csv.gz", "svf.csv.gz"}
    assert b"0.333333,0.333333" in gzip.decompress(kept["full.csv.gz"])  # six digits of hd and hd95

    tables.write_tables(results)
    first = {path: path.read_bytes() for path in results.rglob("*.md")}
    overview = (results / "overview.md").read_text().splitlines()
    assert overview[2:] == [
        # Two of five cases have the hole. SVF is worse in every case, so it is in every resample: p is the least one.
        "| clean (n = 5) | refine | 0.840 |  | 0.556 |  | 1.667 |  | 40 % |",
        "| clean (n = 5) | SVF | 0.740 | < 0.001 | 0.933 | < 0.001 | 2.800 | < 0.001 | 40 % |",
    ]
    tables.keep_comparison(results / "clean", methods, holes={"B": 1})
    tables.write_tables(results)
    assert {path: path.read_bytes() for path in results.rglob("*.md")} == first
    assert {name: (results / "clean" / name).read_bytes() for name in kept} == kept


def test_the_tables_in_the_documents_are_those_of_the_scores_beside_them(
    modules: dict[str, ModuleType], tmp_path: Path
) -> None:
    committed = ROOT / "bundle" / "docs" / "experiments"
    comparisons = sorted(committed.rglob("comparison.json"))
    assert comparisons
    source = comparisons[0].parent
    modules["tables"].write_tables(source, tmp_path)
    assert (tmp_path / "comparison.md").read_text() == (source / "comparison.md").read_text()


@pytest.mark.slow
def test_a_quick_run_ends_with_tables(tmp_path: Path) -> None:
    data = Path(os.environ.get("ATLAS_ISTN_DATA", ROOT.parent / "shared" / "data")) / "letter_b"
    if not data.is_dir():
        pytest.skip(f"needs the data set {data}; set ATLAS_ISTN_DATA to the folder above it")
    script = [sys.executable, str(EXPERIMENTS / "letter_b.py"), "--quick", "--dataset_dir", str(data)]
    subprocess.run([*script, "--output_dir", str(tmp_path)], check=True, cwd=ROOT)
    assert "| corrupted (n = 6) | refine |" in (tmp_path / "results" / "overview.md").read_text()
    assert (tmp_path / "results" / "corrupted_lambda" / "sweep.png").is_file()
