# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""The rows of the ablation: each is the training of the config with one change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["ROWS"]

_POLYNOMIAL = (
    "{'_target_': 'torch.optim.lr_scheduler.PolynomialLR', 'optimizer': '@optimizer', "
    "'total_iters': '@max_epochs', 'power': 0.9}"
)
_COSINE = (
    "{'_target_': 'torch.optim.lr_scheduler.CosineAnnealingLR', 'optimizer': '@optimizer', 'T_max': '@max_epochs'}"
)


def _strength(value: float) -> Mapping[str, Any]:
    return {"loss_weights": f"{{'omega': 1.0, 'lambda': {value}, 'fade_in_epoch': 0, 'fade_in_width': 25.0}}"}


ROWS: dict[str, Mapping[str, Any]] = {
    "as it is": {},
    "averaged weights": {"weight_average": 0.995},
    "polynomial schedule": {"lr_scheduler": _POLYNOMIAL},
    "cosine schedule": {"lr_scheduler": _COSINE},
    "λ 0.1": _strength(0.1),
    "λ 0.02": _strength(0.02),
    "two passes": {"network_def#stn_passes": 2},
    "heads at each scale": {"stn#coarse_heads": "true"},
    "heads at each scale and two passes": {"stn#coarse_heads": "true", "network_def#stn_passes": 2},
    "refined atlas": {"train#atlas#inferer": "@train#atlas_inferer"},
    "no gradient into the ITN": {"network_def#_target_": "benchmarks.joint.detached.DetachedISTN"},
}
"""Title → settings over the config."""
