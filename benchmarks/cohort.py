# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Inference on many small scans: how much faster two processes are than one, and what a killed run is worth.

    python benchmarks/cohort.py output/cohort --config_file output/quickstart/configs/inference.yaml

Letters are made as scans, for a model of letters. Runs of one and of two processes, one thread each, take turns under
`torchrun`. Throughput is counted from the first finished case to the summary, so that starting is no part of it. Then
a run of two processes is killed when a random number of cases is done, resumed, and compared with a run that was left
alone: names, voxels, transforms and rows. Batches are of one case: in larger ones the last bits of a result depend on
the cases beside it.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import resource
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

from atlas_istn.data.letter_b import generate_letter_b

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT / "bundle" / "configs" / "multi_gpu_inference.yaml"
TIMES = {"seconds"}  # of a report: what two runs of the same never have in common


def start(options: argparse.Namespace, scans: Path, output: Path, processes: int) -> subprocess.Popen[bytes]:
    """Start inference, in a session of its own so that all of it can be killed."""
    files = [part.strip(" '\"") for part in options.config_file.strip("[]").split(",")]
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), "-m", "monai.bundle"]
    settings = {
        "config_file": str([*files, str(SHARED)]),
        "dataset_dir": str(scans),
        "output_dir": str(output),
        "resume": "true",
        "batch_size": "1",
        **({"ckpt_path": options.ckpt_path} if options.ckpt_path else {}),
    }
    given = [text for name, value in settings.items() for text in (f"--{name}", value)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with (output.parent / f"{output.name}.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, *command, "run", "inference", *given],
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def finished(output: Path) -> list[Path]:
    """Reports of the cases that are done, the oldest first."""
    return sorted(
        (path for path in output.glob("*/*.json") if path.stem == path.parent.name), key=lambda p: p.stat().st_mtime_ns
    )


def measure(options: argparse.Namespace, scans: Path, output: Path, processes: int) -> dict[str, float]:
    """Run to the end: cases a second from the first one to the summary, and CPU seconds of a case.

    The same run once more, which finds all cases finished, costs what starting and the summary do.
    """
    whole, reports = run(options, scans, output, processes), finished(output)
    seconds = (output / "summary.csv").stat().st_mtime - reports[0].stat().st_mtime
    around = run(options, scans, output, processes)
    return {"rate": (len(reports) - processes) / seconds, "seconds": seconds, "cpu": (whole - around) / len(reports)}


def run(options: argparse.Namespace, scans: Path, output: Path, processes: int) -> float:
    """Run to the end; returns CPU seconds of all processes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    if start(options, scans, output, processes).wait():
        sys.exit(f"the run failed, see {output}.log")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def kill_and_resume(options: argparse.Namespace, scans: Path, output: Path, chance: random.Random) -> int:
    """Kill a run of two processes when a random number of cases is done, resume it; returns that number."""
    target = chance.randrange(1, options.cases - 1)
    doomed = start(options, scans, output, 2)
    while doomed.poll() is None and len(finished(output)) < target:
        time.sleep(chance.uniform(0.005, 0.05))
    for process in _descendants(doomed.pid):
        os.kill(process, signal.SIGKILL)
    doomed.wait()
    done = len(finished(output))
    run(options, scans, output, 2)
    return done


def _descendants(process: int) -> list[int]:
    """A process and all that it has started, in whatever session, as Linux lists them."""
    children = Path(f"/proc/{process}/task/{process}/children").read_text(encoding="ascii").split()
    return [process, *(found for child in children for found in _descendants(int(child)))]


def differences(first: Path, second: Path) -> list[str]:
    """What two runs do not have in common, times aside."""
    names = [sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()) for run in (first, second)]
    found = sorted(set(names[0]) ^ set(names[1]))
    for name in set(names[0]) & set(names[1]):
        if _content(first / name) != _content(second / name):
            found.append(name)
    return found


def _content(path: Path) -> object:
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as stream:
            return [{key: value for key, value in row.items() if key not in TIMES} for row in csv.DictReader(stream)]
    if path.suffix == ".json":
        return {key: value for key, value in json.loads(path.read_text(encoding="utf-8")).items() if key not in TIMES}
    return path.read_bytes()


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output_dir", help="an empty folder, or a new one")
    parser.add_argument("--config_file", required=True, help="of inference, for letters; a list as MONAI takes it")
    parser.add_argument("--ckpt_path", default="", help="model, where the configuration names none")
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=2, help="runs of one and of two processes")
    parser.add_argument("--kills", type=int, default=2, help="runs that are killed")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    root = Path(options.output_dir).absolute()
    generate_letter_b(root / "data", num_training=1, num_validation=1, num_test=options.cases, num_corrupt=0)
    scans, chance = root / "data" / "imagesTs", random.Random(options.seed)
    found: dict[int, list[dict[str, float]]] = {1: [], 2: []}
    for repeat in range(options.repeats):
        for processes, values in found.items():
            values.append(measure(options, scans, root / f"run_{processes}_{repeat}", processes))
            text = "{processes} process(es): {rate:.2f} cases/s in {seconds:.0f} s, {cpu:.3f} CPU s a case"
            print(text.format(processes=processes, **values[-1]))
    one, two = ({key: statistics.median(run[key] for run in runs) for key in runs[0]} for runs in found.values())
    print(f"two processes have {two['rate'] / one['rate']:.2f} x the throughput of one by the clock,")
    print(f"and {2 * one['cpu'] / two['cpu']:.2f} x by CPU time: what they would have on cores of their own")
    whole = root / "run_1_0"
    print(f"two against one: {differences(whole, root / 'run_2_0') or 'the same'}")
    for number in range(options.kills):
        killed = root / f"killed_{number}"
        done = kill_and_resume(options, scans, killed, chance)
        print(f"killed after {done} cases and resumed: {differences(whole, killed) or 'the same'}")


if __name__ == "__main__":
    main()
