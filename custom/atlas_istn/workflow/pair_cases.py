# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Pairs one by one: prepared for the network, and taken up again with what was found for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.data import Dataset, MetaTensor, list_data_collate
from monai.transforms import Transform as Preparation
from torch import Tensor

from ..errors import message_of
from ..inferers.pair import PairResult
from ..io.itk_transforms import CompositeTransform
from ..io.loading import LENGTH_UNIT, read_volume
from ..io.outputs import world_transforms
from ..io.pairs import SIDES
from ..spatial import Transform

__all__ = ["ALONE", "PairCase", "PairDataset", "collate_pairs"]

ALONE = {"cohort": None, "dataset#data": "@pairs"}
"""Settings of ``registration.yaml`` with which this process registers all pairs, whatever others do."""


class PairDataset(Dataset):
    """Prepares pairs; one that cannot be prepared becomes a failure instead of ending the run.

    Items are ``{"case", "pair", "moving_affine", "fixed_affine", "image"}`` and, where the pair has structures,
    ``"label"``; or, for a failure, ``{"case", "error"}``. Batch them with `collate_pairs`.

    Args:
        data: the pairs, as `find_pairs` lists them.
        transform: makes ``{"moving", "fixed"}`` of a pair, on the model's grid, and their structures.
        join: makes ``{"image"}`` of these and, where there are structures, ``"label"``.
    """

    def __init__(self, data: Sequence[Mapping[str, str]], transform: Preparation, join: Preparation) -> None:
        super().__init__(data=data, transform=transform)
        self.join = join

    def __getitem__(self, index: Any) -> dict[str, Any]:
        """The prepared pair, or what is wrong with it."""
        pair = self.data[index]
        try:
            prepared: Any = self.transform(dict(pair))
            affines = {f"{side}_affine": torch.as_tensor(prepared[side].affine).double() for side in SIDES}
            return {"case": pair["case"], "pair": pair, **affines, **self.join(prepared)}
        except Exception as error:  # whatever a reader or transform raises, the other pairs go on
            return {"case": pair["case"], "error": message_of(error)}


def collate_pairs(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A batch of the pairs that could be prepared, with the others under ``"failures"`` as (case, message)."""
    failures = [(item["case"], item["error"]) for item in items if "error" in item]
    prepared = [dict(item) for item in items if "error" not in item]
    pairs = [item.pop("pair") for item in prepared]
    common = set.intersection(*(set(item) for item in prepared)) if prepared else set()
    batch: dict[str, Any] = (
        list_data_collate([{key: item[key] for key in sorted(common)} for item in prepared]) if prepared else {}
    )
    return {**batch, "pairs": pairs, "failures": failures}


@dataclass(frozen=True)
class PairCase:
    """What is known of one pair when it is registered.

    Attributes:
        case: its name.
        pair: its files, as `find_pairs` lists them.
        affines: ``"moving"``, ``"fixed"`` → voxel to RAS world map of the image on the model's grid, 4x4.
        result: on that grid, a batch of one.
        image: both on that grid, ``[1, 2 C, *shape]``.
        structures: of the moving and, behind them, of the fixed image, ``[1, 2 K, *shape]``; None where it has none.
    """

    case: str
    pair: Mapping[str, str]
    affines: Mapping[str, npt.NDArray[np.float64]]
    result: PairResult
    image: Tensor
    structures: Tensor | None

    @cached_property
    def images(self) -> dict[str, MetaTensor]:
        """Both images as they were given, ``[1, *native]``."""
        dim = len(self.result.transform.shape)
        return {side: read_volume(self.pair[side], dim) for side in SIDES}

    @property
    def unit(self) -> str:
        """Unit of lengths: pictures without a pixel size have pixels."""
        return str(self.images["fixed"].meta.get(LENGTH_UNIT, "mm"))

    def in_world(self, transform: Transform) -> tuple[CompositeTransform, CompositeTransform]:
        """A transform between the worlds of both images, see `world_transforms`."""
        return world_transforms(transform, self.affines["moving"], self.affines["fixed"])

    @cached_property
    def transforms(self) -> tuple[CompositeTransform, CompositeTransform]:
        """The transform that was found, between both worlds."""
        return self.in_world(self.result.transform)
