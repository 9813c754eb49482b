# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""The command that puts the ITNs of several trained models into one."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..errors import InputError
from .loading import read_state
from .provenance import save_model

__all__ = ["merge_itns"]

_MEMBERS = "itn.networks."


def merge_itns(output: str | Path, *models: str | Path) -> Path:
    """Make a model whose ITN is the mean of the ITNs of several models; the rest is that of the first.

    The ITNs are `MeanOfNetworks`, as in ``configs/data/hippocampus.yaml``. Train the models one by one, each with
    ``--itn_members 1``, and use the result with ``--itn_members`` set to their number.

    Args:
        output: the model file to write.
        models: model files. Of all but the first the ITN alone counts. Where all are U-nets the result is one too, for
            which ``configs/variants/trained_itn.yaml`` trains STN and atlas.

    Returns:
        The path of the file.

    Raises:
        InputError: there are fewer than two models, one cannot be read, or the ITNs do not match.
    """
    if len(models) < 2:
        raise InputError(f"merge_itns: expected OUTPUT and at least two model files, found {len(models)} models.")
    states = [read_state(Path(model)) for model in models]
    merged = {name: value for name, value in states[0].items() if not name.startswith(_MEMBERS)}
    members = [member for model, state in zip(models, states, strict=True) for member in _members(Path(model), state)]
    for number, member in enumerate(members):
        if _shapes(member) != _shapes(members[0]):
            raise InputError(f"the ITN of {models[0]} has another architecture than member {number + 1}: merge equals.")
        merged.update({f"{_MEMBERS}{number}.{name}": value for name, value in member.items()})
    save_model(merged, output, {})
    return Path(output)


def _members(path: Path, state: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """The weights of each network of the ITN."""
    members: dict[int, dict[str, Tensor]] = {}
    for name, value in state.items():
        if name.startswith(_MEMBERS):
            number, _, rest = name.removeprefix(_MEMBERS).partition(".")
            members.setdefault(int(number), {})[rest] = value
    if not members:
        raise InputError(f"{path}: its ITN is no MeanOfNetworks. Expected entries {_MEMBERS}0…; train it so.")
    return [members[number] for number in sorted(members)]


def _shapes(member: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in member.items()}
