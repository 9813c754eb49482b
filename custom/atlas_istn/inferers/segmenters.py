# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Networks by whose predictions the registration of atlases is refined (MAS-refine: IS)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ..errors import InputError

__all__ = ["Fold", "OutOfFold", "SeesImages", "Segmenter"]


class SeesImages(Protocol):
    """Makes soft labelmaps of images."""

    def __call__(self, images: Tensor, sources: Sequence[str], /) -> Tensor:
        """Return soft labelmaps ``[B, Nc, *shape]``.

        Args:
            images: ``[B, C, *shape]``; they may have been warped.
            sources: the file that each came from; empty for an image that no network was trained with.
        """


class Segmenter:
    """The ITN of a trained model.

    Args:
        itn: the network.
        weights: returns its weights; called when the first image is segmented.
        activation: of its output; None for none.

    Raises:
        InputError: on calling, if the weights are those of another network.
    """

    def __init__(
        self, itn: nn.Module, weights: Callable[[], Mapping[str, Tensor]], activation: nn.Module | None = None
    ) -> None:
        self.itn = itn.eval()
        self.weights = weights
        self.activation = activation or nn.Identity()
        self._ready = False

    def __call__(self, images: Tensor, _: Sequence[str]) -> Tensor:
        """Soft labelmaps, one at a time, wherever the images are from; see `SeesImages`."""
        if not self._ready:
            try:
                self.itn.load_state_dict(dict(self.weights()))
            except RuntimeError as error:
                raise InputError(
                    "segmenter: the model has another network than the configuration describes. Use the data config "
                    f"that it was trained with ({str(error).splitlines()[-1].strip()})."
                ) from error
            self.itn.to(images.device)
            self._ready = True
        with torch.no_grad():
            return torch.cat([self.activation(self.itn(one[None]).float()) for one in images]).clamp(0.0, 1.0)


class Fold(NamedTuple):
    """A training of a cross-validation.

    Attributes:
        name: of it, for messages.
        segment: from images ``[B, C, *shape]`` to soft labelmaps ``[B, Nc, *shape]``.
        sources: the images that it was trained with.
    """

    name: str
    segment: Callable[[Tensor], Tensor]
    sources: Sequence[str]


class OutOfFold:
    """The networks of a cross-validation: each image is seen by those alone that were not trained with it.

    A network's prediction for a case of its own training is better than for any new one, so it says too little of how
    an atlas and a new image differ. What several networks see is averaged.

    Args:
        folds: of the cross-validation, by patient as `plan` makes them.
    """

    def __init__(self, folds: Sequence[Fold]) -> None:
        self.folds = folds
        self._known = [{_place(source) for source in fold.sources} for fold in folds]

    def __call__(self, images: Tensor, sources: Sequence[str]) -> Tensor:
        """Soft labelmaps, one at a time; see `SeesImages`.

        Raises:
            InputError: all networks were trained with an image.
        """
        with torch.no_grad():
            return torch.cat([self._see(one[None], source) for one, source in zip(images, sources, strict=True)])

    def _see(self, image: Tensor, source: str) -> Tensor:
        place = _place(source) if source else ""
        able = [fold for fold, known in zip(self.folds, self._known, strict=True) if place not in known]
        if not able:
            names = ", ".join(fold.name for fold in self.folds)
            raise InputError(
                f"segmenter_folds: every one of {names} was trained with {source}, so none can see it as if it were "
                "new. Give all folds of a cross-validation."
            )
        return torch.stack([fold.segment(image).clamp(0.0, 1.0) for fold in able]).mean(dim=0)


def _place(source: str) -> str:
    return str(Path(source).resolve())
