# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""A guard around refinement: every result has the topology of the atlas and no folds, on the grid of the model."""

from __future__ import annotations

import dataclasses
import time
from functools import lru_cache
from typing import cast

import numpy as np
import torch
from torch import Tensor

from ..networks import AtlasISTN
from ..spatial import Transform, label_indices
from ..topology import Signature, TopologyNote, pull_argmax, restore_labelmap
from .base import Refined, Refiner, SegmentationInferer, Start
from .result import Result

__all__ = ["TopologyGuard", "atlas_signature"]


class TopologyGuard(SegmentationInferer):
    """Looks at what a refinement yields, and does again or mends the cases that are not right.

    A case is right when the argmax of its soft labelmap has the topology of the atlas's and the map nowhere folds.
    Where only the topology is not, the channels are changed, as little as can be, to the nearest labelmap that has it.
    Where the map folds, or no such labelmap is found, λ is raised and the case refined again, from the last state that
    was right: the 1-pass, the 1-pass with a smaller velocity, or its affine part alone. Where no λ helps, the velocity
    is reduced until nothing folds, and the channels are changed.

    Args:
        inferer: the refinement; one without iterations is only mended.
        max_raises: how often λ is raised.
        raise_factor: by what.
    """

    def __init__(self, inferer: Refiner, max_raises: int = 3, raise_factor: float = 4.0) -> None:
        super().__init__()
        self.inferer = inferer
        self.max_raises = max_raises
        self.raise_factor = raise_factor

    @property
    def mode(self) -> str:
        """That of the inferer."""
        return self.inferer.mode

    @property
    def iterations(self) -> int:
        """Those of the inferer."""
        return self.inferer.iterations

    @property
    def regularisation(self) -> float:
        """That of the inferer."""
        return self.inferer.regularisation

    def fit(self, network: AtlasISTN, start: Start, target: Tensor, regularisation: float | None = None) -> Refined:
        """Register the atlas to given labelmaps, as the inferer does: unguarded."""
        return self.inferer.fit(network, start, target, regularisation)

    def infer(self, image: Tensor, network: AtlasISTN) -> Result:
        """Segment a batch, with every case right wherever that can be reached; `Result.topology` tells what it took."""
        result = self.inferer.infer(image, network)
        if result.transform is None:
            return result
        begin = time.perf_counter()
        with torch.inference_mode(False), torch.no_grad():
            signature = atlas_signature(network)
            right = _are_right(result.transform, result.segmentation, signature)
            if all(right):
                return dataclasses.replace(result, topology=(TopologyNote(),) * len(result))
            mended = [
                _Mended(result.segmentation[[i]], result.transform[i], TopologyNote())
                if fine
                else self._mend(result.case(i), network, signature)
                for i, fine in enumerate(right)
            ]
        return dataclasses.replace(
            result,
            segmentation=torch.cat([case.segmentation for case in mended]),
            transform=Transform.cat([case.transform for case in mended]),
            topology=tuple(case.note for case in mended),
            seconds=result.seconds + (time.perf_counter() - begin) / len(result),
        )

    def _mend(self, case: Result, network: AtlasISTN, signature: Signature) -> _Mended:
        """Do one case again, or mend it."""
        transform = cast(Transform, case.transform)
        mended = _restored(case.segmentation, transform, signature, "none")
        if mended.note.kept and not _folds(transform)[0]:
            return mended
        stiffer = self._refine_stiffer(case, network, signature)
        if stiffer is not None:
            return _Mended(stiffer.to_fixed(network.atlas_labels), stiffer, TopologyNote("lambda"))
        unfolded = _unfold(transform)
        if unfolded is transform:
            return mended
        return _restored(unfolded.to_fixed(network.atlas_labels), unfolded, signature, "lambda")

    def _refine_stiffer(self, case: Result, network: AtlasISTN, signature: Signature) -> Transform | None:
        """The transform of one case at the first λ that makes it right; None if none of them does."""
        if self.iterations == 0 or case.prediction is None or case.course is None:
            return None
        velocity, parameters = network.register(case.prediction)
        states = (share * velocity for share in (1.0, 0.5, 0.0))
        good = next((state for state in states if _is_right(network, state, parameters, signature)), None)
        if good is None:  # not even the affine map keeps the topology on this grid: no λ will
            return None
        start, weight = Start(case.prediction, good, parameters), self.regularisation
        for _ in range(self.max_raises):
            weight *= self.raise_factor
            transform = self.inferer.fit(network, start, case.course.target, weight).transform
            if _are_right(transform, transform.to_fixed(network.atlas_labels), signature)[0]:
                return transform
        return None


@dataclasses.dataclass(frozen=True)
class _Mended:
    """One case as the guard leaves it."""

    segmentation: Tensor
    transform: Transform
    note: TopologyNote


def atlas_signature(network: AtlasISTN) -> Signature:
    """Topology of the atlas's labelmap, the argmax of its channels. Measured once per atlas."""
    labelmap = _argmax(network.atlas_labels)[0]
    return _measure(labelmap.tobytes(), labelmap.shape, network.atlas_labels.shape[1])


@lru_cache(maxsize=8)
def _measure(labelmap: bytes, shape: tuple[int, ...], num_classes: int) -> Signature:
    return Signature.of(np.frombuffer(labelmap, dtype=np.int16).reshape(shape), num_classes)


def _argmax(channels: Tensor) -> np.ndarray:
    return label_indices(channels).to(torch.int16).cpu().numpy()


def _folds(transform: Transform) -> list[bool]:
    return (transform.jacobian_determinant() <= 0).flatten(1).any(dim=1).tolist()


def _restored(segmentation: Tensor, transform: Transform, signature: Signature, step: str) -> _Mended:
    """A case with its channels changed to the nearest labelmap with the right topology, after a step before."""
    scores = segmentation[0].float().cpu().numpy()
    restored = restore_labelmap(scores, signature)
    if restored.note.step != "none":
        segmentation = torch.from_numpy(pull_argmax(scores, restored.labelmap)).to(segmentation)[None]
    return _Mended(segmentation, transform, TopologyNote(step).then(restored.note))


def _are_right(transform: Transform, segmentation: Tensor, target: Signature) -> list[bool]:
    pairs = zip(_folds(transform), _argmax(segmentation), strict=True)
    return [not fold and not target.violations(labelmap) for fold, labelmap in pairs]


def _is_right(network: AtlasISTN, velocity: Tensor, parameters: Tensor, target: Signature) -> bool:
    transform = network.transform(velocity, parameters)
    return _are_right(transform, transform.to_fixed(network.atlas_labels), target)[0]


def _unfold(transform: Transform) -> Transform:
    """The same map with the largest share of its velocity that does not fold; an affine map never does."""
    for share in (1.0, 0.75, 0.5, 0.25, 0.1, 0.0):
        smaller = transform if share == 1.0 else dataclasses.replace(transform, field=share * transform.velocity)
        if bool((smaller.jacobian_determinant() > 0).all()):
            break
    return smaller
