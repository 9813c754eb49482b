# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Construction of the population atlas during training (Atlas-ISTN, eq. 15-16)."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import ignite.distributed as idist
import torch
import torch.nn.functional as F
from ignite.engine import Engine, Events
from monai.networks.layers import LaplaceFilter
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from ..errors import InputError
from ..inferers.refine import RefinementInferer
from ..io.files import save_tensors, write_whole
from ..networks import AtlasISTN, JointForward
from ..spatial import Transform, compose_affine, decompose_affine
from .handlers import BestModel

__all__ = ["AtlasBuilder", "FinalAtlas"]

logger = logging.getLogger(__name__)

_LEAST_SHARE = 0.1  # of the volume of the labels that registration may leave of them
_LEAST_DISTANCE = 1e-3  # root mean square over a labelmap: bounds the weight of a case that equals the atlas


class AtlasBuilder:
    """Trainer handler that initialises the atlas and moves it at the end of every epoch.

    At the start the atlas (image and labelmap) is the mean of the undeformed training cases. After every epoch the
    unaugmented cases are warped to atlas space in one streaming pass, and ``atlas ← (1 − η) atlas + η mean(z ∘ Φ)``.
    Memory does not grow with the cohort. Under DDP every rank warps its share and the sums are reduced, so all ranks
    hold the same atlas.

    The pass costs up to half as much as the steps of the epoch. With ``parts=4`` each epoch takes every fourth batch,
    in turn; since the atlas forgets slowly, it is still a mean over all cases.

    Nothing in the paper's rule anchors shape and pose of the atlas: they stay where the first epochs leave them.
    ``shape="unbiased"`` keeps the mean of the training transforms at the identity. The mean map atlas → cohort is
    ``Φ̄ = T̄ ∘ exp(v̄)`` with the mean velocity, translation and rotation vector and the geometric mean of the scales; the
    mean of the warped cases is brought to ``z ∘ Φ̄⁻¹`` before it enters the atlas (shape averaging, Guimond et al.
    2000).

    ``average="median"`` weights each case by ``1 / ‖y ∘ Φ − ya‖``. These are Weiszfeld's weights; the fixed point is
    the geometric median of the warped labelmaps (Fletcher et al. 2009), which badly aligned cases blur less.

    ``sharpening`` undoes some of the blur of averaging, as in ANTs' template construction: the mean less its Laplacian
    times this number, which to first order takes back a Gaussian blur of a variance of twice the number, in voxels².

    Args:
        network: the network whose atlas buffers are updated.
        data_loader: unaugmented training cases as ``{"image", "label"}`` batches, each case once.
        rate: η.
        parts: epochs in which each case is warped once; 1 as in the paper.
        amp: run the convolutions of the pass in bf16.
        initial_path: file for the atlas as it was before the first epoch, ``{"image", "labels"}``; none by default.
        shape: ``"paper"`` or ``"unbiased"``.
        average: ``"mean"`` or ``"median"``.
        case: a training case that is the atlas for good, by its name in the batches' ``"case"``; by default there is
            none, and the atlas is built from all.
        sharpening: factor of the Laplacian, 0 to 1; 0 leaves the mean as it is.
        given: the network has an atlas to begin with, that of the model it is trained on from.
        inferer: refines the 1-pass transforms to the cases' own labelmaps before they move the atlas, which the
            differences between both would blur; None as in the paper.

    Raises:
        InputError: an unknown ``shape`` or ``average``, or a ``sharpening`` or ``parts`` out of range.
    """

    def __init__(
        self,
        network: AtlasISTN,
        data_loader: DataLoader,
        rate: float = 0.01,
        parts: int = 1,
        amp: bool = False,
        initial_path: str | None = None,
        shape: str = "paper",
        average: str = "mean",
        case: str = "",
        sharpening: float = 0.0,
        given: bool = False,
        inferer: RefinementInferer | None = None,
    ) -> None:
        _check_choice("atlas_shape", shape, ("paper", "unbiased"))
        _check_choice("atlas_average", average, ("mean", "median"))
        if not 0 <= sharpening <= 1:
            raise InputError(f"atlas_sharpening must lie between 0 and 1, found {sharpening}.")
        if parts < 1:
            raise InputError(f"atlas_parts must be 1 or more, found {parts}.")
        self.network = network
        self.data_loader = data_loader
        self.rate = rate
        self.parts = parts
        self.amp = amp
        self.initial_path = initial_path
        self.shape = shape
        self.average = average
        self.case = case
        self.sharpening = sharpening
        self.given = given
        self.inferer = inferer

    def attach(self, engine: Engine) -> None:
        """Register with a trainer. A resumed run brings its atlas along and is not initialised again."""
        # Not at the start of the run: a checkpoint may be loaded there, after this handler's turn.
        engine.add_event_handler(Events.EPOCH_STARTED(once=1), self.initialise)
        if not self.case:
            engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: self.update(engine.state.epoch))

    def initialise(self) -> None:
        """Set the atlas to the mean of the undeformed cases, or to the one case.

        Raises:
            InputError: there is no such case.
        """
        if not self.given:
            self._set(self._mean(None))
        if self.initial_path and idist.get_rank() == 0:
            atlas = {"image": self.network.atlas_image, "labels": self.network.atlas_labels}
            write_whole(self.initial_path, lambda part: save_tensors(atlas, part))

    def update(self, epoch: int) -> None:
        """Move the atlas towards the mean of the cases, or of this epoch's part, warped by their transforms.

        Args:
            epoch: its number, from 1.
        """
        parts = min(self.parts, len(self.data_loader))
        batches = itertools.islice(self.data_loader, (epoch - 1) % parts, None, parts)
        align = self._one_pass if self.inferer is None else partial(self._refined, self.inferer)
        image, labels = self._mean(align, batches)
        self.network.atlas_image.lerp_(image, self.rate)
        self.network.atlas_labels.lerp_(labels, self.rate)

    def rebuild(self, inferer: RefinementInferer) -> None:
        """Replace the atlas by the mean of the cases warped by transforms refined to their own labelmaps.

        The 1-pass transforms leave the cases some way off each other, and their mean is blurred by as much; a blurred
        atlas limits what refinement can reach at test time.
        """
        with tqdm(total=len(self.data_loader), desc="atlas", disable=idist.get_rank() > 0) as progress:

            def align(image: Tensor, labels: Tensor) -> Transform:
                progress.update()
                return self._refined(inferer, image, labels)

            self._set(self._mean(align))

    def _set(self, atlas: tuple[Tensor, Tensor]) -> None:
        self.network.atlas_image.copy_(atlas[0])
        self.network.atlas_labels.copy_(atlas[1])

    def _one_pass(self, image: Tensor, _: Tensor) -> Transform:
        parts = JointForward(self.network, self.amp)(image)
        return self.network.transform(parts["velocity"], parts["parameters"])

    def _refined(self, inferer: RefinementInferer, image: Tensor, labels: Tensor) -> Transform:
        return inferer.fit(self.network, inferer.start(image, self.network), labels).transform

    @torch.no_grad()
    def _mean(
        self,
        align: Callable[[Tensor, Tensor], Transform] | None,
        batches: Iterable[Mapping[str, Any]] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Mean image and labelmap over the cases of all ranks, each warped by the transform that ``align`` gives.

        Raises:
            InputError: there is no case, or the registration leaves hardly anything of the labels.
        """
        network = self.network
        training = network.training
        network.eval()
        device = network.atlas_labels.device
        channels = network.atlas_image.shape[1]
        # Image and labels are warped together, so every case is resampled once.
        total = torch.zeros_like(torch.cat([network.atlas_image, network.atlas_labels], dim=1)[0])
        weight = torch.zeros((), device=device)
        mean_transform = _MeanTransform()
        volumes = torch.zeros(2, device=device)  # of the labels as they are, and warped
        for batch in self.data_loader if batches is None else batches:
            image, labels = torch.as_tensor(batch["image"]).to(device), torch.as_tensor(batch["label"]).to(device)
            cases = torch.cat([image, labels], dim=1)
            weights = torch.ones(len(cases), device=device)
            if self.case:
                weights = torch.tensor([float(name == self.case) for name in batch["case"]], device=device)
            if align is not None:
                transform = align(image, labels)
                mean_transform.add(transform)
                cases = transform.to_moving(cases)
                volumes += torch.stack([labels[:, 1:].sum(), cases[:, channels + 1 :].sum()])
                if self.average == "median":
                    weights = self._closeness(cases[:, channels:])
            total += torch.einsum("b,bc...->c...", weights, cases)
            weight += weights.sum()
        network.train(training)
        weight = idist.all_reduce(weight)
        if not weight:
            raise InputError(f"atlas_case {self.case}: the training list has no case of this name. Choose one of its.")
        _check_volumes(idist.all_reduce(volumes))
        mean = (idist.all_reduce(total) / weight).unsqueeze(0)
        if align is not None and self.shape == "unbiased":
            mean = mean_transform.result().to_fixed(mean)
        if align is not None and self.sharpening:
            mean = _sharpen(mean, self.sharpening)
            mean[:, channels:] = mean[:, channels:].clamp_min(0.0)
            mean[:, channels:] /= mean[:, channels:].sum(dim=1, keepdim=True)
        return mean[:, :channels], mean[:, channels:]

    def _closeness(self, labels: Tensor) -> Tensor:
        """Weiszfeld's weight ``[B]`` of cases whose labelmaps ``[B, Nc, *shape]`` are in atlas space."""
        distance = (labels - self.network.atlas_labels).square().flatten(1).mean(dim=1).sqrt()
        return 1 / distance.clamp_min(_LEAST_DISTANCE)


class _MeanTransform:
    """Mean of transforms over all ranks in the log domain, one batch after another."""

    def __init__(self) -> None:
        self.velocity: Tensor | float = 0.0
        self.parameters: Tensor | float = 0.0
        self.count = 0
        self.last: Transform | None = None

    def add(self, transform: Transform) -> None:
        self.velocity = self.velocity + transform.velocity.float().sum(dim=0, keepdim=True)
        self.parameters = self.parameters + decompose_affine(transform.affine).sum(dim=0, keepdim=True)
        self.count += len(transform)
        self.last = transform

    def result(self) -> Transform:
        if self.last is None:
            raise InputError("the training list is empty: there is nothing to build an atlas from.")
        count = idist.all_reduce(self.count)
        affine = compose_affine(idist.all_reduce(self.parameters) / count)
        return replace(self.last, field=idist.all_reduce(self.velocity) / count, affine=affine)


def _sharpen(volume: Tensor, amount: float) -> Tensor:
    """``z − amount Δz`` of ``[1, C, *shape]``, with the Laplacian from all neighbours, in 1 / voxel²."""
    dim = volume.ndim - 2
    padded = F.pad(volume, [1, 1] * dim, mode="replicate")
    # MONAI's filter is minus the sum of differences to all neighbours, of which 3^(dim − 1) lie ahead along each axis.
    negative = LaplaceFilter(dim, 3)(padded)[(..., *[slice(1, -1)] * dim)] / 3 ** (dim - 1)
    return volume + amount * negative


def _check_volumes(volumes: Tensor) -> None:
    """Refuse an atlas of labels that lie outside the image: no gradient leads back from there."""
    before, after = volumes.tolist()
    if after < _LEAST_SHARE * before:
        raise InputError(
            f"the STN moves the labels out of the atlas's image: {after / before:.0%} of their volume is left, "
            f"expected at least {_LEAST_SHARE:.0%}. It would not come back. Choose a larger λ for the first epochs "
            "(loss_stiff), or a lower stn_head_rate or learning_rate."
        )


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(f"{name} must be {' or '.join(choices)}, found '{value}'. Choose one of them.")


class FinalAtlas:
    """Trainer handler that, when training is over, rebuilds the best model's atlas from refined registrations.

    Each round starts from a sharper atlas than the one before, and two rounds come close to the limit. The model with
    the new atlas is validated like any other and kept if it is better.

    Args:
        builder: rebuilds the atlas.
        inferer: refines the training cases.
        best: the best model of the epochs; the rebuilds start from it.
        validator: its handlers keep the better model.
        rounds: times that the atlas is rebuilt.
    """

    def __init__(
        self,
        builder: AtlasBuilder,
        inferer: RefinementInferer,
        best: BestModel,
        validator: Engine,
        rounds: int = 2,
    ) -> None:
        self.builder = builder
        self.inferer = inferer
        self.best = best
        self.validator = validator
        self.rounds = rounds

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Rebuild and validate."""
        if self.best.weights:
            self.builder.network.load_state_dict(self.best.weights)
        for number in range(self.rounds):
            logger.info("atlas from refined registrations of the training cases, round %d", number + 1)
            self.builder.rebuild(self.inferer)
        self.validator.run(engine.state.epoch)
