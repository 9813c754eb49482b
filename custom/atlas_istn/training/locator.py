# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Training of the locator: before the networks, on whole scans at low resolution."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import ignite.distributed as idist
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from ..errors import InputError, message_of
from ..models.loading import read_state
from ..models.provenance import save_model
from ..networks import Locator
from ..spatial import compose_affine, identity_grid, warp

__all__ = ["LocatorTraining", "random_view"]

logger = logging.getLogger(__name__)

Overview = Mapping[str, Tensor]
"""A scan, its foreground and the centre of that, see `atlas_istn.data.localise.Overviewd`."""

_BATCH = 4
_RATE = 3e-3  # of Adam, falling to 0
_FIELD = (0.7, 1.7)  # extent of the field of view along each axis, over the median of the training scans
_TURN = math.radians(25)  # largest component of the rotation vector
_STRETCH = 0.15  # largest logarithm of the change of size
_PLACES = (0.6, 0.8)  # of the views: all of the anatomy is in the field; as the scan has it; the rest anywhere
_LEAST_SHARE = 1e-3  # of the foreground: bounds the weight of its voxels
_NEARBY = 0.1  # weight of the positions of the background near the centre, where that of the foreground is 1
_GAMMA, _NOISE, _SHADE = 0.4, 0.05, 0.3  # logarithm of the exponent, noise and slope over the range of intensities


class LocatorTraining:
    """Trains the locator, before anything else of a training; a resumed run takes what it has learned from a file.

    Each step shows the locator random views of the scans: turned, of another size and contrast, anywhere in a field of
    view that is smaller or larger than the scan, so that anatomy is also cut off or absent.

    Args:
        locator: what is trained, in place; None where scans are no larger than the grid.
        data: the training cases.
        transform: makes an `Overviewd` of one.
        path: file for its weights.
        resume: take them from there, where there are any.
        iterations: steps of the optimisation.
        seed: of all that is random here; nothing else changes by it.
        device: where it is trained.
        quiet: no progress bar.
    """

    def __init__(
        self,
        locator: Locator | None,
        data: Sequence[Any],
        transform: Callable[[Any], Overview],
        path: str,
        resume: bool = False,
        iterations: int = 600,
        seed: int = 0,
        device: torch.device | str = "cpu",
        quiet: bool = False,
    ) -> None:
        self.locator = locator
        self.data = data
        self.transform = transform
        self.path = Path(path)
        self.resume = resume
        self.iterations = iterations
        self.seed = seed
        self.device = device
        self.quiet = quiet

    def __call__(self) -> None:
        """Train on the first process, and give the others what it has learned.

        Raises:
            InputError: cases that cannot be read, all of them; or the file cannot be read or written.
        """
        if self.locator is None:
            return
        self.locator.to(self.device)
        if self.resume and self.path.exists():
            self.locator.load_state_dict(read_state(self.path))
            return
        if idist.get_rank() == 0:
            scans = self._scans()
            with torch.random.fork_rng(), torch.enable_grad():
                torch.manual_seed(self.seed)
                self.fit(scans)
            save_model(self.locator.state_dict(), self.path, {})
        for tensor in self.locator.state_dict().values():
            idist.broadcast(tensor, src=0)

    def _scans(self) -> list[Overview]:
        scans, problems = [], []
        for case in tqdm(self.data, desc="locator: scans", disable=self.quiet):
            try:
                scans.append(self.transform(case))
            except Exception as error:  # whatever a reader or transform raises; all cases are named at once
                problems.append(f"  {case['case']}: {message_of(error)}")
        if problems:
            raise InputError("the cases to train on cannot be used as they are:\n" + "\n".join(problems))
        return scans

    def fit(self, scans: Sequence[Overview]) -> None:
        """Train on scans, and note what their foreground is like."""
        locator = cast(Locator, self.locator)
        _learn_shape(locator, scans)
        self.optimise(scans)
        _learn_volumes(locator, scans)

    def optimise(self, scans: Sequence[Overview]) -> None:
        """Take all steps of the optimisation."""
        locator = cast(Locator, self.locator)
        share = max(float(torch.stack([scan["foreground"].mean() for scan in scans]).mean()), _LEAST_SHARE)
        weights = list(locator.parameters())
        for weight in weights:
            weight.requires_grad_(True)
        optimizer = torch.optim.Adam(weights, lr=_RATE)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, self.iterations, pct_start=0.1)
        progress = tqdm(range(self.iterations), desc="locator", disable=self.quiet)
        for _ in progress:
            shape = _random_shape(scans)
            chosen = torch.randint(len(scans), (_BATCH,)).tolist()
            views = [random_view(scans[index], locator.spacing, shape) for index in chosen]
            image, foreground, positions = (
                torch.stack(part).to(locator.radius.device) for part in zip(*views, strict=True)
            )
            loss = _loss(locator(image), foreground, positions, float(locator.radius), share)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            progress.set_postfix(loss=f"{loss.item():.3f}")
        for weight in weights:
            weight.requires_grad_(False)
            weight.grad = None


def random_view(scan: Overview, spacing: Sequence[float], shape: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Show a scan in another field of view, turned, stretched, and with other intensities.

    Args:
        scan: to be shown.
        spacing: of its voxels, mm.
        shape: voxels of the field of view.

    Returns:
        The image ``[C, *shape]``, the foreground ``[1, *shape]`` and the position ``[dim, *shape]`` of each voxel in
        the anatomy: relative to its centre, before it was turned, mm.
    """
    image, foreground, centre = scan["image"], scan["foreground"], scan["centre"]
    dim, sizes = len(shape), torch.tensor(list(spacing))
    if centre.isnan().any():
        centre = (torch.tensor(image.shape[1:]) - 1) / 2 * sizes
    angles = (torch.rand(1, 1 if dim == 2 else 3) * 2 - 1) * _TURN
    rotation = compose_affine(torch.cat([torch.zeros(1, dim), angles, torch.zeros(1, dim)], dim=1))[0, :, :dim]
    stretch = float(torch.exp((torch.rand(()) * 2 - 1) * _STRETCH))
    place = _random_place(foreground, centre, sizes, shape)
    grid = identity_grid(list(shape), image.device)
    relative = grid * sizes.reshape(1, dim, *[1] * dim) - place.reshape(1, dim, *[1] * dim)
    positions = torch.einsum("ji,bj...->bi...", rotation, relative)
    points = (positions / stretch + centre.reshape(1, dim, *[1] * dim)) / sizes.reshape(1, dim, *[1] * dim)
    beyond = image.flatten(1).amin(dim=1).reshape(-1, *[1] * dim)
    shown = warp(torch.cat([image - beyond, foreground])[None], points - grid, padding_mode="zeros")[0]
    return _other_contrast(shown[:-1]), shown[-1:], positions[0]


def _random_shape(scans: Sequence[Overview]) -> list[int]:
    sizes = torch.tensor([scan["image"].shape[1:] for scan in scans]).float().median(dim=0).values
    low, high = (math.log(factor) for factor in _FIELD)
    factors = torch.exp(low + (high - low) * torch.rand(len(sizes)))
    return [max(4, int(n)) for n in (sizes * factors).round()]


def _random_place(foreground: Tensor, centre: Tensor, sizes: Tensor, shape: Sequence[int]) -> Tensor:
    """Where the centre comes to lie in a field of view, mm."""
    extent = (torch.tensor(list(shape)) - 1) * sizes
    kind, chance = float(torch.rand(())), torch.rand(len(shape))
    if _PLACES[0] <= kind < _PLACES[1]:
        return centre + (extent - (torch.tensor(foreground.shape[1:]) - 1) * sizes) / 2
    places = (foreground[0] > 0.5).nonzero() * sizes
    half = (places - centre).abs().amax(dim=0) if len(places) else torch.zeros(len(shape))
    if kind < _PLACES[0]:
        half = half.minimum(extent / 2)
        return half + chance * (extent - 2 * half)
    return chance * (extent + 2 * half) - half


def _other_contrast(image: Tensor) -> Tensor:
    """An image ``[C, *shape]`` from 0 up, with random exponent, slope and noise."""
    top = image.flatten(1).amax(dim=1).reshape(-1, *[1] * (image.ndim - 1)).clamp_min(1e-6)
    image = (image / top).clamp_min(0) ** float(torch.exp((torch.rand(()) * 2 - 1) * _GAMMA))
    for axis in range(1, image.ndim):
        slope = 1 + (float(torch.rand(())) * 2 - 1) * _SHADE * torch.linspace(-1, 1, image.shape[axis])
        image = image * slope.reshape(-1, *[1] * (image.ndim - 1 - axis))
    return image + torch.randn_like(image) * float(torch.rand(())) * _NOISE


def _loss(output: Tensor, foreground: Tensor, positions: Tensor, radius: float, share: float) -> Tensor:
    """Cross-entropy of foreground and background, and the error of the positions.

    Both classes weigh the same, or thin anatomy, of which no voxel is full at this resolution, would never be seen.
    Their share is that of the scans, not of each view: else the volume that is seen would grow with the field of view.
    """
    logits, places = output[:, :1], output[:, 1:]
    weight = 0.5 * (foreground / share + (1 - foreground) / (1 - share))
    entropy = F.binary_cross_entropy_with_logits(logits, foreground.clamp(0, 1), weight)
    error = F.smooth_l1_loss(places / radius, positions / radius, beta=0.1, reduction="none").sum(dim=1, keepdim=True)
    near = foreground + _NEARBY * torch.exp(-0.5 * (positions / radius).square().sum(dim=1, keepdim=True))
    inside = (error * near).sum() / near.sum().clamp_min(1.0)
    return entropy + inside


def _learn_shape(locator: Locator, scans: Sequence[Overview]) -> None:
    """Mean foreground about the centre, and its radius."""
    sizes = torch.tensor(locator.spacing)
    shape = list(locator.template.shape)
    wide = [1, len(shape), *[1] * len(shape)]
    grid = identity_grid(shape, sizes.device)
    relative = grid - (torch.tensor(shape).reshape(wide) - 1) / 2
    masks = [
        warp(scan["foreground"][None], relative + (scan["centre"] / sizes).reshape(wide) - grid, padding_mode="zeros")[
            0, 0
        ]
        for scan in scans
        if not scan["centre"].isnan().any()
    ]
    template = torch.stack(masks).mean(dim=0)
    distances = (relative[0] * sizes.reshape(wide[1:])).square().sum(dim=0)
    locator.template.copy_(template)
    locator.radius.copy_(((template * distances).sum() / template.sum()).sqrt())


def _learn_volumes(locator: Locator, scans: Sequence[Overview]) -> None:
    """The volumes that the locator sees in the training scans, and how far off it finds their centres."""
    found = [(scan, locator.locate(scan["image"])) for scan in scans if not scan["centre"].isnan().any()]
    volumes = [location.volume / (1 - location.missing) for _, location in found if location]
    if not volumes:
        raise InputError(
            "the locator finds the anatomy in none of the training scans. Look at the labels, or raise "
            "locator_iterations."
        )
    locator.volumes.copy_(torch.tensor([min(volumes), max(volumes)]))
    errors = torch.tensor([float((location.centre - scan["centre"]).norm()) for scan, location in found if location])
    coarse = errors / min(locator.spacing)  # 2D images may have no size in millimetres
    logger.info(
        "locator: finds the centre of %d of %d training scans within %.2g (median), %.2g (largest) of its voxels",
        *(len(errors), len(found), coarse.median(), coarse.max()),
    )
