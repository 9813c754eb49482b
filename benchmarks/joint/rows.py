# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""The rows of the ablation: each is the training of the config with one change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["ROWS", "Row"]

VARIANTS = "bundle/configs/variants"
_POLYNOMIAL = (
    "{'_target_': 'torch.optim.lr_scheduler.PolynomialLR', 'optimizer': '@optimizer', "
    "'total_iters': '@max_epochs', 'power': 0.9}"
)
_EXPONENTIAL = (  # down to 1 / 64
    "{'_target_': 'torch.optim.lr_scheduler.ExponentialLR', 'optimizer': '@optimizer', "
    "'gamma': '$0.5 ** (6 / @max_epochs)'}"
)
_DEEP = {"itn_member#deep_supervision": "true", "itn_member#deep_supr_num": 2, "supervision": [4, 2, 1]}


@dataclass(frozen=True)
class Row:
    """A training.

    Attributes:
        settings: over the config.
        configs: behind that of the data.
        epochs: share of those of all rows.
        before: a training whose ITN this one begins with, and leaves as it is.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    configs: tuple[str, ...] = ()
    epochs: float = 1.0
    before: Row | None = None


ROWS: dict[str, Row] = {
    "as it is": Row(),
    "weights of the last step": Row({"weight_average": 0}),
    "polynomial schedule": Row({"lr_scheduler": _POLYNOMIAL}),
    "exponential schedule": Row({"lr_scheduler": _EXPONENTIAL}),
    "deep supervision": Row(_DEEP),
    "stronger augmentation": Row(configs=("benchmarks/joint/stronger_augmentation.yaml",)),
    "degraded images": Row(configs=(f"{VARIANTS}/degraded_images.yaml",)),
    "λ 0.5": Row({"loss_weights#lambda": 0.5}),
    "λ 0.1": Row({"loss_weights#lambda": 0.1}),
    "one λ from the start": Row({"loss_stiff#lambda": "null"}),
    "one pass of the STN": Row({"network_def#stn_passes": 1}),
    "one head of the STN": Row({"stn#coarse_heads": "false"}),
    "the STN's features normalised in groups": Row({"stn#norm": "['group', {'num_groups': 4}]"}),
    "refined atlas": Row({"train#atlas#inferer": "@train#atlas_inferer"}),
    "no gradient into the ITN": Row({"network_def#_target_": "benchmarks.joint.parts.DetachedISTN"}),
    # About the same time as the joint training, half of it for either.
    "separately": Row(
        configs=("benchmarks/joint/given_itn.yaml",),
        before=Row(configs=(f"{VARIANTS}/unet.yaml",), epochs=0.7),
    ),
}
"""Title → training."""
