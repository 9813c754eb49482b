# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.metrics import (
    compute_average_surface_distance,
    compute_dice,
    compute_hausdorff_distance,
    compute_surface_dice,
)
from scipy import ndimage

from atlas_istn.errors import InputError
from atlas_istn.evaluation.metrics import score_labelmap

DISTANCES = ("asd", "hd", "hd95")
SCORES = ("dice", *DISTANCES, "surface_dice")
# MONAI returns float32; figures of a few mm then agree to about 1e-6.
FLOAT32 = {"rel": 1e-5, "abs": 1e-6}
GRIDS = {"2D": ((40, 52), (2.0, 0.7)), "3D": ((24, 36, 20), (1.0, 0.8, 2.5))}


def _blobs(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """A labelmap of irregular blobs of labels 1 and 2, which touch the image border."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 3)
    return np.digitize(noise, np.quantile(noise, [0.7, 0.85]))


def _score_one(prediction: np.ndarray, reference: np.ndarray, spacing: tuple[float, ...], **kwargs: Any) -> dict:
    (row,) = score_labelmap(prediction, reference, {1: "x"}, spacing, **kwargs)
    return row


def _box(shape: tuple[int, ...], start: tuple[int, ...], size: tuple[int, ...]) -> np.ndarray:
    mask = np.zeros(shape, np.uint8)
    mask[tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))] = 1
    return mask


def test_identical_labelmaps_are_perfect() -> None:
    labelmap = _blobs((24, 24, 24), seed=0)
    for row in score_labelmap(labelmap, labelmap, {1: "a", 2: "b"}, (1, 1, 1)):
        assert [row[name] for name in SCORES] == [1, 0, 0, 0, 1]


def test_shifted_cube_has_the_distances_of_its_shift() -> None:
    # A cube of 10 voxels a side has 10³ − 8³ = 488 surface voxels. Shifted by one voxel of 0.5 mm, the 100 of its
    # leading face and the 8 × 8 inner ones of its trailing face are 0.5 mm off; all others lie on the other's surface.
    prediction, reference = _box((20, 20, 20), (6, 5, 5), (10, 10, 10)), _box((20, 20, 20), (5, 5, 5), (10, 10, 10))
    row = _score_one(prediction, reference, (0.5, 1, 1), surface_dice_tolerance=0.4)
    assert row["dice"] == pytest.approx(0.9)
    assert row["hd"] == row["hd95"] == 0.5
    assert row["asd"] == pytest.approx(164 / 488 * 0.5)
    assert row["surface_dice"] == pytest.approx(1 - 164 / 488)
    assert _score_one(prediction, reference, (0.5, 1, 1), surface_dice_tolerance=0.5)["surface_dice"] == 1


@pytest.mark.parametrize("dim", [2, 3])
def test_concentric_balls_are_their_difference_in_radius_apart(dim: int) -> None:
    radius = np.linalg.norm(np.indices((41,) * dim) - 20, axis=0)
    row = _score_one((radius <= 15).astype(int), (radius <= 9).astype(int), (2,) * dim)
    # 6 voxels of 2 mm; the surfaces are rounded to the grid, each by at most one voxel.
    for name in DISTANCES:
        assert row[name] == pytest.approx(12, abs=2)
    assert row["surface_dice"] == 0
    assert row["dice"] == pytest.approx(2 * 9**dim / (9**dim + 15**dim), abs=0.01)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("seeds", [(0, 1), (2, 3)])
def test_agrees_with_uncropped_monai_metrics(grid: str, seeds: tuple[int, int]) -> None:
    shape, spacing = GRIDS[grid]
    prediction, reference = (np.pad(_blobs(shape, seed), 4) for seed in seeds)
    rows = score_labelmap(prediction, reference, {1: "a", 2: "b"}, spacing, surface_dice_tolerance=1.3)

    one_hot = [torch.stack([torch.from_numpy(z == k) for k in (1, 2)])[None].float() for z in (prediction, reference)]
    expected = {
        "dice": compute_dice(*one_hot),
        "asd": compute_average_surface_distance(*one_hot, True, symmetric=True, spacing=spacing),
        "hd": compute_hausdorff_distance(*one_hot, True, spacing=spacing),
        "hd95": compute_hausdorff_distance(*one_hot, True, percentile=95, spacing=spacing),
        "surface_dice": compute_surface_dice(*one_hot, [1.3, 1.3], True, spacing=spacing),
    }
    for name, values in expected.items():
        assert [row[name] for row in rows] == pytest.approx(values[0].tolist(), **FLOAT32)


def test_margin_changes_nothing() -> None:
    # Also where labels touch the image border: outside the image is background.
    prediction, reference = _blobs((24, 20, 16), 4), _blobs((24, 20, 16), 5)
    labels, spacing = {1: "a", 2: "b"}, (1.0, 0.8, 2.5)
    padded = score_labelmap(np.pad(prediction, 9), np.pad(reference, 9), labels, spacing)
    assert padded == score_labelmap(prediction, reference, labels, spacing)


@pytest.mark.parametrize("grid", GRIDS)
def test_agrees_with_distance_transforms_and_itk(grid: str) -> None:
    shape, spacing = GRIDS[grid]
    prediction, reference = (np.pad(_blobs(shape, seed) == 1, 1) for seed in (6, 7))
    row = _score_one(prediction.astype(int), reference.astype(int), spacing, surface_dice_tolerance=1.3)

    edges = [mask & ~ndimage.binary_erosion(mask) for mask in (prediction, reference)]
    maps = [ndimage.distance_transform_edt(~edge, sampling=spacing) for edge in edges]
    directions = [maps[1][edges[0]], maps[0][edges[1]]]
    distances = np.concatenate(directions)
    assert row["asd"] == pytest.approx(distances.mean(), **FLOAT32)
    assert row["hd"] == pytest.approx(distances.max(), **FLOAT32)
    assert row["hd95"] == pytest.approx(max(np.percentile(d, 95) for d in directions), **FLOAT32)
    assert row["surface_dice"] == pytest.approx((distances <= 1.3).mean(), **FLOAT32)

    images = [sitk.GetImageFromArray(edge.astype(np.uint8)) for edge in edges]
    for image in images:
        image.SetSpacing(spacing[::-1])
    hausdorff = sitk.HausdorffDistanceImageFilter()
    hausdorff.Execute(*images)
    assert row["hd"] == pytest.approx(hausdorff.GetHausdorffDistance(), **FLOAT32)


def test_scores_other_than_topology_are_symmetric() -> None:
    a, b = _blobs((30, 30), 8), _blobs((30, 30), 9)
    forward, backward = _score_one(a, b, (1, 2)), _score_one(b, a, (1, 2))
    assert [forward[name] for name in SCORES] == pytest.approx([backward[name] for name in SCORES])


@pytest.mark.parametrize("missing", ["prediction", "reference"])
def test_a_missing_structure_is_penalised(missing: str) -> None:
    box = _box((30, 40), (5, 5), (4, 4))
    empty = np.zeros_like(box)
    pair = (empty, box) if missing == "prediction" else (box, empty)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        row = _score_one(*pair, spacing=(1, 1))
    assert row["dice"] == row["surface_dice"] == 0
    assert [row[name] for name in DISTANCES] == [50, 50, 50]  # the diagonal of 30 mm × 40 mm
    assert row["components"] == (0 if missing == "prediction" else 1)
    assert (row["empty_prediction"], row["empty_reference"]) == (missing == "prediction", missing == "reference")


def test_no_real_distance_reaches_the_penalty() -> None:
    corner, opposite = np.zeros((4, 5, 6), int), np.zeros((4, 5, 6), int)
    corner[0, 0, 0] = opposite[-1, -1, -1] = 1
    penalty = _score_one(corner, np.zeros_like(corner), (1, 2, 3))["hd"]
    assert _score_one(corner, opposite, (1, 2, 3))["hd"] < penalty


def test_a_label_absent_from_both_does_not_count() -> None:
    box = _box((10, 10), (2, 2), (4, 4))
    row = score_labelmap(box, box, {1: "here", 5: "absent"}, (1, 1))[1]
    assert row["label"] == "absent"
    assert row["empty_prediction"] is row["empty_reference"] is True
    assert all(math.isnan(row[name]) for name in (*SCORES, "components", "holes"))


def test_topology_is_that_of_the_prediction() -> None:
    reference = _box((20, 20), (2, 2), (9, 9))
    prediction = reference.copy()
    prediction[5, 5] = 0
    prediction[17, 17] = 1
    row = _score_one(prediction, reference, (1, 1))
    assert (row["components"], row["holes"]) == (2, 1)


@pytest.mark.parametrize(
    ("prediction_shape", "spacing", "tolerance", "message"),
    [
        ((8, 9), (1, 1), 1, r"same grid, found shapes \(8, 9\) and \(8, 8\)"),
        ((8, 8), (1, 1, 1), 1, "Spacing must be 2 positive numbers"),
        ((8, 8), (1, 0), 1, "Spacing must be 2 positive numbers"),
        ((8, 8), (1, 1), -1, "tolerance must be at least 0, found -1"),
    ],
)
def test_bad_input_is_refused(
    prediction_shape: tuple[int, ...], spacing: tuple[float, ...], tolerance: float, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        _score_one(np.ones(prediction_shape, int), np.ones((8, 8), int), spacing, surface_dice_tolerance=tolerance)


def test_channels_are_refused() -> None:
    stack = np.ones((1, 4, 4, 4), int)
    with pytest.raises(InputError, match="2D or 3D, found 4D"):
        _score_one(stack, stack, (1, 1, 1, 1))
