# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Handler that loads a model file, and says what is wrong with one that does not fit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import nn

from ..errors import InputError
from ..settings import differences
from .provenance import SETTINGS, check_model_file, read_record

__all__ = ["ModelLoader", "read_part", "read_state"]


class ModelLoader:
    """Handler that loads a model file before the run starts.

    Args:
        path: a plain state dict, as training writes it.
        network: takes the weights and the atlas.
        part: load only the entries whose names begin so, such as ``"itn."``; the others may be anything.
        settings: of the configuration in use, see `model_settings`; compared with those that the model was trained
            with, where its record has them.
    """

    def __init__(
        self, path: str, network: nn.Module, part: str = "", settings: Mapping[str, Any] | None = None
    ) -> None:
        self.path = Path(path)
        self.network = network
        self.part = part
        self.settings = settings

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self) -> None:
        """Load the file.

        Raises:
            InputError: there is no such file, it is no state dict, it does not fit the network, or it was trained with
                other settings.
        """
        self._check_settings()
        state = {name: value for name, value in read_state(self.path).items() if name.startswith(self.part)}
        expected = {name: value for name, value in self.network.state_dict().items() if name.startswith(self.part)}
        mismatch = _first_mismatch(state, expected)
        if mismatch:
            raise InputError(
                f"{self.path}: the checkpoint does not fit this configuration: {mismatch}. Use the data config and the "
                "network settings that the model was trained with."
            )
        self.network.load_state_dict(state, strict=False)  # nothing is missing but what was not asked for

    def _check_settings(self) -> None:
        trained = read_record(self.path).get(SETTINGS)
        if self.settings is None or trained is None:
            return
        if others := differences(trained, self.settings):
            raise InputError(
                f"{self.path}: the model was trained with other settings:\n{others}\nUse the configurations that "
                "training wrote beside it, in configs, or leave these settings as they are there."
            )


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


def read_part(path: str, part: str) -> dict[str, torch.Tensor]:
    """The weights of one part of the network in a model file, under the names that they have in the part.

    Args:
        path: a plain state dict, as training writes it.
        part: name of the part, such as ``"locator"``.

    Raises:
        InputError: there is no such file, it holds no state dict, or nothing of the part.
    """
    prefix = f"{part}."
    weights = {name.removeprefix(prefix): v for name, v in read_state(Path(path)).items() if name.startswith(prefix)}
    if not weights:
        raise InputError(
            f"{path}: the model has no {part}. Use the data config that it was trained with, or a model that has one."
        )
    return weights


def _first_mismatch(state: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> str:
    """What is wrong with the first entry that differs in name or shape; empty if none does."""
    for name, tensor in expected.items():
        if name not in state:
            return f"it has no entry {name}"
        if state[name].shape != tensor.shape:
            return f"{name} has the shape {list(state[name].shape)}, expected {list(tensor.shape)}"
    surplus = [name for name in state if name not in expected]
    return f"its entry {surplus[0]} is unknown to the network" if surplus else ""
