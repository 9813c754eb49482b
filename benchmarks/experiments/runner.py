# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""What the experiments share: they run the bundle's own commands, each of them once."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from atlas_istn.io.cases import find_cases
from atlas_istn.io.outputs import write_json

__all__ = ["LARGEST_COMPONENT", "Bench", "argument_parser", "first_cases", "write_lists"]

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = "bundle/configs"
LARGEST_COMPONENT = "benchmarks/experiments/largest_component.yaml"


class Bench:
    """Trains and evaluates with ``python -m monai.bundle run``; what is done already is not done again.

    A run has a folder of its own, ``NAME-HASH``, where the hash is of the text of its configs, its settings and its
    input: the lists of the data set and, for an evaluation, the weights. A changed config thus makes a new run; changes
    of the Python code are not noticed. A training that was stopped is resumed.

    Args:
        output_dir: folder of all runs.
    """

    def __init__(self, output_dir: str | Path) -> None:
        self.output_dir = Path(output_dir).resolve()

    def train(self, name: str, configs: Sequence[str], dataset_dir: str | Path, **settings: Any) -> Path:
        """Train a model.

        Args:
            name: of the run.
            configs: those that go over ``train.yaml``: files relative to the repository.
            dataset_dir: folder with a dataset.json.
            settings: overrides of the configs.

        Returns:
            The path of its model.pt.
        """
        stack = [f"{CONFIGS}/train.yaml", *configs]
        folder = self._run("training", name, stack, dataset_dir, settings, resume="true")
        return folder / "models" / "model.pt"

    def evaluate(
        self, name: str, configs: Sequence[str], model: str | Path, dataset_dir: str | Path, **settings: Any
    ) -> Path:
        """Score a model on a list of a data set.

        Args:
            name: of the run.
            configs: those that go over ``evaluate.yaml``: files relative to the repository.
            model: path of its model.pt.
            dataset_dir: folder with a dataset.json.
            settings: overrides of the configs, such as the list, ``test_list``.

        Returns:
            The folder with its metrics.csv.
        """
        stack = [f"{CONFIGS}/evaluate.yaml", *configs]
        weights = hashlib.sha256(Path(model).read_bytes()).hexdigest()
        return self._run(
            "evaluate", name, stack, dataset_dir, {"ckpt_path": str(Path(model).resolve()), **settings}, weights
        )

    def _run(
        self,
        run_id: str,
        name: str,
        stack: Sequence[str],
        dataset_dir: str | Path,
        settings: Mapping[str, Any],
        digest: str = "",
        **unhashed: Any,
    ) -> Path:
        data = Path(dataset_dir).resolve()
        texts = [(ROOT / config).read_text(encoding="utf-8") for config in stack]
        lists = (data / "dataset.json").read_text(encoding="utf-8")
        identity = json.dumps([run_id, texts, lists, str(data), settings, digest], sort_keys=True)
        folder = self.output_dir / run_id / f"{name}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}"
        folders = {"dataset_dir": str(data), "output_dir": str(folder)}
        self._once(f"{run_id} {name}", _command(run_id, stack, {**folders, **settings, **unhashed}), folder)
        return folder

    def _once(self, title: str, command: Sequence[str], folder: Path) -> None:
        if (folder / "done.json").exists():
            print(f"{title}: done before, in {folder}", flush=True)
            return
        folder.mkdir(parents=True, exist_ok=True)
        print(f"{time.strftime('%H:%M:%S')} {title}: log in {folder / 'log.txt'}", flush=True)
        start = time.monotonic()
        with (folder / "log.txt").open("a", encoding="utf-8") as log:
            status = subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
        if status:
            last = (folder / "log.txt").read_text(encoding="utf-8", errors="replace")[-2000:]
            raise SystemExit(f"{last}\n{title} failed. The command was:\n{shlex.join(command)}")
        seconds = round(time.monotonic() - start, 1)
        write_json({"command": shlex.join(command), "seconds": seconds}, folder / "done.json")
        print(f"{time.strftime('%H:%M:%S')} {title}: {seconds:.0f} s", flush=True)


def _command(run_id: str, stack: Sequence[str], settings: Mapping[str, Any]) -> list[str]:
    command = [sys.executable, "-m", "monai.bundle", "run", run_id, "--config_file", str(list(stack))]
    for key, value in settings.items():
        command += [f"--{key}", str(value)]
    return command


def write_lists(dataset_dir: str | Path, target: str | Path, lists: Mapping[str, Sequence[Mapping[str, str]]]) -> Path:
    """Write a dataset.json with lists of another data set's files, which stay where they are.

    Args:
        dataset_dir: the data set.
        target: folder for the new dataset.json.
        lists: name → entries with ``image`` and ``label``, as `find_cases` returns them.

    Returns:
        The folder.
    """
    source = json.loads((Path(dataset_dir) / "dataset.json").read_text(encoding="utf-8"))
    kept = {key: value for key, value in source.items() if not isinstance(value, list)}
    folder = Path(target).resolve()
    entries = {
        name: [{key: os.path.relpath(case[key], folder) for key in ("image", "label")} for case in cases]
        for name, cases in lists.items()
    }
    write_json({**kept, **entries}, folder / "dataset.json")
    return folder


def first_cases(dataset_dir: str | Path, target: str | Path, numbers: Mapping[str, int]) -> Path:
    """A data set of the first cases of each list: list → number of its cases, 0 for all. Returns its folder."""
    lists = {name: find_cases(str(dataset_dir), name, True)[: number or None] for name, number in numbers.items()}
    return write_lists(dataset_dir, target, lists)


def argument_parser(description: str | None, dataset_dir: str) -> argparse.ArgumentParser:
    """Parser of the arguments that all experiments have; ``dataset_dir`` is the default of that argument."""
    name = Path(dataset_dir).name
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_dir", default=dataset_dir, help=f"folder with a dataset.json; default {dataset_dir}")
    parser.add_argument("--output_dir", default=f"output/experiments/{name}", help="what is there is not done again")
    parser.add_argument(
        "--quick", action="store_true", help="a smoke test of a minute or two: its figures mean nothing"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the trainings")
    return parser
