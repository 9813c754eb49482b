# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Test-time refinement of the registration between atlas and predicted segmentation (Atlas-ISTN, eq. 17-20)."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from monai.inferers import Inferer
from monai.metrics import DiceMetric
from monai.networks import one_hot
from torch import Tensor

from ..errors import InputError
from ..networks import AtlasISTN
from ..spatial import Transform
from ..training.losses import registration_terms, squared_error

__all__ = ["Refinement", "RefinementInferer", "Start", "disagreement"]

Start = tuple[Tensor, Tensor, Tensor]
"""The ITN's prediction ``[B, Nc, *shape]``, velocity ``[B, dim, *half]`` and raw affine parameters ``[B, P]``."""


@dataclass(frozen=True)
class Refinement:
    """Everything that the inference of a batch yields.

    Attributes:
        segmentation: refined soft labelmap ``ya ∘ Φ*⁻¹``, ``[B, Nc, *shape]``.
        prediction: the ITN's output ŷ, ``[B, Nc, *shape]``.
        one_pass: 1-pass soft labelmap, ``[B, Nc, *shape]``.
        target: what the atlas was registered to, ``[B, Nc, *shape]``: ŷ sharpened, or less of it where `trust` is low.
        trust: how far ŷ was believed, from 0 to 1, ``[B]``.
        transform: the refined transform.
        loss: objective L* of the transform, ``[B]``.
        loss_curve: objective L* per iteration and case, ``[K + 1, B]``; row 0 is the 1-pass.
        iterations: iterations until each case had settled, ``[B]``.
        seconds: wall time per case, network included.
    """

    segmentation: Tensor
    prediction: Tensor
    one_pass: Tensor
    target: Tensor
    trust: Tensor
    transform: Transform
    loss: Tensor
    loss_curve: Tensor
    iterations: Tensor
    seconds: float

    def outputs(self) -> dict[str, Tensor]:
        """Tensors over the batch, under the keys of an `AtlasEvaluator`'s output."""
        return {
            "pred": self.segmentation,
            "itn": self.prediction,
            "one_pass": self.one_pass,
            "velocity": self.transform.velocity,
            "affine": self.transform.affine,
            "loss_before": self.loss_curve[0],
            "loss_after": self.loss,
            "trust": self.trust,
            "loss_curve": self.loss_curve.T,
            "iterations": self.iterations,
            "seconds": torch.full((len(self.segmentation),), self.seconds),
        }


class RefinementInferer(Inferer):
    """Segments images by warping the atlas, with the registration refined for each image.

    The ITN runs once. ``mode="weights"`` is the paper's recipe: the STN's weights are optimised, on a copy, one case
    after another. ``mode="field"`` optimises the velocity field and the affine parameters themselves from the 1-pass
    start; no network runs in the loop, and the cases of a batch are refined together but independently of each other.
    Either way the best iterate of each case is kept, the optimisation stops when the objective has settled, and neither
    the network nor the inferer keeps any state, so the order of cases changes nothing.

    Args:
        mode: ``"field"`` or ``"weights"``.
        iterations: largest number K of Adam steps; 0 returns the 1-pass.
        learning_rate: Adam's step size; default 1e-3 for weights, 0.05 (voxels of the velocity grid) for fields.
        atlas_weight: β*, weight of the atlas → subject term.
        subject_weight: γ*, weight of the subject → atlas term.
        regularisation: λ*.
        similarity: per-case error of two labelmaps; `atlas_istn.training.losses.RobustError` does not chase outliers.
        stiff_fraction: share of the iterations with the stiff λ in place of λ*: the atlas first moves as a whole, and
            bends later.
        stiff_regularisation: the stiff λ, no less than λ*; default 10 λ*. Given, it makes the limits of the trust hold
            whatever λ* is.
        confidence: mean probability that the target's labels shall have in the foreground. Where the ITN wavers, as
            under a foreign contrast, the label it decides for has hardly more than the others, and errors of
            probabilities do not tell the atlas of the decision: as much of the labels, one-hot, is mixed into the
            probabilities as it takes. 0 leaves them as they are, as in the paper.
        trust: disagreements, each 1 − Dice, of the ITN's labels and the stiff atlas. Up to the first the ITN is
            believed; from the second on it is not, since no shape near the atlas's looks like that, and the 1-pass, in
            which the STN has judged, takes its place as the target. In between, the target is a mixture. By default the
            ITN is always believed.
        tolerance: a case has settled when its objective improved by less than this fraction over `patience` iterations.
        patience: see `tolerance`.
        amp: run the convolutions in bf16.

    Raises:
        InputError: an unknown mode, no direction with a weight, a confidence that is no probability, or limits
            of the trust that do not rise.
    """

    def __init__(
        self,
        mode: str = "field",
        iterations: int = 50,
        learning_rate: float | None = None,
        atlas_weight: float = 1.0,
        subject_weight: float = 0.0,
        regularisation: float = 0.5,
        similarity: Callable[[Tensor, Tensor], Tensor] = squared_error,
        stiff_fraction: float = 0.5,
        stiff_regularisation: float | None = None,
        confidence: float = 0.0,
        trust: Sequence[float] | None = None,
        tolerance: float = 2e-3,
        patience: int = 10,
        amp: bool = False,
    ) -> None:
        if mode not in ("field", "weights"):
            raise InputError(f'refine_mode must be "field" or "weights", got "{mode}".')
        if atlas_weight <= 0 and subject_weight <= 0:
            raise InputError("refine_weights: beta or gamma must be positive; without both there is nothing to refine.")
        if trust is not None and not (len(trust) == 2 and 0 <= trust[0] < trust[1]):
            raise InputError(f"refine_trust must be two rising numbers from 0, or null, got {trust}.")
        if not 0.0 <= confidence <= 1.0:
            raise InputError(f"refine_confidence must lie between 0 and 1, got {confidence}.")
        super().__init__()
        self.mode = mode
        self.iterations = iterations
        self.learning_rate = learning_rate or {"field": 0.05, "weights": 1e-3}[mode]
        self.atlas_weight = atlas_weight
        self.subject_weight = subject_weight
        self.regularisation = regularisation
        self.similarity = similarity
        self.stiff_fraction = stiff_fraction
        self.stiff_regularisation = stiff_regularisation
        self.confidence = confidence
        self.trust = trust
        self.tolerance = tolerance
        self.patience = patience
        self.amp = amp

    def __call__(self, inputs: Tensor, network: AtlasISTN, *_: Any, **__: Any) -> Tensor:
        """Refined soft segmentation ``[B, Nc, *shape]`` of images ``[B, C, *shape]``."""
        return self.refine(inputs, network).segmentation

    def refine(self, inputs: Tensor, network: AtlasISTN, start: Start | None = None) -> Refinement:
        """Segment a batch and return the ITN, 1-pass and refined results with the transforms.

        Works under ``no_grad`` and ``inference_mode``.

        Args:
            inputs: images ``[B, C, *shape]``.
            network: the network.
            start: target, velocity and affine parameters to start from, in place of those of the network; this target
                is believed.
        """
        begin = time.perf_counter()
        # Tensors made under inference_mode cannot enter autograd: leave it, and copy what came from it.
        with torch.inference_mode(False), torch.no_grad():
            image = torch.as_tensor(inputs).clone()
            prediction, velocity, parameters = start or self._one_pass(image, network)
            one_pass = network.transform(velocity, parameters).to_subject(network.atlas_labels)
            fallback = one_pass if self.trust and not start else None
            target = prediction if start else _sharpened(prediction, self.confidence)
            fit = self._fit(network, prediction, velocity, parameters, target, fallback)
            transform = network.transform(fit.velocity, fit.parameters)
            segmentation = transform.to_subject(network.atlas_labels) if self.iterations else one_pass
        return Refinement(
            segmentation,
            prediction,
            one_pass,
            fit.target,
            fit.trust,
            transform,
            fit.loss,
            fit.loss_curve,
            fit.iterations,
            (time.perf_counter() - begin) / len(image),
        )

    def fit(self, image: Tensor, network: AtlasISTN, target: Tensor) -> Transform:
        """Refine the registration of a batch to given labelmaps instead of the ITN's, as when an atlas is built.

        Args:
            image: ``[B, C, *shape]``; its 1-pass is the start.
            network: the network.
            target: soft labelmaps ``[B, Nc, *shape]``.
        """
        with torch.no_grad():
            prediction, velocity, parameters = self._one_pass(image, network)
            fit = self._fit(network, prediction, velocity, parameters, target)
            return network.transform(fit.velocity, fit.parameters)

    def _one_pass(self, image: Tensor, network: AtlasISTN) -> Start:
        with torch.autocast(image.device.type, dtype=torch.bfloat16, enabled=self.amp):
            prediction = network.segment(image)
            return prediction, *network.register(prediction)

    def _fit(
        self,
        network: AtlasISTN,
        prediction: Tensor,
        velocity: Tensor,
        parameters: Tensor,
        target: Tensor,
        fallback: Tensor | None = None,
    ) -> _Fit:
        """Fit to ``target`` or, where it is not to be trusted, to ``fallback``."""
        if self.mode == "field":
            return self._fit_field(network, velocity, parameters, target, fallback)
        batches = [batch.split(1) for batch in (prediction, velocity, parameters, target)]
        fallbacks = [None] * len(target) if fallback is None else fallback.split(1)
        return _Fit.cat([self._fit_weights(network, *case) for case in zip(*batches, fallbacks, strict=True)])

    def _fit_field(
        self, network: AtlasISTN, velocity: Tensor, parameters: Tensor, target: Tensor, fallback: Tensor | None
    ) -> _Fit:
        start = velocity, parameters
        velocity, parameters = velocity.clone().requires_grad_(), parameters.clone().requires_grad_()
        gate = network.affine_gate
        rates = [
            {"params": [velocity], "lr": self.learning_rate},
            {"params": [parameters], "lr": self.learning_rate / 5},
        ]
        return self._optimise(network, start, target, fallback, rates, lambda: (velocity, parameters * gate))

    def _fit_weights(
        self,
        network: AtlasISTN,
        prediction: Tensor,
        velocity: Tensor,
        parameters: Tensor,
        target: Tensor,
        fallback: Tensor | None,
    ) -> _Fit:
        start = velocity, parameters
        stn = copy.deepcopy(network.stn).requires_grad_()
        inputs = torch.cat([prediction[:, 1:], network.atlas_labels[:, 1:]], dim=1)
        gate = network.affine_gate

        def propose() -> tuple[Tensor, Tensor]:
            with torch.autocast(prediction.device.type, dtype=torch.bfloat16, enabled=self.amp):
                velocity, parameters = stn(inputs)
            return velocity, parameters * gate

        rates = [{"params": list(stn.parameters()), "lr": self.learning_rate}]
        return self._optimise(network, start, target, fallback, rates, propose)

    def _optimise(
        self,
        network: AtlasISTN,
        start: tuple[Tensor, Tensor],
        target: Tensor,
        fallback: Tensor | None,
        groups: list[dict[str, Any]],
        propose: Callable[[], tuple[Tensor, Tensor]],
    ) -> _Fit:
        optimiser = torch.optim.Adam(groups)
        # A linear output layer overshoots; beyond what a labelmap can be there is nothing to fit.
        target = target.clamp(0.0, 1.0)
        # The 1-pass, which the first iteration evaluates: any objective is better than none.
        best = _Best(start[0].clone(), start[1].clone(), torch.full((len(target),), torch.inf, device=target.device))
        trust = torch.ones(len(target), device=target.device)
        curve: list[Tensor] = []
        settled = torch.full((len(target),), -1, device=target.device)
        bending = round(self.stiff_fraction * self.iterations)  # the iteration in which the atlas begins to bend
        for iteration in range(self.iterations + 1):
            with torch.enable_grad():
                velocity, parameters = propose()
                transform = network.transform(velocity, parameters)
                if iteration == bending and fallback is not None:
                    trust = self._trust(target, transform.detach().to_subject(network.atlas_labels))
                    share = trust.reshape(-1, *[1] * (target.ndim - 1))
                    target = share * target + (1.0 - share) * fallback
                    best.objective[trust < 1.0] = torch.inf  # with another target, what was best is so no more
                terms = registration_terms(
                    transform,
                    network.atlas_labels,
                    target,
                    atlas_to_subject=self.atlas_weight > 0,
                    subject_to_atlas=self.subject_weight > 0,
                    similarity=self.similarity,
                )
                misfit = self.atlas_weight * terms.get("a2s", 0.0) + self.subject_weight * terms.get("s2a", 0.0)
                objective = (misfit + self.regularisation * terms["regularisation"]).detach()
                curve.append(objective)
                best.keep_better(velocity.detach(), parameters.detach(), objective)
                self._mark_settled(settled, curve, iteration - bending)
                if iteration == self.iterations or bool((settled >= 0).all()):
                    break
                optimiser.zero_grad(set_to_none=True)
                weight = self._stiff_weight if iteration < bending else self.regularisation
                # The cases of a batch do not interact: the gradient of a sum, each with its own parameters.
                (misfit + weight * terms["regularisation"]).sum().backward()
            optimiser.step()
        settled[settled < 0] = len(curve) - 1
        return _Fit(best.velocity, best.parameters, target, trust, best.objective, settled, torch.stack(curve))

    @property
    def _stiff_weight(self) -> float:
        return max(self.stiff_regularisation or 10.0 * self.regularisation, self.regularisation)

    def _trust(self, prediction: Tensor, stiff: Tensor) -> Tensor:
        """How far to believe each labelmap of a batch, ``[B]``, by what the stiff atlas makes of it."""
        believed, doubted = self.trust or (1.0, 2.0)
        return ((doubted - disagreement(prediction, stiff)) / (doubted - believed)).clamp(0.0, 1.0)

    def _mark_settled(self, settled: Tensor, curve: list[Tensor], bent: int) -> None:
        if bent < self.patience:
            return
        improved = curve[-1 - self.patience] - curve[-1] > self.tolerance * curve[-1 - self.patience]
        settled[~improved & (settled < 0)] = len(curve) - 1


def disagreement(first: Tensor, second: Tensor) -> Tensor:
    """1 − Dice of the labels of two soft labelmaps ``[B, Nc, *shape]``, mean over the foreground labels, ``[B]``."""
    dice = DiceMetric(include_background=False, ignore_empty=False)(_labels(first), _labels(second))
    return 1.0 - torch.as_tensor(dice).mean(dim=1)


def _sharpened(prediction: Tensor, confidence: float) -> Tensor:
    """As much of its labels mixed into a prediction ``[B, Nc, *shape]`` as gives them the mean probability wanted."""
    labels = _labels(prediction)
    foreground, probabilities = labels[:, 1:].flatten(1), prediction[:, 1:].clamp(0.0, 1.0).flatten(1)
    found = (foreground * probabilities).sum(dim=1) / foreground.sum(dim=1).clamp_min(1.0)
    share = ((confidence - found) / (1.0 - found).clamp_min(1e-6)).clamp(0.0, 1.0)
    return torch.lerp(prediction, labels, share.reshape(-1, *[1] * (prediction.ndim - 1)))


def _labels(soft: Tensor) -> Tensor:
    """The labels of a soft labelmap ``[B, Nc, *shape]``, one-hot and of its type."""
    return one_hot(soft.argmax(dim=1, keepdim=True), soft.shape[1], dtype=soft.dtype)


@dataclass
class _Best:
    """Parameters of each case with the least objective so far."""

    velocity: Tensor
    parameters: Tensor
    objective: Tensor

    def keep_better(self, velocity: Tensor, parameters: Tensor, objective: Tensor) -> None:
        better = objective < self.objective
        self.velocity[better] = velocity[better]
        self.parameters[better] = parameters[better]
        self.objective = torch.minimum(objective, self.objective)


@dataclass(frozen=True)
class _Fit:
    """What the optimisation of a batch ends with; `Refinement` says what the fields are."""

    velocity: Tensor
    parameters: Tensor
    target: Tensor
    trust: Tensor
    loss: Tensor
    iterations: Tensor
    loss_curve: Tensor

    @staticmethod
    def cat(fits: list[_Fit]) -> _Fit:
        """One batch of single cases; shorter loss curves are continued with their last value."""
        length = max(len(fit.loss_curve) for fit in fits)
        curves = [torch.cat([c, c[-1:].expand(length - len(c), -1)]) for c in (fit.loss_curve for fit in fits)]
        joined = {
            field.name: torch.cat([getattr(fit, field.name) for fit in fits])
            for field in fields(_Fit)
            if field.name != "loss_curve"
        }
        return _Fit(**joined, loss_curve=torch.cat(curves, dim=1))
