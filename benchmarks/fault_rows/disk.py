# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Disks, permissions, memory, devices and runs at the same time."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch

from atlas_istn.io.locks import hold_folder
from atlas_istn.workflow.cases import CaseDataset

from .row import Row, Work
from .runs import ROOT, command, evaluate, infer, labelled, model_in, save, scan, train

__all__ = ["rows"]

KIND = "disk, permissions, memory, concurrency"
GOOD = ("out/a/a_seg.nii.gz", "out/summary.csv")


def _scans(folder: Path, *names: str) -> None:
    for name in names:
        save(folder / "scans" / f"{name}.nii.gz", scan())


def _output_is_a_file(run: Callable[[Path], object], folder: Path) -> Work:
    _scans(folder, "a")
    labelled(folder / "data")
    (folder / "out").write_text("text")
    return lambda: run(folder)


def _mounted(options: str, run: Callable[[Path], object], folder: Path) -> Work:
    """A file system of its own as output."""
    _scans(folder, "a", "b", "c", "d")
    labelled(folder / "data")
    (folder / "out").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder / "out")], check=True)
    return lambda: run(folder)


def _no_large_files(run: Callable[[Path], object], folder: Path) -> Work:
    _scans(folder, "a")
    labelled(folder / "data")
    model_in(folder)

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
        run(folder)

    return work


def _vanishing(run: Callable[[Path], object], place: str, folder: Path) -> Work:
    """What is gone when the first case has been read."""
    _scans(folder, "a", "b")
    labelled(folder / "data")
    read = CaseDataset.__getitem__

    def work() -> None:
        def once(dataset: CaseDataset, index: int) -> object:
            (folder / place).unlink(missing_ok=True)
            return read(dataset, index)

        CaseDataset.__getitem__ = once  # type: ignore[method-assign, assignment]
        run(folder)

    return work


def _unreadable(folder: Path) -> Work:
    _scans(folder, "a")
    (folder / "scans" / "b.nii.gz").symlink_to("/proc/self/mem")  # opens, and gives errors when it is read
    return lambda: infer(folder)


def _no_memory(folder: Path) -> Work:
    _scans(folder, "a")
    save(folder / "scans" / "b.nii.gz", np.random.default_rng(0).integers(0, 99, (500, 500, 400)).astype(np.uint8))

    def work() -> None:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (used + 500 * 2**20, used + 500 * 2**20))
        infer(folder)

    return work


def _held(folder: Path) -> Work:
    labelled(folder / "data")
    hold_folder(folder / "out")  # of this process, which the forked one is not
    return lambda: train(folder)


def _earlier_training(folder: Path) -> Work:
    labelled(folder / "data")
    (folder / "out" / "models").mkdir(parents=True)
    (folder / "out" / "models" / "model.pt").write_bytes(b"precious")
    return lambda: train(folder)


def _other_model(change: Callable[[bytes], bytes], folder: Path) -> Work:
    _scans(folder, "a")
    (folder / "model.pt").write_bytes(change(model_in(folder).read_bytes()))
    return lambda: infer(folder, ckpt_path=str(folder / "model.pt"))


def _flipped(content: bytes) -> bytes:
    place = len(content) // 2
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def _with_results(*arguments: str) -> Callable[[Path], Work]:
    """A command on the results of an inference, which runs before; OUT, DATA, FILE and MODEL stand for places."""

    def prepare(folder: Path) -> Work:
        results = folder.parent / "results"
        if not results.exists():
            labelled(results / "data")
            child = os.fork()
            if not child:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
                infer(results, results / "data", write_transforms=True)
                os._exit(0)
            os.waitpid(child, 0)
        shutil.copytree(results, folder, dirs_exist_ok=True)
        (folder / "file").write_text("text")
        model_in(folder)
        places = {"OUT": folder / "out", "DATA": folder / "data", "FILE": folder / "file", "MODEL": model_in(folder)}

        def place(text: str) -> str:
            for name, path in places.items():
                text = text.replace(name, str(path))
            return text

        def work() -> None:
            os.chdir(ROOT)
            command(*map(place, arguments))

        return work

    return prepare


COMMANDS: dict[str, tuple[tuple[str, ...], str]] = {
    "report into a file": (("report", "OUT", "--path", "FILE/report.html"), "file"),
    "report of nothing": (("report", "DATA"), "Run inference"),
    "report without its images": (("report", "OUT", "--dataset_dir", "OUT/nowhere"), "nowhere"),
    "figure into a file": (("figure", "DATA", "OUT", "--path", "FILE/figure.png"), "file"),
    "figure of nothing": (("figure", "DATA", "DATA/labels"), "labels"),
    "curves of nothing": (("curves", "DATA"), "data"),
    "evolution of nothing": (("atlas_evolution", "DATA"), "data"),
    "propagation into a file": (("propagate", "OUT", "OUT/atlas/atlas_labelmap.nii.gz", "--to", "FILE/x"), "file"),
    "propagation of nothing": (("propagate", "OUT", "OUT/nowhere.nii.gz"), "nowhere"),
    "surfaces into a file": (("mesh", "OUT", "--to", "FILE/x"), "file"),
    "surfaces of nothing": (("mesh", "DATA"), "data"),
    "a cohort of nothing": (("population", "DATA"), "data"),
    "motion of nothing": (("motion", "DATA"), "data"),
    "letters into a file": (("letter_b", "FILE/x", "--num_training", "1", "--size", "32"), "file"),
    "degraded images into a file": (("degrade", "DATA", "FILE/x", "noise", "1"), "file"),
    "degraded images of nothing": (("degrade", "OUT/nowhere", "OUT/x", "noise", "1"), "nowhere"),
    "a comparison of nothing": (("compare", "DATA", "OUT", "--output_dir", "OUT/x"), "data"),
    "a plan of nothing": (("plan", "OUT/nowhere"), "nowhere"),
    "topology of text": (("topology", "FILE"), "file"),
    "topology of nothing": (("topology", "OUT/nowhere.pt"), "nowhere"),
    "a pack of nothing": (("pack", "DATA", "OUT/x.zip"), "data"),
    "a pack into a file": (("pack", "bundle", "FILE/x.zip"), "file"),
    "ONNX of nothing": (("onnx", "OUT/x.onnx", "--ckpt_path", "OUT/nowhere.pt"), "nowhere"),
}


def rows() -> Iterator[Row]:
    """All faults of this kind."""
    runs: dict[str, Callable[[Path], object]] = {"inference": infer, "evaluation": evaluate, "training": train}
    for name, run in runs.items():
        prepare = partial(_output_is_a_file, run)
        yield Row(KIND, f"{name}: output is a file", prepare, 1, ("out", "cannot be written"))
        yield Row(KIND, f"{name}: no file may be large", partial(_no_large_files, run), 1, ("File too large",))
    if os.geteuid() == 0:
        for name, run in runs.items():
            yield Row(KIND, f"{name}: output is read-only", partial(_mounted, "ro", run), 1, ("read-only",))
        yield Row(KIND, "inference: full disk", partial(_mounted, "size=600k", infer), 1, ("no space left",), GOOD[:1])
        yield Row(KIND, "training: full disk", partial(_mounted, "size=100k", train), 1, ("no space left",))
    vanished = partial(_vanishing, infer, "scans/b.nii.gz")
    yield Row(
        KIND, "inference: an image vanishes", vanished, 1, ("1 of 2 cases failed", "b.nii.gz: no such file"), GOOD
    )
    vanished = partial(_vanishing, evaluate, "data/labels/s3.nii.gz")
    kept = ("out/s2/s2_seg.nii.gz", "out/metrics.csv")
    yield Row(
        KIND, "evaluation: a label vanishes", vanished, 1, ("1 of 2 cases failed", "s3.nii.gz: no such file"), kept
    )
    yield Row(KIND, "an image cannot be read", _unreadable, 1, ("1 of 2 cases failed", "b.nii.gz"), GOOD)
    yield Row(KIND, "memory is short", _no_memory, 1, ("1 of 2 cases failed", "b: out of memory"), GOOD)
    yield Row(KIND, "two trainings in a folder", _held, 1, ("another run is writing",))
    yield Row(KIND, "an earlier training", _earlier_training, 1, ("would be lost",), ("out/models/model.pt",))
    for name, change in {"cut off": lambda content: content[:-900], "a bit flipped": _flipped}.items():
        yield Row(KIND, f"model: {name}", partial(_other_model, change), 1, ("model.pt",))
    yield Row(KIND, "model: text", partial(_other_model, lambda content: b"text"), 1, ("model.pt",))
    if not torch.cuda.is_available():

        def no_gpu(folder: Path) -> Work:
            _scans(folder, "a")
            return lambda: infer(folder, device="cuda:0")

        yield Row(KIND, "no GPU", no_gpu, 1, ("device: expected a device that this machine has",))
    for name, (arguments, reason) in COMMANDS.items():
        yield Row(KIND, f"command: {name}", _with_results(*arguments), 1, ("error: ", reason))
