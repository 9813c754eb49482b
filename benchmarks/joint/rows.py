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
_COSINE = (
    "{'_target_': 'torch.optim.lr_scheduler.CosineAnnealingLR', 'optimizer': '@optimizer', 'T_max': '@max_epochs'}"
)
_DEEP = {"itn_member#deep_supervision": "true", "itn_member#deep_supr_num": 2}
_SHARES = [4, 2, 1]  # of a network's heads, from fine to coarse
_EACH = {"itn#each": "true"}


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


def _strength(value: float) -> Row:
    return Row({"loss_weights": f"{{'omega': 1.0, 'lambda': {value}, 'fade_in_epoch': 0, 'fade_in_width': 25.0}}"})


ROWS: dict[str, Row] = {
    "as it is": Row(),
    "averaged weights": Row({"weight_average": 0.995}),
    "polynomial schedule": Row({"lr_scheduler": _POLYNOMIAL}),
    "cosine schedule": Row({"lr_scheduler": _COSINE}),
    "deep supervision": Row({**_DEEP, "supervision": f"$[0] + {_SHARES} * @itn_members"}),
    "one network": Row({"itn_members": 1}),
    "each network by itself": Row({**_EACH, "supervision": "$[0] + [1] * @itn_members"}),
    "stronger augmentation": Row(configs=("benchmarks/joint/stronger_augmentation.yaml",)),
    "degraded images": Row(configs=(f"{VARIANTS}/degraded_images.yaml",)),
    "λ 0.1": _strength(0.1),
    "λ 0.02": _strength(0.02),
    "STN without normalisation": Row({"stn#norm": None}),
    "STN without normalisation and two passes": Row({"stn#norm": None, "network_def#stn_passes": 2}),
    "two passes": Row({"network_def#stn_passes": 2}),
    "heads at each scale": Row({"stn#coarse_heads": "true"}),
    "heads at each scale and two passes": Row({"stn#coarse_heads": "true", "network_def#stn_passes": 2}),
    "refined atlas": Row({"train#atlas#inferer": "@train#atlas_inferer"}),
    "no gradient into the ITN": Row({"network_def#_target_": "benchmarks.joint.parts.DetachedISTN"}),
    # About the same time as the joint training, half of it for either.
    "separately": Row(
        configs=("benchmarks/joint/given_itn.yaml",),
        before=Row(configs=(f"{VARIANTS}/unet.yaml",), epochs=0.7),
    ),
}
"""Title → training."""
