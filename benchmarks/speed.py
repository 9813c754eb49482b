# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Time and memory of the refinement loop, of this version beside another checkout, in one run with one thread.

    git worktree add ../old d4c2cc1
    python benchmarks/speed.py --old ../old                                    # synthetic labelmaps, 64³ and 128³
    python benchmarks/speed.py --old ../old --dataset_dir DATA --list test \
        --config bundle/configs/data/hippocampus.yaml --ckpt bundle/models/model.pt

Both checkouts take turns, each in a process of its own. Seconds are CPU time. The synthetic labelmaps fill the grid, so
that nothing is gained by leaving out its empty part. Works from version 0.5.0 on.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]


class _Start(nn.Module):
    """An STN that always proposes the same smooth velocity."""

    def __init__(self, half: int) -> None:
        super().__init__()
        coarse = torch.randn(1, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
        self.velocity = 0.3 * nn.functional.interpolate(coarse, size=[half] * 3, mode="trilinear", align_corners=True)

    def forward(self, labelmaps: Tensor) -> tuple[Tensor, Tensor]:
        return self.velocity.expand(len(labelmaps), -1, -1, -1, -1), torch.zeros(len(labelmaps), 9)


def _dense(size: int, classes: int, seed: int) -> Tensor:
    """A soft labelmap ``[1, classes, size, size, size]`` of blobs that fill most of the grid."""
    scores = torch.randn(1, classes, 6, 6, 6, generator=torch.Generator().manual_seed(seed))
    scores[:, 0] -= 0.5
    large = nn.functional.interpolate(scores, size=[size] * 3, mode="trilinear", align_corners=True)
    return torch.softmax(6 * large, dim=1)


def _synthetic(size: int, classes: int) -> tuple[Any, list[Tensor], Any]:
    """Network, images and inferer; the images are the ITN's prediction already."""
    networks = importlib.import_module("atlas_istn.networks")
    network = networks.AtlasISTN(nn.Identity(), _Start(size // 2), [size] * 3, classes, in_channels=classes).eval()
    network.atlas_labels.copy_(_dense(size, classes, 1))
    inferer = _module("inferers.refine", "refine").RefinementInferer(
        similarity=_module("registration.similarity", "losses").RobustError(), regularisation=0.02, tolerance=-1.0
    )
    return network, [0.7 * _dense(size, classes, 1) + 0.3 * _dense(size, classes, 2)], inferer


def _real(arguments: argparse.Namespace) -> tuple[Any, list[Tensor], Any]:
    parser = ConfigParser()
    configs = Path(arguments.root) / "bundle" / "configs"
    data = configs / Path(arguments.config).relative_to("bundle/configs")
    parser.read_config([str(configs / "inference.yaml"), str(data)])
    parser["device"] = torch.device("cpu")
    network = parser.get_parsed_content("network_def").eval()
    network.load_state_dict(torch.load(arguments.ckpt, map_location="cpu", weights_only=True))
    preprocessing = parser.get_parsed_content("preprocessing")
    find_cases = importlib.import_module("atlas_istn.io.cases").find_cases
    cases = find_cases(arguments.dataset_dir, arguments.list)[: arguments.cases]
    images = [preprocessing({"image": case["image"]})["image"][None] for case in cases]
    return network, images, parser.get_parsed_content("inferer")


def _module(new: str, old: str) -> Any:
    """A module under its present name or under that of version 0.5.0."""
    try:
        return importlib.import_module(f"atlas_istn.{new}")
    except ModuleNotFoundError:
        return importlib.import_module(f"atlas_istn.{old}")


@contextmanager
def _watched(loop: dict[str, float]) -> Iterator[None]:
    """Add up the CPU time and the iterations of the loop, and find its peak of memory."""
    module = _module("inferers.refine", "refine")
    owner, name = (module, "optimise") if hasattr(module, "optimise") else (module.RefinementInferer, "_optimise")
    original: Callable[..., Any] = getattr(owner, name)

    def measured(*values: Any, **options: Any) -> Any:
        before = _reset_peak()
        start = time.process_time()
        fit = original(*values, **options)
        loop["seconds"] += time.process_time() - start
        loop["memory"] = max(loop["memory"], _peak() - before)
        loop["iterations"] += len(fit.curve if hasattr(fit, "curve") else fit.loss_curve)
        loop["objective"] += float(fit.loss.sum())
        return fit

    setattr(owner, name, measured)
    yield
    setattr(owner, name, original)


def _reset_peak() -> float:
    """Let Linux forget the peak of this process; the memory that it holds now, in MiB."""
    Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def _measure(arguments: argparse.Namespace) -> dict[str, float]:
    torch.set_num_threads(1)
    if arguments.ckpt:
        network, images, inferer = _real(arguments)
    else:
        network, images, inferer = _synthetic(arguments.size, arguments.classes)
        inferer.iterations = arguments.iterations
    run = getattr(inferer, "infer", None) or inferer.refine
    run(images[0], network)  # loads kernels
    loop = dict.fromkeys(("seconds", "memory", "iterations", "objective"), 0.0)
    start = time.process_time()
    with _watched(loop):
        for image in images:
            run(image, network)
    return {
        "ms an iteration": 1000 * loop["seconds"] / loop["iterations"],
        "s a case": (time.process_time() - start) / len(images),
        "MiB": loop["memory"],
        "objective": loop["objective"] / len(images),
    }


def _compare(title: str, old: Path, options: list[str], repeats: int) -> None:
    found: dict[str, list[dict[str, float]]] = {"old": [], "new": []}
    for _ in range(repeats):
        for name, root in (("old", old), ("new", ROOT)):
            environment = {**os.environ, "PYTHONPATH": str(root / "custom"), "OMP_NUM_THREADS": "1"}
            command = [sys.executable, __file__, "--worker", "--root", str(root), *options]
            done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
            found[name].append(json.loads(done.stdout.splitlines()[-1]))
    for quantity in found["old"][0]:
        before, after = (statistics.median(row[quantity] for row in found[name]) for name in ("old", "new"))
        print(f"{title:24}{quantity:18}{before:12.5g}{after:12.5g}{before / after:9.2f}", flush=True)


def main() -> None:
    """Print the table; with ``--worker`` (used by this command itself) measure one checkout and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--old", type=Path, help="checkout to compare with")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=4, help="of the synthetic cases")
    parser.add_argument("--ckpt", help="model; without it synthetic labelmaps")
    parser.add_argument("--config", default="bundle/configs/data/hippocampus.yaml")
    parser.add_argument("--dataset_dir", default="data/hippocampus")
    parser.add_argument("--list", default="test")
    parser.add_argument("--cases", type=int, default=5)
    for name in ("--worker", "--root", "--size", "--classes"):
        options: dict[str, Any] = {"action": "store_true"} if name == "--worker" else {"default": ""}
        parser.add_argument(name, help=argparse.SUPPRESS, **options)
    arguments = parser.parse_args()
    if arguments.worker:
        arguments.size, arguments.classes = int(arguments.size or 0), int(arguments.classes or 0)
        print(json.dumps(_measure(arguments)))
        return
    if arguments.old is None:
        parser.error("--old is needed: a checkout to compare with")
    print(f"{'':24}{'':18}{'old':>12}{'new':>12}{'old/new':>9}")
    if arguments.ckpt:
        options_ = ["--ckpt", arguments.ckpt, "--config", arguments.config, "--dataset_dir", arguments.dataset_dir]
        options_ += ["--list", arguments.list, "--cases", str(arguments.cases)]
        _compare(Path(arguments.config).stem, arguments.old, options_, arguments.repeats)
        return
    for size, classes in ((64, 2), (64, 7), (128, 2), (128, 7)):
        options_ = ["--size", str(size), "--classes", str(classes), "--iterations", str(arguments.iterations)]
        _compare(f"{size} voxels, {classes} classes", arguments.old, options_, arguments.repeats)


if __name__ == "__main__":
    main()
