# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Between our typed results and the dictionaries that MONAI's engines and key transforms work on.

`to_dictionary` is the one place in which a result becomes a dictionary, and `CaseResult.of` the one in which what the
postprocessing leaves there is taken up again. Keys: ``pred`` the segmentation, ``itn`` and ``one_pass`` the other soft
labelmaps, ``uncertainty``, ``probabilities``, a copy of ``pred`` before it becomes a labelmap, and `ATLAS_MAPS`; they
are MONAI's and those of configurations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.utils import CommonKeys as Keys
from monai.utils import convert_to_dst_type
from torch import Tensor

from ..inferers.result import Result
from ..io.loading import LENGTH_UNIT
from ..io.names import is_png
from ..networks import AtlasISTN
from ..spatial.consistency import Consistency, inverse_consistency
from ..topology import TopologyNote
from .label_measures import measure_labels
from .measures import Measures, label_entropy, measure
from .topology_transforms import NOTE

__all__ = ["ATLAS_MAPS", "CaseResult", "class_indices", "native_affine", "to_dictionary"]

ATLAS_MAPS = ("disagreement", "winner", "atlases")
"""Keys of `AtlasMaps`; the first is 1 − agreement, since all atlases agree outside the model's grid, where 0 is put."""

_NO_LABELMAPS = (Keys.IMAGE, Keys.LABEL, "uncertainty", "probabilities", *ATLAS_MAPS)
"""Of what comes out of the postprocessing; the rest are labelmaps, with those that a config adds."""


def to_dictionary(result: Result, image: Tensor, uncertainty: bool = False) -> dict[str, Any]:
    """Return the tensors of a batch under their keys, of the type and with the metadata of the images.

    Args:
        result: of the batch.
        image: the images ``[B, C, *shape]``.
        uncertainty: also the `label_entropy` of the segmentation, of the mean of the ensemble where there is one.
    """
    soft = {Keys.PRED: result.segmentation, "itn": result.prediction, "one_pass": result.one_pass}
    if uncertainty:
        soft["uncertainty"] = label_entropy(result.segmentation if result.ensemble is None else result.ensemble)
    if result.maps:
        maps = (1.0 - result.maps.agreement, result.maps.winner, result.maps.labels)
        soft |= dict(zip(ATLAS_MAPS, maps, strict=True))
    dressed = {key: convert_to_dst_type(value, image)[0] for key, value in soft.items() if value is not None}
    return {Keys.IMAGE: image, **dressed}


@dataclass(frozen=True)
class CaseResult:
    """What is known of one case when its results are back on the image's own grid.

    Attributes:
        case: its name.
        source: the file or folder of its image, or an `ImagePath` of several files.
        reference: the file of its label; empty if there is none.
        grid_affine: voxel to RAS world map of the image on the model's grid, 4x4.
        result: on the model's grid, a batch of one.
        labelmaps: key → class indices ``[1, *native]``.
        uncertainty: ``[1, *native]``, if asked for.
        atlas_labels: soft labelmap of the atlas ``[1, Nc, *shape]``.
        probabilities: soft labelmap of the full method ``[Nc, *native]``, if asked for.
        atlas_maps: key of `ATLAS_MAPS` → ``[1, *native]``, of ``atlases`` ``[N, *native]``, if asked for.
        image: on the model's grid, ``[1, C, *shape]``, if it is kept.
        atlas_image: of the network, ``[1, C, *shape]``, likewise.
    """

    case: str
    source: str
    reference: str
    grid_affine: np.ndarray
    result: Result
    labelmaps: Mapping[str, MetaTensor]
    uncertainty: MetaTensor | None
    atlas_labels: Tensor
    probabilities: MetaTensor | None = None
    atlas_maps: Mapping[str, MetaTensor] = field(default_factory=dict)
    image: Tensor | None = None
    atlas_image: Tensor | None = None

    @classmethod
    def of(cls, batch: Mapping[str, Any], output: Mapping[str, Any], result: Result, network: AtlasISTN) -> CaseResult:
        """Take up one case of a batch behind the postprocessing."""
        return cls(
            case=batch["case"],
            source=batch["source"],
            reference=str(batch["reference"]),
            grid_affine=np.asarray(batch["grid_affine"]),
            result=result,
            labelmaps={key: output[key] for key in output if key not in _NO_LABELMAPS},
            uncertainty=output.get("uncertainty"),
            atlas_labels=network.atlas_labels,
            probabilities=output.get("probabilities"),
            atlas_maps={key: output[key] for key in ATLAS_MAPS if key in output},
            image=torch.as_tensor(batch[Keys.IMAGE])[None],
            atlas_image=network.atlas_image,
        )

    @property
    def segmentation(self) -> MetaTensor:
        """The labelmap of the full method."""
        return self.labelmaps[Keys.PRED]

    @property
    def from_png(self) -> bool:
        """Whether the image is a PNG, which has no geometry of its own."""
        return is_png(self.source)

    @property
    def unit(self) -> str:
        """Of lengths: ``"mm"``, or ``"pixels"`` of a PNG whose pixel size nobody states."""
        return str(self.segmentation.meta.get(LENGTH_UNIT, "pixels" if self.from_png else "mm"))

    @property
    def notes(self) -> list[str]:
        """What `read_volume` found that a reader of the results should know."""
        return list(self.segmentation.meta.get("warnings", "").splitlines())

    @cached_property
    def consistency(self) -> Consistency | None:
        """How well both directions of the transform undo each other."""
        transform = self.result.transform
        return None if transform is None else inverse_consistency(transform, self.atlas_labels)

    @cached_property
    def measures(self) -> Measures | None:
        """What the result tells about its quality, if it is one of a refinement."""
        measured = measure(self.result)
        return measured[0] if measured else None

    @cached_property
    def label_measures(self) -> list[list[float]]:
        """What the result tells about the quality of each label; empty if it is none of a refinement."""
        if self.image is None or self.atlas_image is None:
            return []
        image = self.image.to(self.result.segmentation.device)
        found: list[list[float]] = measure_labels(self.result, image, self.atlas_image)[0].tolist()
        return found

    @property
    def topology(self) -> TopologyNote | None:
        """What it took to keep the topology, on the model's grid and on the native one."""
        if not self.result.topology:
            return None
        return self.result.topology[0].then(self.segmentation.meta.get(NOTE, TopologyNote()))


def native_affine(volume: MetaTensor) -> np.ndarray:
    """Voxel to RAS world map of the grid that a volume is on, as the file has it."""
    return np.asarray(volume.meta.get("original_affine", volume.affine))


def class_indices(labelmap: MetaTensor) -> np.ndarray:
    """Class indices ``[*shape]`` of a labelmap ``[1, *shape]``."""
    return np.asarray(torch.as_tensor(labelmap)[0].cpu()).astype(int)
