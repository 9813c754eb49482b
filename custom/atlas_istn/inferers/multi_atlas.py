# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Multi-atlas segmentation: several atlases are registered to each image, and their labels fused."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from ..fusion.atlases import WarpedAtlases
from ..fusion.base import LabelFusion
from ..networks import AtlasISTN
from ..registration.objective import Pair, Similarity
from ..registration.register import Registration
from ..registration.similarity import SoftDice, correlation
from ..registration.transformations import Grid
from ..spatial import compose_displacements, jacobian_determinant, label_indices, warp
from .base import SegmentationInferer, plain
from .fused_target import LearnedAtlas
from .model_registration import ModelRegistration
from .registered import Registered, WarpCache
from .result import AtlasMaps, AtlasNote, Result
from .segmenters import SeesImages

__all__ = ["AtlasSet", "MultiAtlasInferer"]


class AtlasSet(nn.Module):
    """Images with labels that stand in the place of a network. Until `fill` is called, or a state loaded, it has none.

    Args:
        spatial_size: shape of the grid on which they are.
        num_classes: with the background.
        spacing: voxel size of the grid in millimetres.
        names: of the atlases that a state dict has.
        in_channels: of these.

    Attributes:
        names: of the atlases.
        sources: file of the image of each.
        images: ``[N, C, *shape]``.
        labels: class indices ``[N, *shape]``.
        atlas_labels: share of the atlases with each label, ``[1, Nc, *shape]``.
        atlas_image: their mean, ``[1, C, *shape]``.
    """

    images: Tensor
    labels: Tensor
    atlas_labels: Tensor
    atlas_image: Tensor
    stn: Any
    locator: Any

    def __init__(
        self,
        spatial_size: Sequence[int],
        num_classes: int,
        spacing: Sequence[float],
        names: Sequence[str] = (),
        in_channels: int = 1,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.spacing = tuple(spacing)
        self.names = tuple(names)
        self.sources = ("",) * len(names)
        self.stn = self.locator = None
        self.register_buffer("images", torch.zeros(len(names), in_channels, *spatial_size))
        self.register_buffer("labels", torch.zeros(len(names), *spatial_size, dtype=torch.int16))
        self.register_buffer("atlas_labels", torch.zeros(1, num_classes, *spatial_size))
        self.register_buffer("atlas_image", torch.zeros(1, in_channels, *spatial_size))

    def fill(self, names: Sequence[str], images: Tensor, labels: Tensor, sources: Sequence[str] = ()) -> None:
        """Take in the atlases, on the device of those that it had.

        Args:
            names: of them.
            images: ``[N, C, *shape]``.
            labels: class indices ``[N, *shape]``.
            sources: file of each image; by default none is known.
        """
        device = self.labels.device
        self.names = tuple(names)
        self.sources = tuple(sources or [""] * len(names))
        self.images, self.labels = images.to(device), labels.to(device, torch.int16)
        shares = [(self.labels == index).float().mean(dim=0) for index in range(self.num_classes)]
        self.atlas_labels = torch.stack(shares)[None]
        self.atlas_image = self.images.mean(dim=0, keepdim=True)

    def show(self, learned: AtlasISTN) -> None:
        """Be the atlas of a model to those who write or draw the atlas of a run."""
        self.stn, self.locator = learned.stn, learned.locator
        self.atlas_labels, self.atlas_image = learned.atlas_labels, learned.atlas_image

    def subset(self, indices: Sequence[int]) -> AtlasSet:
        """Return a set of some of the atlases."""
        some = AtlasSet(self.labels.shape[1:], self.num_classes, self.spacing).to(self.labels.device)
        names, sources = ([texts[index] for index in indices] for texts in (self.names, self.sources))
        some.fill(names, self.images[list(indices)], self.labels[list(indices)], sources)
        return some


class _Warped(NamedTuple):
    """Where atlases went: indices ``[n]``, displacement ``[n, dim, *shape]``, and their images there."""

    chosen: Tensor
    displacement: Tensor
    images: Tensor


class _Segmented(NamedTuple):
    """Of one image: posterior ``[Nc, *shape]``, notes, and the fields of `AtlasMaps`, of a batch that is left out."""

    soft: Tensor
    notes: tuple[AtlasNote, ...]
    labels: Tensor
    agreement: Tensor
    winner: Tensor


class MultiAtlasInferer(SegmentationInferer):
    """Segments images by atlases: affine, choice of the most similar, deformable, refinement, fusion.

    All maps of an atlas are composed, and applied once to its image and its manual labels.

    Args:
        affine: its transformation is `Affine`.
        fusion: of the labels.
        deformable: its transformation is a `Deformation` behind an affine one, and begins where `affine` ended; None
            for none.
        refinement: of the registered images, see MAS-refine, eq. (3); its transformation is a `Deformation` alone.
        segmenter: of a network, whose soft labelmaps the refinement compares (IS); None for the images alone (I).
        label_weight: α of these.
        label_similarity: of these; as eq. (5) prints it by default.
        atlases: how many of the most similar are taken; 0 for all.
        similarity: error of atlas and target behind the affine map, by which they are chosen.
        at_once: atlases that are registered at a time; the working memory grows with it.
        predicted: registers in place of `affine` and `deformable`.
        learned: the atlas of a model, registered to the fused labels; None for the fused labels themselves.
        maps: keep where atlases agree, and which decides.
        cache: of registered atlases.
    """

    def __init__(
        self,
        affine: Registration,
        fusion: LabelFusion,
        deformable: Registration | None = None,
        refinement: Registration | None = None,
        segmenter: SeesImages | None = None,
        label_weight: float = 3.0,
        label_similarity: Similarity | None = None,
        atlases: int = 0,
        similarity: Similarity = correlation,
        at_once: int = 10,
        predicted: ModelRegistration | None = None,
        learned: LearnedAtlas | None = None,
        maps: bool = False,
        cache: WarpCache | None = None,
    ) -> None:
        super().__init__()
        self.affine = affine
        self.fusion = fusion
        self.deformable = deformable
        self.refinement = refinement
        self.segmenter = segmenter
        self.label_weight = label_weight
        self.label_similarity = label_similarity or SoftDice(half=True)
        self.atlases = atlases
        self.similarity = similarity
        self.at_once = at_once
        self.predicted = predicted
        self.learned = learned
        self.maps = maps
        self.cache = cache

    def infer(self, image: Tensor, network: Any) -> Result:
        """Segment images ``[B, C, *shape]`` by an `AtlasSet`, one after another.

        The result's segmentation is the posterior of each label or, where a learned atlas is registered to it, that
        atlas, and the posterior stands in the place of an ITN's prediction. The notes tell of each atlas.
        """
        begin = time.perf_counter()
        atlases = cast(AtlasSet, network)
        with torch.inference_mode(False), torch.no_grad():
            found = [self._segment(one[None], atlases) for one in plain(image)]
        soft, notes, labels, agreement, winner = zip(*found, strict=True)
        fused = torch.stack(soft)
        result = self.learned(image, fused) if self.learned else Result(fused, 0.0)
        maps = AtlasMaps(torch.stack(labels), torch.stack(agreement), torch.stack(winner)) if self.maps else None
        seconds = (time.perf_counter() - begin) / len(image)
        return replace(result, seconds=seconds, atlases=tuple(notes), maps=maps)

    def warp(self, image: Tensor, atlases: AtlasSet, source: str = "") -> Registered:
        """Warp atlases onto one image, or take them from the cache.

        Args:
            image: ``[1, C, *shape]``.
            atlases: to register.
            source: file of the image, if a segmenter may have been trained with it.
        """
        if not self.cache:
            return self._warp(image, atlases, source)
        sources = (source, *atlases.sources) if self.segmenter else ()
        path = self.cache.path(sources, image, atlases.images, atlases.labels)
        registered = self.cache.read(path, image)
        if not registered:
            registered = self._warp(image, atlases, source)
            self.cache.write(path, registered)
        return registered

    def _warp(self, image: Tensor, atlases: AtlasSet, source: str) -> Registered:
        warped = self._register(image, atlases, source)
        labels = torch.stack(
            [
                _warp_labels(atlases.labels[index], displacement[None], atlases.num_classes)
                for index, displacement in zip(warped.chosen, warped.displacement, strict=True)
            ]
        )
        folds = [(jacobian_determinant(one[None]) <= 0).float().mean() for one in warped.displacement]
        return Registered(WarpedAtlases(labels, warped.images, image[0]), warped.chosen, torch.stack(folds))

    def _segment(self, image: Tensor, atlases: AtlasSet) -> _Segmented:
        warped, chosen, folded = self.warp(image, atlases)
        fused = self.fusion(warped)
        soft = image.new_zeros(atlases.num_classes, *warped.shape)
        soft[fused.values.long()] = fused.soft()
        likeness = 1.0 - correlation(cast(Tensor, warped.images), image)
        won = fused.winner.flatten()[fused.voxels]
        notes = [
            AtlasNote(
                atlases.names[index],
                float(likeness[k]),
                _dice(warped.labels[k], fused.labels),
                float((won == k).sum()) / max(len(won), 1),
                float(folded[k]),
            )
            for k, index in enumerate(chosen.tolist())
        ]
        return _Segmented(soft, tuple(notes), warped.labels, fused.agreement[None], fused.winner[None] + 1)

    def _register(self, image: Tensor, atlases: AtlasSet, source: str) -> _Warped:
        everyone = torch.arange(len(atlases.images), device=image.device)
        parts = []
        for index in everyone.split(self.at_once):
            displacement, parameters = self._begin(atlases.images[index], image, atlases.spacing)
            images = warp(atlases.images[index], displacement)
            parts.append((parameters, self.similarity(images, image), displacement, images))
        parameters, error, displacement, images = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        chosen = error.argsort(stable=True)[: self.atlases or None].sort().values
        begun = _Warped(chosen, displacement[chosen], images[chosen])
        if (self.deformable is None or self.predicted) and self.refinement is None:
            return begun
        bent = [
            self._deform(image, atlases, part, parameters[part], _part(begun, place), source)
            for place, part in zip(
                torch.arange(len(chosen)).split(self.at_once), chosen.split(self.at_once), strict=True
            )
        ]
        return _Warped(chosen, *(torch.cat(tensors) for tensors in zip(*bent, strict=True)))

    def _begin(self, moving: Tensor, image: Tensor, spacing: Sequence[float]) -> tuple[Tensor, Tensor]:
        """The first displacements of some atlases, and their raw affine parameters, of the network's nothing."""
        if self.predicted:
            return self.predicted(moving, image), moving.new_zeros(len(moving), 0)
        transform, fit = self.affine(moving, image, spacing)
        return transform.moving_to_fixed(), fit.state[0]

    def _deform(
        self, image: Tensor, atlases: AtlasSet, chosen: Tensor, parameters: Tensor, start: _Warped, source: str
    ) -> tuple[Tensor, Tensor]:
        """Displacement and images of some atlases behind what follows the first maps."""
        displacement, images = start.displacement, start.images
        original, spacing = atlases.images[chosen], atlases.spacing
        if self.deformable is not None and not self.predicted:
            grid = Grid(tuple(image.shape[2:]), spacing, image.device)
            field = self.deformable.transformation.initial(len(chosen), grid)[0]
            transform, _ = self.deformable(original, image, spacing, start=(field, parameters))
            displacement = transform.moving_to_fixed()
            images = warp(original, displacement)
        if self.refinement is not None:
            others = []
            if self.segmenter is not None:
                sources = [atlases.sources[index] for index in chosen.tolist()]
                predictions = self.segmenter(images, sources), self.segmenter(image, [source])
                others = [Pair(*predictions, similarity=self.label_similarity, weight=self.label_weight)]
            transform, _ = self.refinement(images, image, spacing, others=others)
            displacement = compose_displacements(transform.moving_to_fixed(), displacement)
            images = warp(original, displacement)
        return displacement, images


def _part(warped: _Warped, place: Tensor) -> _Warped:
    return _Warped(*(tensor[place] for tensor in warped))


def _warp_labels(labels: Tensor, displacement: Tensor, num_classes: int) -> Tensor:
    """Class indices ``[*shape]`` of one atlas, moved by the most of a linear interpolation."""
    channels = one_hot(labels.long(), num_classes).movedim(-1, 0)[None].float()
    return label_indices(warp(channels, displacement))[0]


def _dice(first: Tensor, second: Tensor) -> float:
    """Dice of two labelmaps, mean over the labels of the second."""
    values = [value for value in second.unique().tolist() if value > 0]
    both = [((first == value), (second == value)) for value in values]
    found = [2 * float((a & b).sum()) / float(a.sum() + b.sum()) for a, b in both]
    return sum(found) / len(found) if found else float("nan")
