# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Refinement whose every result has the topology of the atlas and no folds, on the grid of the model."""

from __future__ import annotations

import copy
import dataclasses
import time
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from torch import Tensor

from ..networks import AtlasISTN
from ..spatial import Transform
from ..topology.repair import pull_argmax, restore_labelmap
from ..topology.signature import Signature
from .refine import Refinement, RefinementInferer, Start

__all__ = ["TopologyInferer", "atlas_signature"]


class TopologyInferer(RefinementInferer):
    """Refinement that looks at what comes out, and does again or mends the cases that are not right.

    A case is right when the argmax of its soft labelmap has the topology of the atlas's and the map nowhere folds.
    Where it is not, λ is raised and the case refined again, from the last state that was right: the 1-pass, the 1-pass
    with a smaller velocity, or its affine part alone. Where no λ helps, the velocity is reduced until nothing folds,
    and the channels are changed, as little as can be, to the nearest labelmap with the right topology.

    If the images are a ``MetaTensor``, their ``meta`` tells for each case the last step that was needed,
    ``topology_step`` (none, lambda, supersample or correction), whether it led to the atlas's topology,
    ``topology_kept``, and how many voxels were relabelled, ``topology_voxels_changed``.

    Args:
        max_raises: how often λ is raised.
        raise_factor: by what.
        settings: those of `RefinementInferer`.
    """

    def __init__(self, max_raises: int = 3, raise_factor: float = 4.0, **settings: Any) -> None:
        super().__init__(**settings)
        self.max_raises = max_raises
        self.raise_factor = raise_factor

    def refine(self, inputs: Tensor, network: AtlasISTN, start: Start | None = None) -> Refinement:
        """As `RefinementInferer.refine`, with every case right wherever that can be reached."""
        result = super().refine(inputs, network, start)
        if start:  # of an ensemble, whose result is that of its first member
            return result
        begin = time.perf_counter()
        with torch.inference_mode(False), torch.no_grad():
            cases = [_Case(result.transform[i], result.segmentation[i : i + 1]) for i in range(len(result.transform))]
            signature = atlas_signature(network)
            right = _are_right(result.transform, result.segmentation, signature)
            for index, case in enumerate(cases):
                if not right[index]:
                    self._mend(case, network, result.prediction[[index]], result.target[[index]], signature)
        if isinstance(inputs, MetaTensor):
            for name in ("step", "kept", "voxels_changed"):
                inputs.meta[f"topology_{name}"] = [getattr(case, name) for case in cases]
        if all(right):
            return result
        # Written into the tensor that there is: a MetaTensor stays one, which inverting the preprocessing relies on.
        segmentation = result.segmentation.clone()
        for index, case in enumerate(cases):
            segmentation[index] = case.segmentation[0]
        return dataclasses.replace(
            result,
            segmentation=segmentation,
            transform=Transform.cat([case.transform for case in cases]),
            seconds=result.seconds + (time.perf_counter() - begin) / len(cases),
        )

    def _mend(self, case: _Case, network: AtlasISTN, prediction: Tensor, target: Tensor, signature: Signature) -> None:
        stiffer = self._refine_stiffer(network, prediction, target, signature)
        if stiffer is not None:
            case.step, case.transform = "lambda", stiffer
            case.segmentation = stiffer.to_subject(network.atlas_labels)
            return
        unfolded = _unfold(case.transform)
        if unfolded is not case.transform:
            case.transform, case.step = unfolded, "lambda"
            case.segmentation = unfolded.to_subject(network.atlas_labels)
        scores = case.segmentation[0].float().cpu().numpy()
        restored = restore_labelmap(scores, signature)
        case.kept, case.voxels_changed = restored.kept, restored.voxels_changed
        if restored.step != "none":
            case.step = restored.step
            channels = torch.from_numpy(pull_argmax(scores, restored.labelmap))
            case.segmentation = channels.to(case.segmentation)[None]

    def _refine_stiffer(
        self, network: AtlasISTN, prediction: Tensor, target: Tensor, signature: Signature
    ) -> Transform | None:
        """The transform of one case at the first λ that makes it right; None if none of them does."""
        if self.iterations == 0:
            return None
        velocity, parameters = network.register(prediction)
        states = (share * velocity for share in (1.0, 0.5, 0.0))
        good = next((state for state in states if _is_right(network, state, parameters, signature)), None)
        if good is None:  # not even the affine map keeps the topology on this grid: no λ will
            return None
        stiffer = copy.copy(self)
        if self.mode != "field":
            stiffer.mode, stiffer.learning_rate = "field", RefinementInferer().learning_rate
        for _ in range(self.max_raises):
            stiffer.regularisation *= self.raise_factor
            fit = stiffer._fit(network, prediction, good, parameters, target)
            if _is_right(network, fit.velocity, fit.parameters, signature):
                return network.transform(fit.velocity, fit.parameters)
        return None


@dataclasses.dataclass
class _Case:
    """One case of a batch, and what was done to it."""

    transform: Transform
    segmentation: Tensor
    step: str = "none"
    kept: bool = True
    voxels_changed: int = 0


def atlas_signature(network: AtlasISTN) -> Signature:
    """Topology of the atlas's labelmap, the argmax of its channels. Measured once per atlas."""
    labelmap = _argmax(network.atlas_labels)[0]
    return _measure(labelmap.tobytes(), labelmap.shape, network.atlas_labels.shape[1])


@lru_cache(maxsize=8)
def _measure(labelmap: bytes, shape: tuple[int, ...], num_classes: int) -> Signature:
    return Signature.of(np.frombuffer(labelmap, dtype=np.int16).reshape(shape), num_classes)


def _argmax(channels: Tensor) -> np.ndarray:
    return channels.argmax(dim=1).to(torch.int16).cpu().numpy()


def _are_right(transform: Transform, segmentation: Tensor, target: Signature) -> list[bool]:
    folds = (transform.jacobian_determinant() <= 0).flatten(1).any(dim=1).tolist()
    labelmaps = _argmax(segmentation)
    return [not fold and not target.violations(labelmap) for fold, labelmap in zip(folds, labelmaps, strict=True)]


def _is_right(network: AtlasISTN, velocity: Tensor, parameters: Tensor, target: Signature) -> bool:
    transform = network.transform(velocity, parameters)
    return _are_right(transform, transform.to_subject(network.atlas_labels), target)[0]


def _unfold(transform: Transform) -> Transform:
    """The same map with the largest share of its velocity that does not fold; an affine map never does."""
    for share in (1.0, 0.75, 0.5, 0.25, 0.1):
        smaller = transform if share == 1.0 else dataclasses.replace(transform, velocity=share * transform.velocity)
        if bool((smaller.jacobian_determinant() > 0).all()):
            return smaller
    return dataclasses.replace(transform, velocity=torch.zeros_like(transform.velocity))
