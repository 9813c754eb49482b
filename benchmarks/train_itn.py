# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Trains an ITN alone, harder than the bundle's training does: how the ITNs of the shipped hippocampus model were made.

    python benchmarks/train_itn.py output/itn.pt --dataset_dir data/hippocampus

Data, preprocessing, affine augmentation and network are those of the bundle's configs. What is added: elastic and
intensity augmentation, AdamW with a cosine schedule, and an exponential moving average of the weights, which is what is
written. The file is one that ``python -m atlas_istn merge_itns`` takes. Stopped, it goes on when started again.
"""

from __future__ import annotations

import argparse
import copy
import math
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.losses import DiceCELoss
from monai.metrics import DiceHelper
from monai.utils import set_determinism
from torch import nn
from tqdm import tqdm

from atlas_istn.io.files import write_whole
from atlas_istn.spatial import mixed_precision

CONFIGS = ("bundle/configs/train.yaml", "bundle/configs/data/hippocampus.yaml", "bundle/configs/variants/unet.yaml")
SETTINGS: dict[str, Any] = {
    "itn_members": 1,
    "batch_size": 4,
    "label_sigma": 0.01,  # sharp labels: nothing is registered to them
    "augmentation_ranges": {"translation": 5, "rotation": 0.3, "scale": 0.15},
    "extra_augmentation": [
        {
            "_target_": "RandGridDistortiond",
            "keys": ["image", "label"],
            "num_cells": 4,
            "distort_limit": 0.15,
            "prob": 0.3,
            "mode": "bilinear",
            "padding_mode": "border",
        },
        {"_target_": "RandAdjustContrastd", "keys": "image", "gamma": [0.6, 1.7], "prob": 0.4},
        {"_target_": "RandBiasFieldd", "keys": "image", "coeff_range": [0, 0.2], "prob": 0.2},
        {
            "_target_": "RandGaussianSmoothd",
            "keys": "image",
            **{f"sigma_{axis}": [0.3, 0.9] for axis in "xyz"},
            "prob": 0.2,
        },
    ],
}
WARM_UP = 100  # steps over which the learning rate rises
DECAY = 0.995  # of the moving average, per step
INTERVAL = 6  # epochs from validation to validation


def _schedule(steps: int) -> Any:
    return lambda step: min(1.0, (step + 1) / WARM_UP) * (0.5 + 0.5 * math.cos(math.pi * min(1.0, step / steps)))


def _follow(average: nn.Module, network: nn.Module, step: int) -> None:
    """Moves the average towards the weights; at first faster, or the random start would stay in it."""
    decay = min(DECAY, (1 + step) / (10 + step))
    with torch.no_grad():
        for mean, weight in zip(average.parameters(), network.parameters(), strict=True):
            mean.lerp_(weight, 1.0 - decay)


def _validate(network: nn.Module, dataset: Any) -> list[float]:
    """Mean Dice of each label over the validation cases."""
    network.eval()
    scores = []
    with torch.no_grad(), mixed_precision(torch.device("cpu"), True):
        for case in dataset:
            label = torch.as_tensor(case["label"])[None]
            prediction = network(torch.as_tensor(case["image"])[None]).float()
            helper = DiceHelper(include_background=False, apply_argmax=True, get_not_nans=False)
            scores.append(torch.as_tensor(helper(prediction, label.argmax(dim=1, keepdim=True))))
    return [round(float(score), 4) for score in torch.stack(scores).mean(dim=0).flatten()]


def _save(content: dict[str, Any], path: Path) -> None:
    write_whole(path, lambda part: torch.save(content, part))


def main() -> None:
    """Train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="the model file to write")
    parser.add_argument("--dataset_dir", default="data/hippocampus")
    parser.add_argument("--init", type=Path, help="a file of this script, whose weights are the start")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--learning_rate", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    set_determinism(arguments.seed)
    config = ConfigParser()
    config.read_config(list(CONFIGS))
    config.update({"dataset_dir": arguments.dataset_dir, "device": "cpu", "seed": arguments.seed, **SETTINGS})
    loader, network = config.get_parsed_content("train#dataloader"), config.get_parsed_content("network")
    validation = config.get_parsed_content("validate#dataset")
    itn, steps = network.itn, arguments.epochs * len(loader)
    if arguments.init:
        network.load_state_dict(torch.load(arguments.init, weights_only=True), strict=False)
    average = copy.deepcopy(itn)
    optimiser = torch.optim.AdamW(itn.parameters(), arguments.learning_rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, _schedule(steps))
    criterion = DiceCELoss(softmax=True, include_background=False)
    parts = {"itn": itn, "average": average, "optimiser": optimiser, "schedule": schedule}
    checkpoint, start = arguments.output.with_suffix(".checkpoint"), 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        start = state.pop("epoch")
        for name, part in parts.items():
            part.load_state_dict(state[name])

    for epoch in range(start, arguments.epochs):
        itn.train()
        for number, batch in enumerate(tqdm(loader, desc=f"epoch {epoch + 1} of {arguments.epochs}")):
            with mixed_precision(torch.device("cpu"), True):
                logits = itn(torch.as_tensor(batch["image"]).contiguous(memory_format=torch.channels_last_3d))
            loss = criterion(logits.float(), torch.as_tensor(batch["label"]))
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(itn.parameters(), 12.0)
            optimiser.step()
            schedule.step()
            _follow(average, itn, epoch * len(loader) + number + 1)
        if (epoch + 1) % INTERVAL == 0 or epoch + 1 == arguments.epochs:
            tqdm.write(f"epoch {epoch + 1}: validation Dice {_validate(average, validation)}")
            _save({f"itn.{name}": value for name, value in average.state_dict().items()}, arguments.output)
            _save({"epoch": epoch + 1, **{name: part.state_dict() for name, part in parts.items()}}, checkpoint)


if __name__ == "__main__":
    main()
