# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Kills a small training at one change of the disk after another, resumes it, and compares with an unharmed one.

A process of its own, which imports everything once and forks for each training: ``kill_points.py DATASET FOLDER STEP
[SETTING=VALUE …]`` tries every STEP-th kill point and prints a JSON object.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from monai.bundle import ConfigWorkflow

torch.set_num_threads(1)
CONFIG = Path(__file__).resolve().parents[2] / "bundle" / "configs" / "train.yaml"
CALLS = ("replace", "unlink", "fsync")
KILLED = 9


def train(dataset: Path, folder: Path, **settings: Any) -> None:
    settings["dataset_dir"] = str(dataset)
    workflow = ConfigWorkflow(str(CONFIG), workflow_type="train", logging_file=False, **settings)
    workflow.initialize()
    workflow.run()
    workflow.finalize()


class Killer:
    """Counts the calls that change the disk, and ends the process at one of them, as a kill -9 would."""

    def __init__(self, log: Path, at: int = -1, after: bool = False) -> None:
        self.log, self.at, self.after, self.count = log, at, after, 0
        for name in CALLS:
            setattr(os, name, self.watched(name, getattr(os, name)))

    def watched(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def watch(*args: Any, **options: Any) -> Any:
            mine = self.count == self.at
            self.count += 1
            with self.log.open("a") as log:
                log.write(f"{name} {args[0]}\n")
            if mine and not self.after:
                os._exit(KILLED)
            try:
                return call(*args, **options)
            finally:
                if mine:
                    os._exit(KILLED)

        return watch


def forked(work: Callable[[], object]) -> int:
    """Do the work in a process of its own; return its exit status."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(os.open(str(Path(sys.argv[2]) / "stderr.txt"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        work()
        status = 0
    finally:
        os._exit(status)
    return status


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but TensorBoard's, whose names hold times, less the folder's own name; hidden files by names alone."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.parent.name != "tensorboard")
    own = str(folder.absolute()).encode()  # the configurations of the bundle name it
    return {
        str(path.relative_to(folder)): b"" if path.name.startswith(".") else path.read_bytes().replace(own, b"")
        for path in files
    }


def main(dataset: Path, folder: Path, step: int, **settings: Any) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)

    def run(output: Path, resume: bool, at: int = -1, after: bool = False) -> int:
        def work() -> None:
            Killer(folder / "calls.txt", at, after)
            train(dataset, output, **settings, output_dir=str(output), resume=resume)

        (folder / "calls.txt").unlink(missing_ok=True)
        return forked(work)

    whole = folder / "whole"
    if run(whole, resume=False):
        raise SystemExit((folder / "stderr.txt").read_text()[-2000:])
    calls = (folder / "calls.txt").read_text().splitlines()
    expected = contents(whole)
    tried, faults = 0, []
    for point in range(0, 2 * len(calls), step):
        at, after = divmod(point, 2)
        output = folder / "killed"
        shutil.rmtree(output, ignore_errors=True)
        place = f"{'after' if after else 'before'} {at} {calls[at]}"
        if run(output, resume=False, at=at, after=bool(after)) != KILLED:
            faults.append(f"{place}: was not reached")
        if status := run(output, resume=True):
            faults.append(f"{place}: resume ends with {status}: {(folder / 'stderr.txt').read_text()[-300:]}")
            continue
        found = contents(output)
        differing = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        faults += [f"{place}: {name} differs" for name in differing]
        tried += 1
    return {"calls": len(calls), "tried": tried, "faults": faults}


if __name__ == "__main__":
    pairs = (argument.split("=", 1) for argument in sys.argv[4:])
    chosen = {name: yaml.safe_load(value) for name, value in pairs}
    json.dump(main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), **chosen), sys.stdout)
