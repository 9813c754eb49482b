# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""The objectives of training registrations of pairs (ISTN, eq. 1 and 2; X-MAS, eq. 3 to 5)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..networks import PairISTN
from ..networks.pair import split_pair
from ..registration.objective import Objective, Pair, Regulariser, Similarity
from ..registration.regularisers import mean_squared_gradient
from ..registration.similarity import squared_error
from ..spatial import resample
from .losses import check_finite

__all__ = ["PairLoss"]

_OF_STRUCTURES = ("structures", "explicit", "implicit", "backward", "invertible")
_ERRORS = ("images", *_OF_STRUCTURES)


class PairLoss(nn.Module):
    """Weighted sum of the errors that the papers define, and a regulariser.

    With M, F the images, M', F' their representations, S the structures of interest, T the map that resamples the
    moving image and B the one that resamples the fixed image:

    ==================  =================================  ==========================================
    weight              error                              is part of
    ==================  =================================  ==========================================
    ``images``          L(M'∘T, F')                        STN-u, where M' = M
    ``structures``      L(S_M∘T, S_F)                      STN-s, ISTN-e, ISTN-i
    ``explicit``        L(M', S_M) + L(F', S_F)            ISTN-e
    ``implicit``        L(M'∘T, S_F) + L(S_M∘T, F')        ISTN-i
    ``backward``        L(S_F∘B, S_M)                      X-MAS, eq. 3, two-way
    ``invertible``      L((S_M∘T)∘B, S_M)                  X-MAS, eq. 4, its consistency
                        + L((S_F∘B)∘T, S_F)
    ``lambda``          regulariser of the deformation     X-MAS, eq. 3; 0 in ISTN
    ==================  =================================  ==========================================

    Args:
        network: the network being trained; its transformation model is read, its weights are not.
        weights: of the errors, by these names; one that is missing is 0.
        similarity: L, per-case error of two images.
        structure_similarity: in its place where structures are compared with structures; default the same.
        regulariser: penalty of the displacement on its own grid.

    Attributes:
        epoch: current epoch from 0, set by the trainer's schedule; for messages.
        terms: the terms of the last call, averaged over the batch, detached; for logging.

    Raises:
        InputError: a weight of an unknown name, or none that is positive.
    """

    def __init__(
        self,
        network: PairISTN,
        weights: Mapping[str, float],
        similarity: Similarity = squared_error,
        regulariser: Regulariser = mean_squared_gradient,
        structure_similarity: Similarity | None = None,
    ) -> None:
        super().__init__()
        known = (*_ERRORS, "lambda")
        self.weights = {name: float(weights.get(name, 0.0)) for name in known}
        unknown = set(weights) - set(known)
        if unknown or not any(self.weights[name] > 0 for name in _ERRORS):
            found = f"{sorted(unknown)[0]}" if unknown else "no weight above 0"
            raise InputError(f"pair_loss_weights: expected weights of {', '.join(known)}, found {found}.")
        self.network = network
        self.similarity = similarity
        self.structure_similarity = structure_similarity or similarity
        self.regulariser = regulariser
        self.epoch = 0
        self.terms: dict[str, Tensor] = {}

    @property
    def schedules(self) -> dict[str, float]:
        """What of the objective changes from epoch to epoch: nothing."""
        return {}

    def forward(self, output: Mapping[str, Any], structures: Tensor | None) -> Tensor:
        """Loss of a batch.

        Args:
            output: what `JointForward` returns of a `PairISTN`.
            structures: of the moving images and, behind them, of the fixed ones, ``[B, 2 K, *shape]``; None where no
                error needs them.

        Raises:
            InputError: they are needed and missing, the ITN has another number of channels, or something is not finite.
        """
        moving, fixed = output["moving"], output["fixed"]
        state = {f"parameters {number}": tensor for number, tensor in enumerate(output["state"], start=1)}
        check_finite({"moving": moving, "fixed": fixed, **state}, self.epoch)
        pairs = {"images": [Pair(moving, fixed, self.similarity)]}
        others: dict[str, list[Tensor]] = {}
        transform = self.network.transform(output["state"], moving)
        if any(self.weights[name] > 0 for name in _OF_STRUCTURES):
            soi_moving, soi_fixed = self._structures(structures, moving)
            pairs["structures"] = [Pair(soi_moving, soi_fixed, self.structure_similarity)]
            pairs["backward"] = [Pair(soi_moving, soi_fixed, self.structure_similarity, backward=True)]
            pairs["implicit"] = [Pair(moving, soi_fixed, self.similarity), Pair(soi_moving, fixed, self.similarity)]
            if self.weights["explicit"] > 0:
                others["explicit"] = [self.similarity(moving, soi_moving), self.similarity(fixed, soi_fixed)]
            if self.weights["invertible"] > 0:
                there, back = transform.sampling_grid(), transform.sampling_grid(backward=True)
                others["invertible"] = [
                    self.structure_similarity(resample(resample(soi_moving, there), back), soi_moving),
                    self.structure_similarity(resample(resample(soi_fixed, back), there), soi_fixed),
                ]
        active = {name: found for name, found in pairs.items() if self.weights[name] > 0}
        terms: dict[str, Tensor] = {}
        if active:
            objective = Objective([pair for found in active.values() for pair in found], self.regulariser)
            results = objective(transform)
            errors = iter(results.errors)
            terms = {name: torch.stack([next(errors) for _ in found]).sum(dim=0) for name, found in active.items()}
            if self.weights["lambda"] > 0:
                terms["lambda"] = results.penalty
        terms |= {name: torch.stack(errors).sum(dim=0) for name, errors in others.items()}
        self.terms = {name: value.detach().mean() for name, value in terms.items()}
        check_finite(self.terms, self.epoch)
        return torch.stack([self.weights[name] * value for name, value in terms.items()]).sum(dim=0).mean()

    def _structures(self, structures: Tensor | None, moving: Tensor) -> tuple[Tensor, Tensor]:
        if structures is None:
            raise InputError(
                "pair_loss_weights: the objective needs structures of interest, and the pairs have none: an ITN "
                "that is trained without them is useless. Set structures, or train by images alone (stn_u.yaml)."
            )
        soi = split_pair(structures)
        channels = soi[0].shape[1]
        if self.network.itn is not None and moving.shape[1] != channels:
            raise InputError(
                f"the ITN yields {moving.shape[1]} channels, the structures of interest have {channels}. Look at "
                "label_names and merge_structures."
            )
        return soi
