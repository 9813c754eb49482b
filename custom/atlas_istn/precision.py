# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Networks in bf16, on hardware that computes in it."""

from __future__ import annotations

import logging
import platform
from functools import cache

import torch

__all__ = ["computes_bf16", "mixed_precision"]

logger = logging.getLogger(__name__)


def mixed_precision(device: torch.device, wanted: bool) -> torch.autocast:
    """Context in which convolutions run in bf16, if wanted and the hardware computes in it; in float32 otherwise.

    Args:
        device: where the network is.
        wanted: false leaves everything in float32.
    """
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=wanted and computes_bf16(device.type))


@cache
def computes_bf16(device_type: str) -> bool:
    """Whether a kind of device has instructions for bf16.

    Where it has none, PyTorch computes in it all the same: on processors with no more than AVX2, as most desktops and
    laptops have, a convolution takes some 200 times as long as in float32.

    Args:
        device_type: as ``torch.device.type`` has it.
    """
    if device_type == "cuda":
        found = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device_type == "cpu":
        # oneDNN takes AVX-512 for enough, and emulates bf16 where the instructions for it are missing.
        x86 = platform.machine() in ("x86_64", "AMD64")
        found = (
            torch.backends.mkldnn.is_available()
            and torch.ops.mkldnn._is_mkldnn_bf16_supported()
            and (not x86 or torch.cpu._is_avx512_bf16_supported())
        )
    else:
        found = True
    if not found:
        logger.info("the device (%s) has no instructions for bf16: networks run in float32.", device_type)
    return found
