# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""The objective of training (Atlas-ISTN, eq. 10-14 and 24)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from monai.losses import DiceLoss
from torch import Tensor, nn

from ..errors import InputError
from ..networks import AtlasISTN
from ..registration.objective import Objective, Pair
from ..registration.similarity import squared_error

__all__ = ["AtlasISTNLoss", "check_finite", "dice_cross_entropy"]


def dice_cross_entropy(prediction: Tensor, target: Tensor) -> Tensor:
    """Per-case sum ``[B]`` of soft Dice loss (foreground) and cross-entropy of probabilities, as of a softmax."""
    overlap = DiceLoss(include_background=False, reduction="none")(prediction, target).flatten(1).mean(dim=1)
    # The small constant bounds the loss where a probability underflows.
    cross_entropy = -(target * (prediction + 1e-6).log()).sum(dim=1).flatten(1).mean(dim=1)
    return overlap + cross_entropy


class AtlasISTNLoss(nn.Module):
    """``L = Ls + ω (La2s + Ls2a + λ Lreg)`` (14), with ω fading in as a logistic curve of the epoch (24).

    A network without ITN has no Ls, one without STN has nothing else.

    Args:
        network: the network being trained; its atlas and transformation model are read, its weights are not.
        segmentation_loss: Ls, per-case error ``[B]`` of the ITN's prediction and the labelmap; (10) by default.
        regularisation: λ on voxel-unit gradients. The papers' λ on normalised coordinates equals λ (2 / (N − 1))² here.
        stiff_regularisation: λ of the first epoch, from which it falls to its own, each epoch by the same factor. The
            affine map is so learned first, and a small λ does not let the first steps sweep the atlas out of the image,
            whence no gradient leads back. None: λ from the start, as in the paper.
        stiff_epochs: epochs until λ is its own.
        deformation_weight: final value of ω.
        fade_in_epoch: epoch t0 at which ω is half its final value; 0 gives the full weight from the start.
        fade_in_width: epochs over which ω rises, 25 in the paper.
        segmentation_weight: factor on Ls; 0 leaves it out.
        supervision: shares of Ls of the predictions that the ITN yields in training, the one that counts first; they
            are made to sum to 1. One prediction needs none.

    Attributes:
        epoch: current epoch, set by the trainer's schedule.
        terms: the terms of the last call, averaged over the batch, detached; for logging.
    """

    def __init__(
        self,
        network: AtlasISTN,
        segmentation_loss: Callable[[Tensor, Tensor], Tensor] = squared_error,
        regularisation: float = 0.5,
        stiff_regularisation: float | None = None,
        stiff_epochs: float = 0,
        deformation_weight: float = 1.0,
        fade_in_epoch: float = 0,
        fade_in_width: float = 25.0,
        segmentation_weight: float = 1.0,
        supervision: Sequence[float] = (1.0,),
    ) -> None:
        super().__init__()
        self.network = network
        self.segmentation_loss = segmentation_loss
        self.regularisation = regularisation
        self.stiff_regularisation = stiff_regularisation
        self.stiff_epochs = stiff_epochs
        self.deformation_weight = deformation_weight
        self.fade_in_epoch = fade_in_epoch
        self.fade_in_width = fade_in_width
        self.segmentation_weight = segmentation_weight
        self.supervision = tuple(supervision)
        self.epoch = 0
        self.terms: dict[str, Tensor] = {}

    @property
    def omega(self) -> float:
        """Current weight ω of the deformation terms."""
        if self.fade_in_epoch <= 0:
            return self.deformation_weight
        return self.deformation_weight / (1.0 + math.exp(-(self.epoch - self.fade_in_epoch) / self.fade_in_width))

    @property
    def strength(self) -> float:
        """Current weight λ of the regularisation."""
        if not self.stiff_regularisation or self.epoch >= self.stiff_epochs:
            return self.regularisation
        fraction = self.epoch / self.stiff_epochs
        return float(self.stiff_regularisation ** (1.0 - fraction) * self.regularisation**fraction)

    @property
    def schedules(self) -> dict[str, float]:
        """What of the objective changes from epoch to epoch."""
        return {"omega": self.omega, "lambda": self.strength}

    def forward(self, output: dict[str, Tensor], labels: Tensor) -> Tensor:
        """Loss of a batch.

        Args:
            output: what `JointForward` returns.
            labels: soft one-hot labelmaps ``[B, Nc, *shape]``.

        Raises:
            InputError: an output or a term is not finite.
        """
        check_finite(output, self.epoch)  # before they are warped with: in places that are no numbers
        terms: dict[str, Tensor] = {}
        if "velocity" in output:
            transform = self.network.transform(output["velocity"], output["parameters"])
            atlas = self.network.atlas_labels
            found = Objective([Pair(atlas, labels), Pair(atlas, labels, backward=True)])(transform)
            terms = {"a2s": found.errors[0], "s2a": found.errors[1], "regularisation": found.penalty}
        if "prediction" in output:
            terms["segmentation"] = self._segmentation(output, labels)
        self.terms = {name: value.detach().mean() for name, value in terms.items()}
        check_finite(self.terms, self.epoch)
        weights = {
            "segmentation": self.segmentation_weight,
            "a2s": self.omega,
            "s2a": self.omega,
            "regularisation": self.omega * self.strength,
        }
        return torch.stack([weights[name] * value for name, value in terms.items()]).sum(dim=0).mean()

    def _segmentation(self, output: Mapping[str, Tensor], labels: Tensor) -> Tensor:
        """Ls ``[B]``, of all predictions that the ITN learns from."""
        predictions = output.get("predictions", output["prediction"][:, None])
        if predictions.shape[1] == 1:
            return self.segmentation_loss(predictions[:, 0], labels)
        if predictions.shape[1] != len(self.supervision):
            raise InputError(
                f"supervision: the ITN yields {predictions.shape[1]} predictions in training. Expected a share for "
                f"each, found {list(self.supervision)}."
            )
        errors = [self.segmentation_loss(found, labels) for found in predictions.unbind(dim=1)]
        shares = zip(self.supervision, errors, strict=True)
        return torch.stack([share * error for share, error in shares]).sum(dim=0) / sum(self.supervision)


def check_finite(values: Mapping[str, Tensor], epoch: int) -> None:
    """Refuse outputs or terms of a loss that are not finite.

    Args:
        values: name → tensor.
        epoch: from 0, for the message.

    Raises:
        InputError: some are not.
    """
    finite = torch.stack([value.detach().isfinite().all() for value in values.values()]).tolist()
    names = [name for name, fine in zip(values, finite, strict=True) if not fine]
    if names:
        raise InputError(
            f"epoch {epoch + 1}: {' and '.join(names)} of the training "
            f"{'is' if len(names) == 1 else 'are'} not finite: the training has diverged. The checkpoint of the "
            "last epoch is kept. Choose a lower learning_rate, and look at loss_weights and the images."
        )
