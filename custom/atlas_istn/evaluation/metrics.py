# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Overlap, surface distances and topology of a predicted labelmap against a reference."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from monai.metrics.utils import get_mask_edges, get_surface_distance
from scipy import ndimage

from ..errors import InputError
from ..topology import label_topology

__all__ = ["score_labelmap"]


def score_labelmap(
    prediction: np.ndarray,
    reference: np.ndarray,
    labels: Mapping[int, str],
    spacing: Sequence[float],
    surface_dice_tolerance: float = 1.0,
) -> list[dict[str, Any]]:
    """Score a predicted labelmap against a reference on the same grid, label by label.

    The figures are those of MONAI's metrics (surface = edge voxels, distances between voxel centres); the surface
    distances are computed once per label and shared. An empty label is never skipped nor scored as perfect:

    - present in one labelmap only: Dice and surface Dice 0; the distances are a penalty, the diagonal of the image in
      mm, which no real distance reaches;
    - absent from both: every figure is NaN, so that the case does not count for this label.

    Args:
        prediction: ``[(D,) H, W]`` label values.
        reference: label values, same shape.
        labels: label value to name, without the background; other values count as background.
        spacing: voxel size in mm, in array axis order; whatever unit it is in, distances are in it.
        surface_dice_tolerance: distance in mm up to which two surfaces agree.

    Returns:
        One row per label, in the order of ``labels``: ``label`` (name), ``dice``, ``asd`` (symmetric average surface
        distance, mm), ``hd`` (Hausdorff distance, mm), ``hd95`` (the larger of both directions' 95th percentiles, mm),
        ``surface_dice``, ``components`` and ``holes`` of the prediction, ``empty_prediction``, ``empty_reference``.

    Raises:
        InputError: shapes differ or are not 2D or 3D, or spacing or tolerance make no sense.
    """
    _check_input(prediction, reference, spacing, surface_dice_tolerance)
    penalty = float(np.linalg.norm(np.multiply(prediction.shape, spacing)))
    return [
        {"label": name} | _score_mask(prediction == value, reference == value, spacing, surface_dice_tolerance, penalty)
        for value, name in labels.items()
    ]


def _check_input(
    prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float], surface_dice_tolerance: float
) -> None:
    if prediction.shape != reference.shape:
        raise InputError(
            f"Prediction and reference must lie on the same grid, found shapes {prediction.shape} and "
            f"{reference.shape}: resample one of them to the other first."
        )
    if prediction.ndim not in (2, 3):
        raise InputError(f"Labelmaps must be 2D or 3D, found {prediction.ndim}D: pass one case without channels.")
    if len(spacing) != prediction.ndim or not all(0 < s < math.inf for s in spacing):
        raise InputError(
            f"Spacing must be {prediction.ndim} positive numbers, one per array axis, found {tuple(spacing)}."
        )
    if not 0 <= surface_dice_tolerance < math.inf:
        raise InputError(f"The surface Dice tolerance must be at least 0, found {surface_dice_tolerance}.")


def _score_mask(
    prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float], tolerance: float, penalty: float
) -> dict[str, Any]:
    boxes = ndimage.find_objects((prediction | reference).view(np.uint8))
    # A tight crop changes no figure: what lies outside the box, like what lies outside the image, is background.
    box = boxes[0] if boxes else ...
    prediction, reference = prediction[box], reference[box]
    empty = {"empty_prediction": not prediction.any(), "empty_reference": not reference.any()}

    if all(empty.values()):
        names = ("dice", "asd", "hd", "hd95", "surface_dice", "components", "holes")
        return {**dict.fromkeys(names, math.nan), **empty}

    topology = label_topology(prediction)
    counts = {"components": topology.components, "holes": topology.holes}
    if any(empty.values()):
        distances = dict.fromkeys(("asd", "hd", "hd95"), penalty)
        return {"dice": 0.0, **distances, "surface_dice": 0.0, **counts, **empty}

    overlap = np.count_nonzero(prediction & reference)
    dice = float(2 * overlap / (np.count_nonzero(prediction) + np.count_nonzero(reference)))
    return {"dice": dice, **_score_surfaces(prediction, reference, spacing, tolerance), **counts, **empty}


def _score_surfaces(
    prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float], tolerance: float
) -> dict[str, float]:
    """Score two masks, neither of them empty, that fill their common bounding box."""
    edges = get_mask_edges(prediction, reference, crop=False)
    directions = [get_surface_distance(*pair, spacing=spacing) for pair in (edges, edges[::-1])]
    distances = np.concatenate(directions)
    return {
        "asd": float(distances.mean(dtype=np.float64)),
        "hd": float(distances.max()),
        "hd95": max(float(np.percentile(direction, 95)) for direction in directions),
        "surface_dice": float(np.mean(distances <= tolerance)),
    }
