# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Pairs of a target and an atlas that was warped onto it: what networks for label fusion are trained with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from monai.data import Dataset
from torch import Tensor
from tqdm import tqdm

from ..errors import InputError
from ..inferers.multi_atlas import AtlasSet, MultiAtlasInferer
from ..io.channels import files_of
from ..io.names import patients_of
from .cases import TrainingCases

__all__ = ["WarpedPair", "WarpedPairs"]


@dataclass(frozen=True)
class WarpedPair:
    """A target, and an atlas on its grid.

    Attributes:
        case: ``<target>__<atlas>``.
        target: image ``[C, *shape]``.
        target_labels: class indices ``[*shape]``.
        atlas: image ``[C, *shape]``, warped.
        atlas_labels: class indices ``[*shape]``, warped.
    """

    case: str
    target: Tensor
    target_labels: Tensor
    atlas: Tensor
    atlas_labels: Tensor


class WarpedPairs(Dataset):
    """Every target with every atlas of another patient. It is empty until `prepare` has warped them, once.

    An atlas registered to itself would teach that atlases are always right. Images are kept in half precision: a pair
    takes 3 bytes a voxel.

    Args:
        targets: cases with ``{"image": [C, *shape], "label": [1, *shape]}``, class indices.
        atlases: as `prepare` finds them; they are read before.
        inferer: registers them.
        transform: makes of a `WarpedPair` what is learned from.
    """

    def __init__(
        self,
        targets: TrainingCases,
        atlases: AtlasSet,
        inferer: MultiAtlasInferer,
        transform: Callable[[WarpedPair], Mapping[str, Any]],
    ) -> None:
        super().__init__(data=[], transform=transform)
        self.targets = targets
        self.atlases = atlases
        self.inferer = inferer

    def prepare(self) -> None:
        """Warp the atlases onto the targets.

        Raises:
            InputError: targets that cannot be used, or no atlas of another patient.
        """
        if self.data:
            return
        if self.targets.failures:
            problems = "\n".join(f"  {case}: {reason}" for case, reason in sorted(self.targets.failures.items()))
            raise InputError(f"targets that cannot be used:\n{problems}")
        names = [case["case"] for case in self.targets.data]
        patients = patients_of([*names, *self.atlases.names])
        of_targets, of_atlases = patients[: len(names)], patients[len(names) :]
        device = self.atlases.images.device
        for number in tqdm(range(len(names)), desc="atlases onto targets", leave=False):
            case = self.targets[number]
            others = [index for index, patient in enumerate(of_atlases) if patient != of_targets[number]]
            if not others:
                raise InputError(f"{names[number]}: there is no atlas of another patient. Add some to the atlases.")
            image = torch.as_tensor(case["image"]).as_subclass(Tensor)[None].float().to(device)
            with torch.no_grad():
                warped, chosen, _ = self.inferer.warp(
                    image, self.atlases.subset(others), files_of(self.targets.data[number]["image"])[0]
                )
            labels = torch.as_tensor(case["label"]).as_subclass(Tensor)[0].to(torch.uint8)
            images = warped.images if warped.images is not None else image
            self.data += [
                WarpedPair(
                    f"{names[number]}__{self.atlases.names[others[index]]}",
                    image[0].half().cpu(),
                    labels,
                    images[place].half().cpu(),
                    warped.labels[place].to(torch.uint8).cpu(),
                )
                for place, index in enumerate(chosen.tolist())
            ]
