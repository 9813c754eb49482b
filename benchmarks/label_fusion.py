# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
r"""Label fusion beside that of ANTs on the same warps, and how time and memory grow.

    python benchmarks/label_fusion.py agree DATA WORK --peers peers/bin/python
    python benchmarks/label_fusion.py grow --fusion STAPLE
    python benchmarks/label_fusion.py compare bundle/configs/inference.yaml DATA.yaml bundle/configs/multi_atlas.yaml \
        --dataset_dir DATA

`agree` warps the first atlases of the training list onto the first cases of the validation list, once, and fuses them;
`label_fusion_peers.py` says what the other environment needs. `compare` fuses the warps of a configuration in every
way, on its grid. All run on one thread; seconds are those of the CPU.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from monai.bundle import ConfigParser
from scipy.ndimage import binary_dilation
from tqdm import tqdm

from atlas_istn.fusion.atlases import WarpedAtlases
from atlas_istn.fusion.base import Fused, LabelFusion
from atlas_istn.fusion.joint import JointLabelFusion
from atlas_istn.fusion.staple import Staple
from atlas_istn.fusion.vote import LocallyWeightedVote, PluralityVote
from atlas_istn.inferers.registered import Registered

__all__ = ["agree", "compare", "fuse_by_ants", "grow", "main", "warp_by_greedy", "warp_cases"]

_PEERS = Path(__file__).with_name("label_fusion_peers.py")
_FUSIONS: dict[str, LabelFusion] = {
    "vote": PluralityVote(),
    "locally weighted": LocallyWeightedVote(),
    "STAPLE": Staple(),
    "JLF, search 0": JointLabelFusion(search_radius=0),
    "JLF, search 1": JointLabelFusion(search_radius=1),
    "JLF, search 2": JointLabelFusion(search_radius=2),
}


def agree(dataset: Path, work: Path, peers: str, atlases: int, cases: int) -> None:
    """Print Dice with the truth, Dice between ours and ANTs', and both times, case by case and on the whole."""
    lists = json.loads((dataset / "dataset.json").read_text())
    pairs = [f"{dataset / row['image']}:{dataset / row['label']}" for row in lists["training"][:atlases]]
    rows: dict[str, list[list[float]]] = defaultdict(list)
    for row in lists["validation"][:cases]:
        case = work / f"{Path(row['image']).name.split('.')[0]}.npz"
        data, warped = warp_by_greedy(peers, dataset / row["image"], pairs, case)
        truth = np.asarray(nib.load(dataset / row["label"]).dataobj)
        mask = torch.from_numpy(data["mask"])
        values = np.unique(truth)[1:]
        for name, fusion in _FUSIONS.items():
            fused, seconds = _timed(fusion, warped)
            rows[name].append([*_dice(fused.labels.numpy(), truth, values), seconds])
        for search in (0, 1):
            for squares in (True, False):
                more = () if squares else ("--correlation",)
                theirs, theirs_seconds = fuse_by_ants(peers, case, "--search", str(search), *more)
                fusion = JointLabelFusion(search_radius=search, squares=squares)
                ours, seconds = _timed(fusion, warped, mask)
                few, few_seconds = _timed(fusion, warped)
                name = f"search {search}, {'squares' if squares else 'correlation'}"
                rows[f"ANTs, {name}"].append([*_dice(theirs, truth, values), theirs_seconds])
                rows[f"between, {name}"].append([*_dice(ours.labels.numpy(), theirs, values), theirs_seconds / seconds])
                rows[f"between where atlases disagree, {name}"].append(
                    [*_dice(few.labels.numpy(), theirs, values), theirs_seconds / few_seconds]
                )
        rows["voxels of the mask, and where atlases disagree"].append(
            [float(mask.sum()), float(len(few.voxels)), float(data["seconds"])]
        )
        sys.stderr.write(f"{case.stem}\n")
    print(f"{'':48}mean of {cases}: Dice per label, CPU-s or ratio    worst Dice per label, least ratio or seconds")
    for name, figures in rows.items():
        mean, least = np.mean(figures, axis=0), np.min(figures, axis=0)
        print(f"{name:56}" + "".join(f"{v:9.3f}" for v in mean) + "    " + "".join(f"{v:9.3f}" for v in least))


def warp_by_greedy(
    peers: str, image: Path, atlases: Sequence[str], case: Path
) -> tuple[dict[str, np.ndarray], WarpedAtlases]:
    """Warp atlases onto an image, unless a file has them already.

    Args:
        peers: Python of the environment with ANTs and greedy.
        image: target.
        atlases: each as ``IMAGE:LABEL``.
        case: the file; it also gets the mask in which ANTs fuses, all labels and 2 voxels about them.
    """
    if not case.exists():
        _run([peers, str(_PEERS), "warp", str(image), "--output", str(case), "--atlases", *atlases])
    data = dict(np.load(case))
    everywhere = (data["labels"] > 0).any(axis=0)
    data["mask"] = binary_dilation(everywhere, np.ones([3] * everywhere.ndim), iterations=2)
    np.savez_compressed(case, **data)
    labels, images, target = (torch.from_numpy(data[key]) for key in ("labels", "images", "target"))
    return data, WarpedAtlases(labels, images[:, None], target[None])


def fuse_by_ants(peers: str, case: Path, *options: str) -> tuple[np.ndarray, float]:
    """Fuse what `warp_by_greedy` has written; return labels and CPU seconds."""
    answer = _run([peers, str(_PEERS), "fuse", str(case), *options])
    return np.load(case.with_suffix(".ants.npy")), json.loads(answer)["seconds"]


def grow(fusion: str) -> None:
    """Print CPU seconds and working memory of a fusion, for sizes and atlases; each in its own process."""
    print(f"{'size':>6}{'atlases':>9}{'voxels':>9}{'CPU-s':>9}{'MB input':>10}{'MB more':>9}")
    for size in (32, 64, 96):
        for atlases in (5, 10, 20):
            print(_run([sys.executable, __file__, "once", str(size), str(atlases), fusion]).rstrip(), flush=True)


def once(size: int, atlases: int, fusion: str) -> None:
    """Fuse random atlases whose surfaces differ, and print the row of the table."""
    torch.manual_seed(0)
    pool = torch.nn.functional.avg_pool3d
    target = pool(torch.randn(1, size, size, size), 3, 1, 1)
    labels, images = [], []
    place = torch.stack(torch.meshgrid(*[torch.linspace(-1, 1, size)] * 3, indexing="ij"))
    for _ in range(atlases):
        radius = (place - 0.08 * torch.randn(3, 1, 1, 1)).norm(dim=0)
        labels.append((radius < 0.7).to(torch.uint8) + (radius < 0.4))
        images.append(target + 0.2 * pool(torch.randn(1, size, size, size), 3, 1, 1))
    warped = WarpedAtlases(torch.stack(labels), torch.stack(images), target)
    del labels, images
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    fused, seconds = _timed(_FUSIONS[fusion], warped)
    more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before
    given = (warped.labels.nbytes + 4 * (atlases + 1) * size**3) / 2**20
    print(f"{size:5}³{atlases:9}{len(fused.voxels):9}{seconds:9.2f}{given:10.1f}{more:9.1f}")


def compare(files: list[str], **settings: object) -> None:
    """Print Dice, label by label and on the whole, of every fusion of the same warps."""
    parser = ConfigParser()
    parser.read_config(files)
    parser.update({**settings, "device": "$torch.device('cpu')"})
    cases = parser.get_parsed_content("cases")
    values = np.arange(1, parser.get_parsed_content("num_classes"))
    rows: dict[str, list[list[float]]] = defaultdict(list)
    seconds = 0.0
    for registered, truth, used in warp_cases(parser, cases):
        seconds += used
        for name, fusion in _FUSIONS.items():
            fused, used = _timed(fusion, registered.atlases)
            rows[name].append([*_dice(fused.labels.numpy(), truth.numpy(), values), used])
    atlases = len(parser.get_parsed_content("network").labels)
    print(f"{len(cases)} cases, {atlases} atlases; registration {seconds / len(cases):.2f} CPU-s a case")
    means = {name: np.nanmean(figures, axis=0) for name, figures in rows.items()}
    vote = means["vote"][:-1]
    print(f"{'':18}{'mean Dice':>10}{'least label':>12}{'labels ≥ vote':>15}{'CPU-s':>8}")
    for name, mean in means.items():
        better = f"{(mean[:-1] >= vote).sum()} of {len(vote)}"
        print(f"{name:18}{np.nanmean(mean[:-1]):10.3f}{np.nanmin(mean[:-1]):12.3f}{better:>15}{mean[-1]:8.2f}")


def warp_cases(
    parser: ConfigParser, cases: Sequence[Mapping[str, str]]
) -> Iterator[tuple[Registered, torch.Tensor, float]]:
    """Warp the atlases of a configuration onto each case, with its true class indices ``[*shape]`` and CPU seconds."""
    parser.get_parsed_content("loader").load()
    atlases, inferer, prepare = (
        parser.get_parsed_content(name) for name in ("network", "inferer", "atlas_preprocessing")
    )
    for case in tqdm(cases, desc="registration"):
        data = prepare({key: case[key] for key in ("image", "label")})
        image, truth = (torch.as_tensor(data[key]).as_subclass(torch.Tensor) for key in ("image", "label"))
        begin = time.process_time()
        with torch.no_grad():
            registered = inferer.warp(image[None].float(), atlases)
        yield registered, truth[0], time.process_time() - begin


def _timed(fusion: LabelFusion, atlases: WarpedAtlases, mask: torch.Tensor | None = None) -> tuple[Fused, float]:
    begin = time.process_time()
    fused = fusion(atlases, mask)
    return fused, time.process_time() - begin


def _dice(first: np.ndarray, second: np.ndarray, values: np.ndarray) -> list[float]:
    both = [((first == value), (second == value)) for value in values]
    return [2 * float((a & b).sum()) / float(a.sum() + b.sum()) if (a | b).any() else np.nan for a, b in both]


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[:3])} failed:\n{done.stderr[-2000:]}")
    return done.stdout.splitlines()[-1] if done.stdout else ""


def main() -> None:
    """Print the table that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    agreeing = commands.add_parser("agree")
    agreeing.add_argument("dataset", type=Path)
    agreeing.add_argument("work", type=Path)
    agreeing.add_argument("--peers", default=sys.executable, help="Python of the environment with ANTs and greedy")
    agreeing.add_argument("--atlases", type=int, default=10)
    agreeing.add_argument("--cases", type=int, default=10)
    growing = commands.add_parser("grow")
    growing.add_argument("--fusion", choices=_FUSIONS, default="JLF, search 1")
    comparing = commands.add_parser("compare")
    comparing.add_argument("configs", nargs="+")
    comparing.add_argument("--dataset_dir", required=True)
    comparing.add_argument("--list", default="test")
    comparing.add_argument("--data_list_file", default="")
    single = commands.add_parser("once")
    for name in ("size", "atlases"):
        single.add_argument(name, type=int)
    single.add_argument("fusion", choices=_FUSIONS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.command == "agree":
        arguments.work.mkdir(parents=True, exist_ok=True)
        agree(arguments.dataset, arguments.work, arguments.peers, arguments.atlases, arguments.cases)
    elif arguments.command == "compare":
        lists = {"dataset_dir": arguments.dataset_dir, "test_list": arguments.list}
        finding = {"_target_": "atlas_istn.io.cases.find_cases", "with_labels": True, "list_name": "@test_list"}
        finding |= {"dataset_dir": "@dataset_dir", "data_list_file": "@data_list_file"}
        compare(arguments.configs, **lists, data_list_file=arguments.data_list_file or None, cases=finding)
    elif arguments.command == "grow":
        grow(arguments.fusion)
    else:
        once(arguments.size, arguments.atlases, arguments.fusion)


if __name__ == "__main__":
    main()
