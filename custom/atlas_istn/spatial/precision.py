# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Networks in bf16, on hardware that computes in it."""

from __future__ import annotations

import logging
import time
from functools import cache

import torch

__all__ = ["computes_bf16", "mixed_precision"]

logger = logging.getLogger(__name__)

_SLOWEST = 4.0  # times the seconds of float32: emulated by oneDNN it takes up to 2, by PyTorch itself 100 to 200
_TRIES = 3


def mixed_precision(device: torch.device, wanted: bool) -> torch.autocast:
    """Context in which convolutions run in bf16, if wanted and the hardware computes in it; in float32 otherwise.

    Args:
        device: where the network is.
        wanted: false leaves everything in float32.
    """
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=wanted and computes_bf16(device.type))


@cache
def computes_bf16(device_type: str) -> bool:
    """Whether a kind of device computes in bf16 at a useful speed.

    PyTorch computes in it everywhere, but on processors with no more than AVX2, as most desktops and laptops have, a
    convolution then takes some 200 times as long as in float32. PyTorch does not tell of processors, so a small
    convolution is tried once, which takes milliseconds (0.2 s where it is slow).

    Args:
        device_type: as ``torch.device.type`` has it.
    """
    if device_type == "cuda":
        found = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        found = device_type != "cpu" or _seconds(torch.bfloat16) < _SLOWEST * _seconds(torch.float32)
    if not found:
        logger.info("the device (%s) computes no bf16, or slowly: networks run in float32.", device_type)
    return found


@torch.no_grad()
def _seconds(precision: torch.dtype) -> float:
    """What a convolution takes on the CPU, the shortest of a few."""
    image, weight = torch.ones(1, 16, 64, 64, dtype=precision), torch.ones(16, 16, 3, 3, dtype=precision)
    taken = []
    for _ in range(_TRIES):
        begin = time.perf_counter()
        with torch.autocast("cpu", enabled=False):  # whatever surrounds the question
            torch.conv2d(image, weight, padding=1)
        taken.append(time.perf_counter() - begin)
    return min(taken)
