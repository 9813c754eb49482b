# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Test-time refinement of the registration between atlas and predicted segmentation (Atlas-ISTN, eq. 17-20)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..networks import AtlasISTN
from ..registration.descent import Adam
from ..registration.objective import Objective, Pair, Similarity
from ..registration.optimise import Fit, Phase, Settling, optimise
from ..registration.parameters import Build, FreeParameters, NetworkWeights, Parameters
from ..registration.similarity import squared_error
from ..spatial import Transform, mixed_precision
from .adaptation import Adaptation
from .base import Refined, SegmentationInferer, Start, plain
from .result import Course, Result
from .target import TargetPolicy, disagreement

__all__ = ["RefinementInferer"]

_RATES = {"field": 0.1, "weights": 1e-3}
# A field has some dozen steps: it needs moments that soon forget the first of them, and short steps at the end.
_DESCENT: dict[str, dict[str, Any]] = {"field": {"moments": (0.8, 0.97), "end": 0.3}, "weights": {}}
_AFFINE_SHARE = 0.2  # of the rate of a field: the affine parameters are fractions of half the extent, not voxels
_FOREGROUND = 0.01  # probability from which a voxel is foreground for the window of the objective
_MARGIN = 4  # voxels of the window around the foreground: atlas and target, so that what moves stays within
_STIFFER = 10.0  # the stiff λ in units of λ*, by default


class RefinementInferer(SegmentationInferer):
    """Segments images by warping the atlas, with the registration refined for each image.

    The ITN runs once. ``mode="weights"`` is the paper's recipe: the STN's weights are optimised, on a copy, one case
    after another. ``mode="field"`` optimises the velocity field and the affine parameters themselves from the 1-pass
    start; no network runs in the loop, and the cases of a batch are refined together but independently of each other.
    Either way the best iterate of each case is kept, the optimisation stops when the objective has settled, and neither
    the network nor the inferer keeps any state, so the order of cases changes nothing.

    Args:
        mode: ``"field"`` or ``"weights"``.
        iterations: largest number K of Adam steps; 0 returns the 1-pass.
        learning_rate: Adam's step size; default 1e-3 for weights, 0.1 (voxels of the velocity grid) for fields.
        atlas_weight: β*, weight of the atlas → subject term.
        subject_weight: γ*, weight of the subject → atlas term.
        regularisation: λ*.
        similarity: per-case error of two labelmaps; `RobustError` does not chase outliers.
        stiff_fraction: share of the iterations with the stiff λ in place of λ*: the atlas first moves as a whole, and
            bends later.
        stiff_regularisation: the stiff λ, no less than λ*; default 10 λ*. Given, it makes the limits of the trust hold
            whatever λ* is.
        confidence: see `TargetPolicy`.
        trust: see `TargetPolicy`; the fallback is the 1-pass, in which the STN has judged.
        adaptation: of an ITN that wavers, to the image; None: never.
        tolerance: a case has settled when its objective improved by less than this fraction over `patience` iterations.
        patience: see `tolerance`.
        amp: run the convolutions in bf16.

    Raises:
        InputError: an unknown mode, no direction with a weight, or what `TargetPolicy` refuses.
    """

    def __init__(
        self,
        mode: str = "field",
        iterations: int = 50,
        learning_rate: float | None = None,
        atlas_weight: float = 1.0,
        subject_weight: float = 0.0,
        regularisation: float = 0.5,
        similarity: Similarity = squared_error,
        stiff_fraction: float = 0.5,
        stiff_regularisation: float | None = None,
        confidence: float = 0.0,
        trust: Sequence[float] | None = None,
        adaptation: Adaptation | None = None,
        tolerance: float = 2e-3,
        patience: int = 10,
        amp: bool = False,
    ) -> None:
        if mode not in _RATES:
            raise InputError(f'refine_mode must be "field" or "weights", got "{mode}".')
        if atlas_weight <= 0 and subject_weight <= 0:
            raise InputError("refine_weights: beta or gamma must be positive; without both there is nothing to refine.")
        super().__init__()
        self.mode = mode
        self.iterations = iterations
        self.learning_rate = learning_rate
        self.atlas_weight = atlas_weight
        self.subject_weight = subject_weight
        self.regularisation = regularisation
        self.similarity = similarity
        self.stiff_fraction = stiff_fraction
        self.stiff_regularisation = stiff_regularisation
        self.policy = TargetPolicy(confidence, trust)
        self.adaptation = adaptation
        self.settling = Settling(tolerance, patience)
        self.amp = amp

    def infer(self, image: Tensor, network: AtlasISTN) -> Result:
        """Segment a batch, and keep the ITN's, the 1-pass and the refined result with the transforms."""
        begin = time.perf_counter()
        with torch.inference_mode(False), torch.no_grad():
            image = plain(image)
            start = self.start(image, network)
            one_pass = network.transform(start.velocity, start.parameters).to_fixed(network.atlas_labels)
            target = self.policy.sharpened(start.prediction)
            refined = self._refine(network, start, target, self.mode, self.regularisation, one_pass)
            segmentation = refined.transform.to_fixed(network.atlas_labels) if self.iterations else one_pass
        seconds = (time.perf_counter() - begin) / len(image)
        adapted = () if start.adapted is None else tuple(start.adapted.tolist())
        return Result(
            segmentation, seconds, start.prediction, one_pass, refined.transform, refined.course, adapted=adapted
        )

    def start(self, image: Tensor, network: AtlasISTN) -> Start:
        """Return the network's prediction and 1-pass for images ``[B, C, *shape]``, adapted where that is wanted."""
        start = self._look(image, network)
        return self.adaptation(network, image, start, self._look, self.amp) if self.adaptation else start

    def _look(self, image: Tensor, network: AtlasISTN) -> Start:
        with mixed_precision(image.device, self.amp):
            prediction = network.segment(image)
            return Start(prediction, *network.register(prediction))

    def fit(self, network: AtlasISTN, start: Start, target: Tensor, regularisation: float | None = None) -> Refined:
        """Register the atlas to given labelmaps, which are believed, as when an atlas is built.

        Another λ than the inferer's own is for fields: what it is raised for, folds and topology, wants little change.

        Args:
            network: holds the atlas.
            start: where to begin.
            target: soft labelmaps ``[B, Nc, *shape]``.
            regularisation: in place of λ*.
        """
        mode = self.mode if regularisation is None else "field"
        weight = self.regularisation if regularisation is None else regularisation
        with torch.no_grad():
            return self._refine(network, start, target, mode, weight)

    def _refine(
        self,
        network: AtlasISTN,
        start: Start,
        target: Tensor,
        mode: str,
        regularisation: float,
        fallback: Tensor | None = None,
    ) -> Refined:
        """Fit to ``target`` or, where it is not to be trusted, to ``fallback``."""
        # A linear output layer overshoots; beyond what a labelmap can be there is nothing to fit.
        target = target.clamp(0.0, 1.0)
        build = _build(network)
        cases = [slice(None)] if mode == "field" else [slice(i, i + 1) for i in range(len(target))]
        fits, aims = [], []
        method = partial(Adam, steps=self.iterations, **_DESCENT[mode])
        for case in cases:
            aim = _Aim(self, network, target[case], None if fallback is None else fallback[case])
            phases = self._phases(regularisation, aim)
            parameters = self._parameters(mode, network, start[case], build)
            begin = build(start[case].velocity, start[case].parameters)
            fits.append(optimise(parameters, aim.objective(begin), phases, self.settling, method))
            aims.append(aim)
        fit = Fit.cat(fits)
        targets, trusts, found = (
            torch.cat([getattr(aim, name) for aim in aims]) for name in ("target", "trust", "disagreement")
        )
        course = Course(targets, trusts, fit.loss, fit.curve, fit.iterations, found)
        return Refined(build(*fit.state), course)

    def _parameters(self, mode: str, network: AtlasISTN, start: Start, build: Build) -> Parameters:
        rate = _RATES[mode] if self.learning_rate is None or mode != self.mode else self.learning_rate
        if mode == "field":
            return FreeParameters((start.velocity, start.parameters), (rate, _AFFINE_SHARE * rate), build)
        return NetworkWeights(_Registration(network), start.prediction, rate, build, self.amp)

    def _phases(self, regularisation: float, aim: _Aim) -> list[Phase]:
        stiff = self.stiff_regularisation or _STIFFER * regularisation
        count = round(self.stiff_fraction * self.iterations)
        return [
            Phase(count, max(stiff, regularisation)),
            Phase(self.iterations - count, regularisation, None if aim.fallback is None else aim.reconsider),
        ]

    def objective(self, network: AtlasISTN, target: Tensor, moved: Tensor) -> Objective:
        """Return L* without its regulariser's weight: β* La2s* + γ* Ls2a* (17-19).

        Args:
            network: holds the atlas.
            target: soft labelmaps ``[B, Nc, *shape]``.
            moved: the atlas on them, as far as it is registered; what lies far from the foreground of both is left out.
        """
        weights = {False: self.atlas_weight, True: self.subject_weight}
        pairs = [
            Pair(network.atlas_labels, target, self.similarity, weight, backward)
            for backward, weight in weights.items()
            if weight > 0
        ]
        return Objective(pairs, window=_window(torch.cat([target, moved])))


class _Registration(nn.Module):
    """From labelmaps to velocity and raw affine parameters, in all passes of the STN; the ITN learns nothing of it."""

    def __init__(self, network: AtlasISTN) -> None:
        super().__init__()
        self.network = network

    def forward(self, subject: Tensor) -> tuple[Tensor, Tensor]:
        return self.network.register(subject)


class _Aim:
    """The target of a fit, which is thought over once the atlas has been moved as a whole."""

    def __init__(self, inferer: RefinementInferer, network: AtlasISTN, target: Tensor, fallback: Tensor | None) -> None:
        self.inferer = inferer
        self.network = network
        self.target = target
        self.fallback = fallback
        self.trust = torch.ones(len(target), device=target.device)
        self.disagreement = torch.full_like(self.trust, torch.nan)

    def objective(self, transform: Transform) -> Objective:
        return self.inferer.objective(self.network, self.target, transform.to_fixed(self.network.atlas_labels))

    def reconsider(self, transform: Transform) -> tuple[Objective | None, Tensor]:
        """Put the fallback in the place of what is not believed."""
        policy, fallback = self.inferer.policy, cast(Tensor, self.fallback)
        self.disagreement = disagreement(self.target, transform.to_fixed(self.network.atlas_labels))
        self.trust = policy.believed(self.disagreement)
        if policy.trust is None:
            return None, self.trust < 1.0
        self.target = policy.mixed(self.target, fallback, self.trust)
        return self.objective(transform), self.trust < 1.0


def _build(network: AtlasISTN) -> Build:
    """Makes transforms of velocity and raw affine parameters; a closed gate keeps the affine part out."""
    return lambda velocity, parameters: network.transform(velocity, parameters * network.affine_gate)


def _window(labels: Tensor) -> list[slice]:
    """The box around the foreground of soft labelmaps ``[B, Nc, *shape]``, with a margin for what still moves."""
    foreground = (labels[:, 1:].amax(dim=(0, 1)) > _FOREGROUND).nonzero()
    if not len(foreground):
        return [slice(None)] * (labels.ndim - 2)
    first, last = foreground.amin(dim=0).tolist(), foreground.amax(dim=0).tolist()
    return [slice(max(low - _MARGIN, 0), high + 1 + _MARGIN) for low, high in zip(first, last, strict=True)]
