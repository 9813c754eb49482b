# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""bf16 where the hardware has it, float32 where it would be emulated."""

from __future__ import annotations

import time

import pytest
import torch

from atlas_istn.spatial import mixed_precision, precision
from atlas_istn.spatial.precision import computes_bf16

CPU = torch.device("cpu")


@pytest.mark.parametrize("able", [True, False])
@pytest.mark.parametrize("wanted", [True, False])
def test_networks_run_in_bf16_where_it_is_wanted_and_computed(
    able: bool, wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "computes_bf16", lambda device_type: able)
    with mixed_precision(CPU, wanted):
        found = torch.nn.Linear(2, 2)(torch.rand(1, 2))
    assert found.dtype == (torch.bfloat16 if able and wanted else torch.float32)


def test_convolutions_are_never_emulated() -> None:
    """Emulated, this one takes some 100 times as long as in float32; 5 leaves room for whatever else runs."""
    network = torch.nn.Conv3d(16, 16, 3, padding=1).to(memory_format=torch.channels_last_3d)
    image = torch.rand(1, 16, 16, 16, 16).to(memory_format=torch.channels_last_3d)

    def seconds(wanted: bool) -> float:
        taken = []
        for _ in range(5):
            begin = time.process_time()
            with mixed_precision(CPU, wanted), torch.no_grad():
                network(image)
            taken.append(time.process_time() - begin)
        return min(taken)

    assert seconds(True) < 5 * seconds(False) + 0.001


def test_says_once_that_bf16_is_left_out(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    computes_bf16.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    try:
        with caplog.at_level("INFO", "atlas_istn"):
            found = [computes_bf16("cuda") for _ in range(2)]
    finally:
        computes_bf16.cache_clear()
    assert found == [False, False]
    assert [record.message for record in caplog.records] == [
        "the device (cuda) computes no bf16, or slowly: networks run in float32."
    ]
