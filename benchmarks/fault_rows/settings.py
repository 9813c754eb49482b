# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Settings that make no sense, made from the table of ids: one value of each, on the way that a user's takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from atlas_istn.settings.table import NESTED, OUTPUT, SETTINGS, TRAINING, Setting

from .row import Row, Work
from .runs import evaluate, infer, train

__all__ = ["rows"]

WRONG: dict[str, Any] = {
    "truth": "yes please",
    "whole": 1.5,
    "number": "much",
    "wholes": [1.5, 2],
    "numbers": ["a", 1],
    "values": [0, 0],
    "table": 3,
    "names": {0: "background"},
    "component": 3,
    "components": 3,
    "device": "cuda:99",
}
RUNS: dict[str, Callable[..., object]] = {
    **dict.fromkeys(("train", "loss", "optimizer", "lr_scheduler", "validate", "run_folder"), train),
    **dict.fromkeys((*TRAINING, "augmentation_ranges", "locator_training"), train),
    **dict.fromkeys(("scorer", *OUTPUT), evaluate),
}
"""Id → the run that has it; others are in all."""


def _wrong(setting: Setting) -> Any:
    if setting.choices:
        return "none of these"
    if setting.kind in ("whole", "number") and setting.low > -float("inf"):
        return setting.low if setting.above else setting.low - 1
    return WRONG.get(setting.kind)


def _prepare(name: str, value: Any, folder: Path) -> Work:
    run = RUNS.get(name.split("#")[0], infer)
    (folder / "scans").mkdir()
    return lambda: run(folder, folder / "scans", **{name: value})


def rows() -> Iterator[Row]:
    """All faults of this kind."""
    inner = {f"{name}#{key}": part for name, part_of in SETTINGS.items() for key, part in part_of.fields.items()}
    for name, setting in {**SETTINGS, **inner, **NESTED}.items():
        value = _wrong(setting)
        if value is not None:
            says = (f"{name}: expected", repr(value))
            yield Row("settings", f"{name}: {value}", partial(_prepare, name, value), 1, says)
    near = ("did you mean refine_iterations",)
    yield Row("settings", "no such id", partial(_prepare, "refine_iteration", 3), 1, near)
