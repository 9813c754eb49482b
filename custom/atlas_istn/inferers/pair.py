# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Registration of pairs by a pairwise ISTN, and its refinement at test time (ISTN, Sec. 2.3)."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from monai.networks.layers import GaussianFilter
from torch import Tensor

from ..errors import InputError
from ..networks import PairISTN
from ..networks.pair import split_pair
from ..registration.descent import Adam, QuasiNewton
from ..registration.objective import Objective, Pair, Regulariser, Similarity
from ..registration.optimise import Fit, Phase, Retarget, Settling, optimise
from ..registration.parameters import NetworkWeights, Parameters
from ..registration.regularisers import mean_squared_gradient
from ..registration.similarity import squared_error
from ..spatial import Transform, mixed_precision
from .base import plain

__all__ = ["PairInferer", "PairResult"]

_MODES = ("parameters", "weights")


@dataclass(frozen=True)
class PairResult:
    """How a batch of B pairs was registered, on the model's grid.

    Attributes:
        transform: the maps, refined where there was a refinement.
        seconds: wall time per pair, network included.
        one_pass: the maps that the network predicts; None without a network.
        moving: representation of the moving images, ``[B, K, *shape]``.
        fixed: of the fixed ones.
        fit: how the refinement went.
        start: error of the representations before anything has moved, ``[B]``.
    """

    transform: Transform
    seconds: float
    one_pass: Transform | None
    moving: Tensor
    fixed: Tensor
    fit: Fit
    start: Tensor

    def __len__(self) -> int:
        return len(self.transform)

    def case(self, index: int) -> PairResult:
        """Return one pair, as a batch of one."""
        one = slice(index, index + 1)
        fit = Fit(
            tuple(tensor[one] for tensor in self.fit.state),
            self.fit.loss[one],
            self.fit.iterations[one],
            self.fit.curve[:, one],
        )
        one_pass = None if self.one_pass is None else self.one_pass[one]
        return dataclasses.replace(
            self,
            transform=self.transform[one],
            one_pass=one_pass,
            moving=self.moving[one],
            fixed=self.fixed[one],
            fit=fit,
            start=self.start[one],
        )


class PairInferer:
    """Registers pairs in one pass and refines: minimises L(M'∘T, F') with the ITN run once.

    ``mode="weights"`` is the paper's recipe: the STN's weights are optimised, on a copy, one pair after another.
    ``mode="parameters"`` optimises the transformation's own parameters from the 1-pass; no network runs in the loop,
    and the pairs of a batch are refined together but independently of each other: by Adam, or an affine map alone by
    BFGS. Either way the best iterate of each pair is kept, and neither network nor inferer keeps any state.

    Args:
        mode: ``"parameters"`` or ``"weights"``.
        iterations: largest number of steps; 0 returns the 1-pass.
        learning_rate: Adam's step size for weights; for parameters the transformation has its own.
        similarity: L, per-case error of two representations.
        regulariser: penalty of the displacement on its own grid.
        regularisation: its weight λ; 0 in the paper.
        tolerance: a pair has settled when its objective improved by less than this fraction over `patience` iterations;
            0 for the whole number of iterations.
        patience: see `tolerance`.
        amp: run the convolutions in bf16.
        structures: weight of the error of the structures of interest, for pairs that have them at test time; 0 leaves
            them to the scores, as the paper does.
        smoothing: standard deviations in voxels of Gaussians, widest first: both representations are smoothed by each
            of them for an equal share of the iterations, and not at all for the last share. For pairs that lie far
            apart and are registered without a network.

    Raises:
        InputError: an unknown mode.
    """

    def __init__(
        self,
        mode: str = "parameters",
        iterations: int = 50,
        learning_rate: float = 1e-3,
        similarity: Similarity = squared_error,
        regulariser: Regulariser = mean_squared_gradient,
        regularisation: float = 0.0,
        tolerance: float = 2e-3,
        patience: int = 10,
        amp: bool = False,
        structures: float = 0.0,
        smoothing: Sequence[float] = (),
    ) -> None:
        if mode not in _MODES:
            raise InputError(f"mode of the refinement of pairs: expected {' or '.join(_MODES)}, found '{mode}'.")
        self.mode = mode
        self.iterations = iterations
        self.learning_rate = learning_rate
        self.similarity = similarity
        self.regulariser = regulariser
        self.regularisation = regularisation
        self.settling = Settling(tolerance, patience)
        self.amp = amp
        self.structures = structures
        self.smoothing = tuple(smoothing)

    def infer(self, pair: Tensor, network: PairISTN, structures: Tensor | None = None) -> PairResult:
        """Register a batch of pairs.

        Args:
            pair: ``[B, 2 C, *shape]``, the channels of the moving images first.
            network: stays as it is.
            structures: of the moving and, behind them, of the fixed images, ``[B, 2 K, *shape]``; what they count,
                the weight says.
        """
        begin = time.perf_counter()
        with torch.inference_mode(False), torch.no_grad():
            pair = plain(pair)
            with mixed_precision(pair.device, self.amp):
                parts = network.parts(pair)
            moving, fixed, state = parts["moving"], parts["fixed"], parts["state"]
            fit = self._refine(network, moving, fixed, state, structures if self.structures > 0 else None)
            transform = network.transform(fit.state, moving)
            one_pass = network.transform(state, moving)
            start = self.similarity(moving, fixed)
        seconds = (time.perf_counter() - begin) / len(pair)
        return PairResult(transform, seconds, one_pass, moving, fixed, fit, start)

    def _refine(
        self, network: PairISTN, moving: Tensor, fixed: Tensor, state: tuple[Tensor, ...], structures: Tensor | None
    ) -> Fit:
        together = self.mode == "parameters"
        cases = [slice(None)] if together else [slice(i, i + 1) for i in range(len(moving))]
        fits = []
        for case in cases:
            parameters: Parameters
            if together:
                parameters = network.transformation.resume(state, network.grid(moving))
            else:
                images = torch.cat([moving[case], fixed[case]], dim=1)
                build = network.transformation.build(network.grid(moving))
                parameters = NetworkWeights(network.predictor(moving), images, self.learning_rate, build, self.amp)
            mine = [] if structures is None else [self._structure_pair(structures[case])]
            objectives = [self._objective(moving[case], fixed[case], sigma, mine) for sigma in (*self.smoothing, 0.0)]
            few = together and all(tensor.ndim == 2 for tensor in state)  # no field
            method = QuasiNewton if few else Adam
            fits.append(optimise(parameters, objectives[0], self._phases(objectives), self.settling, method))
        return Fit.cat(fits)

    def _structure_pair(self, structures: Tensor) -> Pair:
        moving, fixed = split_pair(plain(structures))
        return Pair(moving, fixed, squared_error, weight=self.structures)

    def _objective(self, moving: Tensor, fixed: Tensor, sigma: float, more: Sequence[Pair]) -> Objective:
        if sigma > 0:
            moving, fixed = _smoothed(moving, sigma), _smoothed(fixed, sigma)
        return Objective([Pair(moving, fixed, self.similarity), *more], self.regulariser)

    def _phases(self, objectives: Sequence[Objective]) -> list[Phase]:
        """A phase for each objective, the last of which has the iterations that division leaves over."""
        share = self.iterations // len(objectives)

        def change(objective: Objective) -> Retarget:
            return lambda transform: (objective, torch.ones(len(transform), dtype=torch.bool))

        last = self.iterations - share * (len(objectives) - 1)
        counts = [*[share] * (len(objectives) - 1), last]
        return [
            Phase(count, self.regularisation, change(objective) if number else None)
            for number, (count, objective) in enumerate(zip(counts, objectives, strict=True))
        ]


def _smoothed(image: Tensor, sigma: float) -> Tensor:
    """An image ``[B, C, *shape]`` averaged by a Gaussian; what lies beyond the border does not count."""
    average = GaussianFilter(image.ndim - 2, sigma).to(image.device)
    smoothed: Tensor = average(image) / average(torch.ones_like(image))
    return smoothed
