# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Handler that loads a model file, and says what is wrong with one that does not fit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from ignite.engine import Engine, Events

from ..errors import InputError
from ..networks import AtlasISTN
from .provenance import check_model_file

__all__ = ["ModelLoader", "read_state"]


class ModelLoader:
    """Handler that loads a model file before the run starts.

    Args:
        path: a plain state dict, as training writes it.
        network: takes the weights and the atlas.
        part: load only the entries whose names begin so, such as ``"itn."``; the others may be anything.
    """

    def __init__(self, path: str, network: AtlasISTN, part: str = "") -> None:
        self.path = Path(path)
        self.network = network
        self.part = part

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self) -> None:
        """Load the file.

        Raises:
            InputError: there is no such file, it is no state dict, or it does not fit the network.
        """
        state = {name: value for name, value in read_state(self.path).items() if name.startswith(self.part)}
        expected = {name: value for name, value in self.network.state_dict().items() if name.startswith(self.part)}
        mismatch = _first_mismatch(state, expected)
        if mismatch:
            raise InputError(
                f"{self.path}: the checkpoint does not fit this configuration: {mismatch}. Use the data config and the "
                "network settings that the model was trained with."
            )
        self.network.load_state_dict(state, strict=False)  # nothing is missing but what was not asked for


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """The weights in a model file.

    Raises:
        InputError: there is no such file, it is damaged (see `check_model_file`), or it holds no usable weights.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint. Train a model first, or set ckpt_path to a model.pt.")
    check_model_file(path)
    remedy = "Expected the weights that training writes to models/model.pt. Set ckpt_path to such a file."
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what is no checkpoint fails in many ways
        raise InputError(f"{path}: not readable as a checkpoint ({type(error).__name__}). {remedy}") from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise InputError(f"{path}: holds more than weights, or something else. {remedy}")
    broken = next((name for name, value in state.items() if not bool(value.isfinite().all())), None)
    if broken:
        raise InputError(f"{path}: {broken} holds values that are not finite: the training that wrote it went astray.")
    return state


def _first_mismatch(state: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> str:
    """What is wrong with the first entry that differs in name or shape; empty if none does."""
    for name, tensor in expected.items():
        if name not in state:
            return f"it has no entry {name}"
        if state[name].shape != tensor.shape:
            return f"{name} has the shape {list(state[name].shape)}, expected {list(tensor.shape)}"
    surplus = [name for name in state if name not in expected]
    return f"its entry {surplus[0]} is unknown to the network" if surplus else ""
