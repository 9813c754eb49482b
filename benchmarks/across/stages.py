# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""What is done for one rotation, stage by stage; each leaves what is done already as it is."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from runs import CONFIGS, ROOT, Runner

from atlas_istn.io.outputs import write_json

from .lists import DIRECTIONS, Direction, size_of, write_rotation, write_true_crop
from .patches import measure_patches
from .singles import draw_pairs, measure_network, measure_warped

__all__ = ["FULL_STEPS", "FUSIONS", "PEERS", "STAGES", "Rotation"]

FULL_STEPS = 1500
"""Steps of a registration network for which the other trainings have their own full length."""
PAIRS, BATCH = 200, 2  # of the registration networks, in an epoch and a step: those of their configuration
PAIR = [f"{CONFIGS}/pair/{name}.yaml" for name in ("train", "variants/two_way_consistent", "data/cardiac_mr")]
ATLASES = [f"{CONFIGS}/{name}.yaml" for name in ("data/cardiac_mr", "multi_atlas")]
SIMILARITY = f"{CONFIGS}/similarity.yaml"
CARDIAC = f"{CONFIGS}/data/cardiac_mr.yaml"
TWO_WAY, ONE_WAY = (f"{CONFIGS}/pair/variants/{name}.yaml" for name in ("two_way", "one_way"))


@dataclass(frozen=True)
class Network:
    """A registration network.

    Attributes:
        configs: behind those of the consistent one.
        settings: overrides.
        direction: the only one that it learns; None for both, of `DIRECTIONS` the first forwards.
        first_only: an ablation, on the first rotation alone.
    """

    configs: tuple[str, ...] = ()
    settings: tuple[tuple[str, Any], ...] = ()
    direction: Direction | None = None
    first_only: bool = False


NETWORKS = {
    "consistent": Network(),
    "velocity": Network((TWO_WAY,), (("transformation#kind", "velocity"),)),
    "one_way": Network((ONE_WAY,), direction=DIRECTIONS[0]),
    "one_way_back": Network((ONE_WAY,), direction=DIRECTIONS[1], first_only=True),
    "two_way": Network((TWO_WAY,), first_only=True),
    "no_itn": Network(settings=(("itn", "null"), ("pair_loss_weights#explicit", 0.0)), first_only=True),
}
_PATCHES = "'patch_radius': [2, 2, 1]"
FUSIONS: dict[str, dict[str, Any]] = {
    "similarity": {},
    "similarity_5": {"similarity_most": 5},
    "non_local": {
        "fusion": "{'_target_': 'atlas_istn.fusion.non_local.NonLocalVote', "
        + _PATCHES
        + ", 'search_radius': [2, 2, 1]}"
    },
    "vote": {"fusion": "{'_target_': 'atlas_istn.fusion.vote.PluralityVote'}"},
    "joint": {
        "fusion": "{'_target_': 'atlas_istn.fusion.joint.JointLabelFusion', "
        + _PATCHES
        + ", 'search_radius': [1, 1, 1]}"
    },
}
"""Fusion → its settings. Radii in voxels of 1.5 × 1.5 × 6 mm."""
PEERS = ("greedy_affine", "greedy", "syn", "demons")


@dataclass(frozen=True)
class Rotation:
    """One rotation of the split, with a folder of its own.

    Attributes:
        number: from 0.
        dataset_dir: as it was given.
        output_dir: of all rotations.
        steps: of a registration network; other trainings are as much shorter or longer than their own full length.
        peers: Python of the environment of the peers.
        peer_pairs: of each direction; 0 for all.
        seed: of the split, the draws and the trainings.
        quick: a smoke test with few patients.
    """

    number: int
    dataset_dir: Path
    output_dir: Path
    steps: int = FULL_STEPS
    peers: str = "peers/bin/python"
    peer_pairs: int = 15
    seed: int = 0
    quick: bool = False

    @property
    def folder(self) -> Path:
        """Of this rotation."""
        return self.output_dir / f"rotation_{self.number}"

    @property
    def data(self) -> Path:
        """Its lists."""
        return self.folder / "data"

    @cached_property
    def runner(self) -> Runner:
        """Runs its commands."""
        return Runner(self.folder)

    @property
    def networks(self) -> dict[str, Network]:
        """The registration networks of this rotation."""
        return {name: network for name, network in NETWORKS.items() if not (self.number and network.first_only)}

    def _length(self, full: int) -> int:
        return max(1, round(full * self.steps / FULL_STEPS))

    def make_lists(self) -> None:
        """Write the lists of the rotation, unless they are there: the same seed always makes the same ones."""
        if not (self.data / "dataset.json").exists():
            write_rotation(self.dataset_dir, self.data, self.number, self.seed, self.quick)

    def train_networks(self) -> None:
        """Train the registration networks."""
        for name, network in self.networks.items():
            direction = network.direction or DIRECTIONS[0]
            patients = size_of(self.data, direction.target)
            pairs = min(PAIRS, BATCH * self.steps, patients * (patients - 1))
            few = size_of(self.data, f"{direction.target}_validation", direction.atlas)
            settings: dict[str, Any] = {
                "dataset_dir": self.data,
                "output_dir": self.folder / "networks" / name,
                "train_list": direction.target,
                "moving_list": direction.atlas,
                "random_pairs": pairs,
                "val_list": f"{direction.target}_validation",
                "val_moving_list": direction.atlas,
                "val_random_pairs": min(20, few, self.steps),
                "max_epochs": -(-self.steps * BATCH // pairs),
                "amp": "true",
                "seed": self.seed,
                "resume": "true",
                **dict(network.settings),
            }
            self.runner.bundle(f"train_{name}", "training", [*PAIR, *network.configs], **settings)

    def train_rivals(self) -> None:
        """Train and score what sees bSSFP alone, U-Net and Atlas-ISTN; and U-Nets of the LGE of few or all patients."""
        epochs = yaml.safe_load((ROOT / CARDIAC).read_text(encoding="utf-8"))["max_epochs"]
        many, few = size_of(self.data, "bssfp"), size_of(self.data, "lge_validation")
        unet = f"{CONFIGS}/variants/unet.yaml"
        rivals = {
            "unet": ([unet], "bssfp", "bssfp_validation", epochs),
            "unet_lge": ([unet], "lge_validation", "lge_validation", epochs * many // few),
            "unet_lge_all": ([unet], "lge", "lge_validation", epochs),
            "atlas_istn": ([], "bssfp", "bssfp_validation", epochs),
        }
        for name, (configs, training, validation, length) in rivals.items():
            work, length = self.folder / "rivals" / name, self._length(length)
            settings: dict[str, Any] = {
                "dataset_dir": self.data,
                "output_dir": work,
                "bundle_root": work,
                "train_list": training,
                "val_list": validation,
                "max_epochs": length,
                "val_interval": max(1, length // 15),
                "seed": self.seed,
                "resume": "true",
            }
            stack = [f"{CONFIGS}/train.yaml", CARDIAC, *configs]
            self.runner.bundle(f"train_{name}", "training", stack, **settings)
            lists = {"test_list": "lge_test", "output_dir": self.folder / "fused" / f"bssfp_lge_{name}"}
            self.runner.bundle(f"test_{name}", "evaluate", [str(work / "configs" / "evaluate.yaml")], **lists)

    def _registering(self, name: str, direction: Direction) -> dict[str, Any]:
        """Settings of a multi-atlas segmentation that a network registers for."""
        pair = yaml.safe_load((ROOT / PAIR[-1]).read_text(encoding="utf-8"))
        return {
            "spatial_size": pair["spatial_size"],
            "spacing": pair["spacing"],
            "dataset_dir": str(self.data),
            "atlas_dir": str(self.data),
            "atlas_list": direction.atlas,
            "atlas_registration": str(self.folder / "networks" / name),
            "atlas_registration_backward": str(direction.backward).lower(),
        }

    def train_similarities(self) -> None:
        """Train a similarity network for each direction, on what the consistent network registers."""
        stack = [f"{CONFIGS}/inference.yaml", *ATLASES, SIMILARITY, f"{CONFIGS}/train_fusion.yaml"]
        for direction in DIRECTIONS:
            settings = {
                **self._registering("consistent", direction),
                "train_list": f"{direction.target}_similarity",
                "val_list": f"{direction.target}_similarity_validation",
                "output_dir": self._similarity(direction),
                "max_epochs": self._length(20),
                "pairs_per_epoch": 8 if self.quick else 100,
                "seed": self.seed,
                "resume": "true",
            }
            self.runner.bundle(f"train_similarity_{direction.name}", "training", stack, **settings)

    def _similarity(self, direction: Direction) -> Path:
        return self.folder / "similarity" / direction.name

    def measure_singles(self) -> None:
        """Register all atlases to all test images, one by one."""
        for name, network in self.networks.items():
            for direction in [network.direction] if network.direction else DIRECTIONS:
                backward = direction.backward and not network.direction
                self._single(name, self.data, direction, backward, f"{direction.name}_{name}")

    def _single(self, name: str, data: Path, direction: Direction, backward: bool, title: str) -> None:
        output = self.folder / "singles" / title
        if not (output / "figures.csv").exists():
            measure_network(self.folder / "networks" / name, data, direction, backward, output)

    def fuse(self) -> None:
        """Fuse the atlases in all ways, by the consistent network; those of the other one by a vote."""
        for direction in DIRECTIONS:
            for name in FUSIONS:
                self._fuse("consistent", direction, name, f"{direction.name}_{name}")
            self._fuse("velocity", direction, "vote", f"{direction.name}_velocity")
        self._fuse_learned_atlas()

    def _fused(self, network: str, direction: Direction, fusion: str) -> tuple[list[str], dict[str, Any]]:
        """Configurations and settings of a fusion."""
        settings = {
            **self._registering(network, direction),
            **FUSIONS[fusion],
            "test_list": f"{direction.target}_test",
            "atlas_cache": str(self.folder / "cache"),
        }
        learned = "fusion" not in FUSIONS[fusion]
        if learned:
            settings["fusion_path"] = str(self._similarity(direction) / "models" / "model.pt")
        return [f"{CONFIGS}/evaluate.yaml", *ATLASES, *([SIMILARITY] if learned else [])], settings

    def _fuse(self, network: str, direction: Direction, fusion: str, title: str, **changed: Any) -> None:
        configs, settings = self._fused(network, direction, fusion)
        settings |= {"output_dir": self.folder / "fused" / title, "write_atlas_maps": "true"}
        self.runner.bundle(f"fuse_{title}", "evaluate", configs, **settings | changed)

    def _fuse_learned_atlas(self) -> None:
        """Register the one atlas that Atlas-ISTN has learned of bSSFP by the consistent network: no ITN is needed."""
        atlas = self.folder / "fused" / f"{DIRECTIONS[0].name}_atlas_istn" / "atlas"
        files = {"image": "atlas_image.nii.gz", "label": "atlas_labelmap.nii.gz"}
        write_json({"learned": [files]}, atlas / "dataset.json")
        learned = {"atlas_dir": atlas, "atlas_list": "learned"}
        self._fuse("consistent", DIRECTIONS[0], "vote", f"{DIRECTIONS[0].name}_learned_atlas", **learned)

    def measure_patches(self) -> None:
        """Compare patches of targets and atlases (Fig. 5)."""
        for direction in DIRECTIONS:
            path = self.folder / "patches" / f"{direction.name}.csv"
            if not path.exists():
                configs, settings = self._fused("consistent", direction, "similarity")
                settings["atlas_registration_backward"] = direction.backward
                measure_patches([str(ROOT / config) for config in configs], settings, path, self.seed)

    def measure_cost(self) -> None:
        """Segment the test images by ten atlases, with nothing that is known before."""
        direction = DIRECTIONS[0]
        configs, settings = self._fused("consistent", direction, "similarity")
        settings |= {"atlas_cache": "", "atlas_list": f"{direction.atlas}_ten", "output_dir": self.folder / "cost"}
        seconds = self.runner.bundle("cost", "segmentation", configs, **settings)
        targets = size_of(self.data, f"{direction.target}_test")
        cost = {"atlases": size_of(self.data, f"{direction.atlas}_ten"), "targets": targets, "seconds": seconds}
        write_json(cost, self.folder / "cost.json")

    def measure_true_crop(self) -> None:
        """Ablation on the first rotation: hearts of atlases and targets in the middle, by their labels."""
        if self.number:
            return
        data = self.folder / "true_crop"
        if not (data / "dataset.json").exists():
            write_true_crop(self.data, data)
        for direction in DIRECTIONS:
            title = f"{direction.name}_true_crop"
            self._single("consistent", data, direction, direction.backward, title)
            there = {"dataset_dir": str(data), "atlas_dir": str(data)}
            self._fuse("consistent", direction, "vote", title, **there)

    def register_peers(self) -> None:
        """Register pairs by greedy, SyN and Demons."""
        script = str(Path(__file__).with_name("peer_registrations.py"))
        for direction in DIRECTIONS:
            folder = self.folder / "peers" / direction.name
            pairs = draw_pairs(self.data, direction, self.peer_pairs, self.seed)
            write_json({"pairs": pairs}, folder / "pairs.json")
            command = [self.peers, script, str(folder / "pairs.json"), str(folder), "--methods", ",".join(PEERS)]
            self.runner.execute(f"peers_{direction.name}", command)
            if not (folder / "metrics.csv").exists():
                measure_warped(pairs, folder)


STAGES = {
    "lists": Rotation.make_lists,
    "networks": Rotation.train_networks,
    "similarity": Rotation.train_similarities,
    "singles": Rotation.measure_singles,
    "rivals": Rotation.train_rivals,
    "fused": Rotation.fuse,
    "patches": Rotation.measure_patches,
    "cost": Rotation.measure_cost,
    "crop": Rotation.measure_true_crop,
    "peers": Rotation.register_peers,
}
"""Name of a stage → what it does, in the order in which they need each other."""
