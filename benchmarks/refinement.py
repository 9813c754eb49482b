# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Seconds, peak memory and final objective of test-time refinement: the paper's recipe taken literally, and ours.

Every recipe runs in a process of its own on the same network, images and number of threads. Without ``--ckpt`` the
network is untrained and the images are random volumes: the command runs anywhere, but only its costs mean anything.

    python benchmarks/refinement.py
    python benchmarks/refinement.py --ckpt output/models/model.pt --config bundle/configs/data/letter_b.yaml \
        --dataset_dir data/letter_b --list validation
"""

from __future__ import annotations

import argparse
import copy
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch
from monai.bundle import ConfigParser
from torch import Tensor

from atlas_istn.inferers.refine import RefinementInferer
from atlas_istn.io.cases import find_cases
from atlas_istn.networks import AtlasISTN, SpatialTransformerNetwork, UNet
from atlas_istn.registration.objective import Objective, Pair
from atlas_istn.spatial import Transform

__all__ = ["main"]

TRAIN_CONFIG = Path(__file__).resolve().parents[1] / "bundle/configs/train.yaml"
RECIPES = ("paper", "weights", "field")


def _refine_literally(image: Tensor, network: AtlasISTN, iterations: int, regularisation: float) -> Transform:
    """The paper's recipe: the ITN in the loop, both directions integrated, the STN's weights moved, no early stop."""
    network = copy.deepcopy(network)
    optimiser = torch.optim.Adam(network.stn.parameters(), lr=1e-3)
    for _ in range(iterations):
        prediction = network.segment(image)
        transform = network.transform(*network.register(prediction))
        target, atlas = prediction.detach(), network.atlas_labels
        terms = Objective([Pair(atlas, target), Pair(atlas, target, weight=0.0, backward=True)])(transform)
        optimiser.zero_grad()
        (terms.misfit + regularisation * terms.penalty).sum().backward()
        optimiser.step()
    with torch.no_grad():
        return network.transform(*network.register(network.segment(image)))


def _recipe(name: str, arguments: argparse.Namespace) -> Callable[[Tensor, AtlasISTN], Transform]:
    iterations, regularisation = arguments.iterations, arguments.regularisation
    if name == "paper":
        return lambda image, network: _refine_literally(image, network, iterations, regularisation)
    # As the bundle runs it: convolutions in bf16, which the paper's float32 recipe does not have.
    inferer = RefinementInferer(mode=name, iterations=iterations, regularisation=regularisation, amp=True)
    return lambda image, network: cast(Transform, inferer.infer(image, network).transform)


def _load(arguments: argparse.Namespace) -> tuple[AtlasISTN, Tensor]:
    """Network and images ``[N, C, *shape]``: from a checkpoint and a data set, or untrained and random."""
    if arguments.ckpt is None:
        return _synthetic(arguments.size, arguments.cases)
    parser = ConfigParser()
    parser.read_config([str(TRAIN_CONFIG), arguments.config])
    parser["device"] = torch.device("cpu")
    network = parser.get_parsed_content("network_def")
    network.load_state_dict(torch.load(arguments.ckpt, map_location="cpu", weights_only=True))
    preprocessing = parser.get_parsed_content("preprocessing")
    cases = find_cases(arguments.dataset_dir, arguments.list, True)[: arguments.cases]
    return network.eval(), torch.stack([torch.as_tensor(preprocessing(case)["image"]) for case in cases])


def _synthetic(size: list[int], cases: int) -> tuple[AtlasISTN, Tensor]:
    torch.manual_seed(0)
    dim = len(size)
    network = AtlasISTN(UNet(dim, 1, 2), SpatialTransformerNetwork(dim, 2), size, 2).eval()
    centred = torch.stack(torch.meshgrid(*[torch.linspace(-1, 1, n) for n in size], indexing="ij"))
    ball = torch.sigmoid(20 * (0.5 - centred.norm(dim=0)))
    network.atlas_labels.copy_(torch.stack([1 - ball, ball]).unsqueeze(0))
    return network, torch.rand(cases, 1, *size)


def _peak_mebibytes() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def _objective(network: AtlasISTN, image: Tensor, transform: Transform, regularisation: float) -> float:
    """L* of eq. (17) with β* = 1 and γ* = 0, in the same way for every recipe."""
    with torch.no_grad():
        terms = Objective([Pair(network.atlas_labels, network.segment(image))])(transform)
    return float((terms.misfit + regularisation * terms.penalty).mean())


def _measure(name: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Means over the cases, one case after another."""
    torch.set_num_threads(arguments.threads)
    network, images = _load(arguments)
    if name != "paper":
        channels_last = torch.channels_last if images.ndim == 4 else torch.channels_last_3d
        network = network.to(memory_format=channels_last)  # type: ignore[call-overload]
    refine = _recipe(name, arguments)
    # The first forward pass loads kernels; what the process holds by then is not the recipe's.
    with torch.no_grad():
        network(images[:1])
    before = _peak_mebibytes()
    seconds, objectives = [], []
    for image in images.split(1):
        start = time.perf_counter()
        transform = refine(image, network)
        seconds.append(time.perf_counter() - start)
        objectives.append(_objective(network, image, transform.detach(), arguments.regularisation))
    return {
        "seconds": sum(seconds) / len(seconds),
        "memory": _peak_mebibytes() - before,
        "objective": sum(objectives) / len(objectives),
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", help="trained model.pt; without it an untrained network and random images")
    parser.add_argument("--config", default=str(TRAIN_CONFIG.parent / "data/letter_b.yaml"), help="data config")
    parser.add_argument("--dataset_dir", default="data/letter_b")
    parser.add_argument("--list", default="validation", help="list of dataset.json")
    parser.add_argument("--cases", type=int, default=5)
    parser.add_argument("--size", type=int, nargs="+", default=[32, 32, 32], help="shape of the random images")
    parser.add_argument("--iterations", type=int, default=50)
    parser.add_argument("--regularisation", type=float, default=0.1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--recipe", choices=RECIPES, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Print the table; with ``--recipe`` (used by this command itself) measure one recipe and print JSON."""
    arguments = _arguments()
    if arguments.recipe:
        print(json.dumps(_measure(arguments.recipe, arguments)))
        return
    print(
        f"{'recipe':10}{'s/case':>10}{'faster':>9}{'MiB':>8}{'memory':>9}{'final loss':>12}{'against':>9}", flush=True
    )
    paper: dict[str, float] = {}
    for name in RECIPES:
        command = [sys.executable, __file__, *sys.argv[1:], "--recipe", name]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        found = json.loads(output.splitlines()[-1])
        paper = paper or found
        print(
            f"{name:10}{found['seconds']:10.3f}{paper['seconds'] / found['seconds']:8.1f}x{found['memory']:8.0f}"
            f"{found['memory'] / max(paper['memory'], 1.0):8.2f}x{found['objective']:12.5f}"
            f"{found['objective'] / paper['objective']:8.3f}x",
            flush=True,
        )


if __name__ == "__main__":
    main()
