# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Transforms of the postprocessing that carry the topology of a result from the model's grid to the image's own."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from torch import Tensor

from ..spatial import label_indices
from ..topology.repair import restore_labelmap
from ..topology.signature import Signature

__all__ = ["PreserveTopologyd", "RecordTopologyd"]

NOTE = "topology_note"
"""Key of the `TopologyNote` in the metadata of a labelmap."""
_SIGNATURE = "topology"  # key in the metadata of the image


class _WithMetadata(MapTransform):
    """A transform of one key that keeps or finds the topology in the metadata of another."""

    def __init__(self, keys: KeysCollection, orig_key: str = "image", allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.orig_key = orig_key


class RecordTopologyd(_WithMetadata):
    """Measure the topology of a soft labelmap, before `Invertd`, for `PreserveTopologyd` after it.

    On the model's grid the result has the atlas's topology: `TopologyGuard` has seen to that. So the atlas itself is
    not needed here, which is just as well: a host may run a copy of the network that the configuration cannot see.

    Args:
        keys: soft labelmap ``[Nc, *shape]``, one.
        orig_key: the image (MetaTensor) that `Invertd` takes the metadata from; the topology is kept with these.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Note the topology in the metadata of the image."""
        result = dict(data)
        for key in self.key_iterator(result):
            if isinstance(result.get(self.orig_key), MetaTensor):
                labelmap = label_indices(result[key], dim=0).to(torch.int16).cpu().numpy()
                result[self.orig_key].meta[_SIGNATURE] = Signature.of(labelmap, len(result[key]))
        return result


class PreserveTopologyd(_WithMetadata):
    """The last step to a labelmap: an argmax that keeps the topology which `RecordTopologyd` noted.

    Where the plain argmax does not keep it, `restore_labelmap` does, and the metadata of the labelmap have a
    `TopologyNote` of what that took. On a grid much coarser than the model's no labelmap may have the topology: the
    note says so, and the labelmap is the nearest that was found. Nothing noted, it is a plain argmax.

    Args:
        keys: soft labelmap ``[Nc, *shape]``, one; it becomes class indices ``[1, *shape]``.
        orig_key: the image that holds the metadata.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace the soft labelmap."""
        result = dict(data)
        for key in self.key_iterator(result):
            noted = getattr(result.get(self.orig_key), "meta", {})
            result[key] = _discretise(result[key], noted)
        return result


def _discretise(soft: Tensor, noted: Mapping[str, Any]) -> Tensor:
    if not isinstance(noted.get(_SIGNATURE), Signature):
        return label_indices(soft, dim=0, keepdim=True)
    restored = restore_labelmap(torch.as_tensor(soft).float().cpu().numpy(), noted[_SIGNATURE])
    # As a plain argmax would: same device, same metadata.
    labelmap = label_indices(soft, dim=0, keepdim=True)
    labelmap[0] = torch.from_numpy(restored.labelmap).to(labelmap)
    if isinstance(labelmap, MetaTensor):
        labelmap.meta[NOTE] = restored.note
        labelmap.meta.pop(_SIGNATURE, None)  # it has served
    return labelmap
