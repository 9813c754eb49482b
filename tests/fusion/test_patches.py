# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.

from __future__ import annotations

import pytest
import torch

from atlas_istn.fusion.patches import PatchSimilarity, blocks, box_sum, take_box


@pytest.mark.parametrize("radius", [(1, 2), (2, 0, 1)])
def test_sums_over_boxes_are_those_of_pooling(radius: tuple[int, ...]) -> None:
    image = torch.randn(2, 1, *(9, 8, 7)[: len(radius)])
    pool = torch.nn.functional.avg_pool2d if len(radius) == 2 else torch.nn.functional.avg_pool3d
    sides = tuple(2 * r + 1 for r in radius)
    torch.testing.assert_close(box_sum(image, radius), pool(image, sides, 1) * torch.tensor(sides).prod())


def test_a_box_continues_with_the_value_of_the_border() -> None:
    image = torch.arange(12.0).reshape(3, 4)
    found = take_box(image, (0, 2), (2, 4), (1, 1))
    assert found.tolist() == [[1, 2, 3, 3], [1, 2, 3, 3], [5, 6, 7, 7], [9, 10, 11, 11]]
    assert torch.equal(take_box(image, (1, 1), (2, 3), (1, 1)), image)


@pytest.mark.parametrize("shape", [(17, 9), (7, 8, 11)])
def test_blocks_hold_every_voxel_once(shape: tuple[int, ...]) -> None:
    mask = torch.rand(shape) > 0.6
    voxels = mask.flatten().nonzero()[:, 0]
    found = list(blocks(voxels, shape, 40))
    assert len(found) > 2
    assert sorted(torch.cat([block.rows for block in found]).tolist()) == list(range(len(voxels)))
    image = torch.randn(shape)
    for block in found:
        crop = take_box(image, block.low, block.high, [2] * len(shape))
        assert torch.equal(crop.flatten()[block.places([2] * len(shape))], image.flatten()[voxels[block.rows]])
    assert not list(blocks(voxels[:0], shape, 40))


@pytest.mark.parametrize("squares", [False, True])
def test_the_search_finds_how_far_an_atlas_was_shifted(squares: bool) -> None:
    target = torch.randn(1, 14, 15, 16)
    shifts = [(0, 0, 0), (1, 0, -1), (-1, 1, 1)]
    images = torch.stack([target.roll(shift, (1, 2, 3)) for shift in shifts])
    similarity = PatchSimilarity(target, images, (1, 1, 1), (1, 1, 1), squares)
    found = similarity.best()[..., 1:-1, 1:-1, 1:-1]
    assert torch.equal(found, torch.tensor(shifts).T.reshape(3, 3, 1, 1, 1).expand_as(found))


def test_flat_patches_are_alike_nowhere_and_move_nowhere() -> None:
    target, images = torch.randn(1, 11, 11), torch.full((2, 1, 11, 11), 0.3)
    similarity = PatchSimilarity(target, images, (1, 1), (1, 1))
    assert (similarity.at((0, 0)) == 0).all()
    assert (similarity.best() == 0).all()
