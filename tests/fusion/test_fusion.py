# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.

from __future__ import annotations

import pytest
import torch

from atlas_istn.errors import InputError
from atlas_istn.fusion.atlases import WarpedAtlases
from atlas_istn.fusion.base import LabelFusion
from atlas_istn.fusion.joint import JointLabelFusion, VoteNetPlus
from atlas_istn.fusion.non_local import NonLocalVote
from atlas_istn.fusion.staple import Staple
from atlas_istn.fusion.vote import LocallyWeightedVote, PluralityVote, TrustedVote

SHAPES = [(26, 22), (12, 13, 11)]
WEIGHTED = [
    TrustedVote(),
    LocallyWeightedVote(2),
    JointLabelFusion(2, 1),
    JointLabelFusion(2, 0),
    VoteNetPlus(1),
    NonLocalVote(2, 0),
]
ALL = [PluralityVote(), Staple(), *WEIGHTED]


def name(fusion: LabelFusion) -> str:
    return type(fusion).__name__


def smooth(*shape: int) -> torch.Tensor:
    """Noise that is smooth over some voxels, ``[1, *shape]``."""
    pool = torch.nn.functional.avg_pool2d if len(shape) == 2 else torch.nn.functional.avg_pool3d
    return 3 * pool(torch.randn(1, *shape), 3, 1, 1)


def atlases(shape: tuple[int, ...], count: int, noise: float = 0.3) -> WarpedAtlases:
    """Three labels by the height of a smooth image; each atlas has errors of its own in image and labels."""
    target = smooth(*shape)
    images = torch.stack([target + noise * smooth(*shape) for _ in range(count)])
    labels = (images[:, 0] > 0.3).long() + 2 * (images[:, 0] > 1.0).long()
    return WarpedAtlases(labels, images, target, torch.rand(count, *shape))


def shuffled(found: WarpedAtlases, order: list[int]) -> WarpedAtlases:
    return WarpedAtlases(found.labels[order], found.images[order], found.target, found.probabilities[order])


@pytest.mark.parametrize("shape", SHAPES, ids=["2d", "3d"])
@pytest.mark.parametrize("fusion", ALL, ids=name)
def test_identical_atlases_give_back_the_atlas(fusion: LabelFusion, shape: tuple[int, ...]) -> None:
    one = atlases(shape, 1)
    same = shuffled(one, [0] * 4)
    everywhere = torch.ones(shape, dtype=torch.bool)
    for given, mask in ((one, None), (same, None), (same, everywhere)):
        if mask is not None and isinstance(fusion, JointLabelFusion):
            continue  # its search moves patches, as below
        fused = fusion(given, mask)
        assert torch.equal(fused.labels, one.labels[0])
        assert fused.labels.dtype == one.labels.dtype
        assert torch.equal(fused.agreement, torch.ones(shape))
        torch.testing.assert_close(fused.soft().sum(dim=0), torch.ones(shape))


@pytest.mark.parametrize("shape", SHAPES, ids=["2d", "3d"])
def test_joint_fusion_of_the_target_itself_gives_back_its_labels_everywhere(shape: tuple[int, ...]) -> None:
    one = atlases(shape, 1, noise=0.0)
    same = shuffled(one, [0] * 3)
    fused = JointLabelFusion(2, 1)(same, torch.ones(shape, dtype=torch.bool))
    inside = (slice(3, -3),) * len(shape)  # patches at the border are continued, and may have another as their like
    assert torch.equal(fused.labels[inside], one.labels[0][inside])


@pytest.mark.parametrize("shape", SHAPES, ids=["2d", "3d"])
@pytest.mark.parametrize("fusion", WEIGHTED, ids=name)
def test_one_perfect_atlas_among_noisy_ones_wins(fusion: LabelFusion, shape: tuple[int, ...]) -> None:
    noisy = atlases(shape, 4, noise=2.0)
    truth = atlases(shape, 1).labels[0]
    noisy.images[1], noisy.labels[1] = noisy.target, truth
    noisy.probabilities[:] = 0.2
    noisy.probabilities[1] = 1.0
    fused = fusion(noisy)
    differs = noisy.disagreement()
    wrong = (fused.labels != truth)[differs].float().mean()
    voted = (PluralityVote()(noisy).labels != truth)[differs].float().mean()
    assert wrong < 0.05
    assert voted > 0.2
    assert (fused.winner[differs] == 1).float().mean() > 0.95
    assert (fused.winner[~differs] == -1).all()


@pytest.mark.parametrize("shape", SHAPES, ids=["2d", "3d"])
@pytest.mark.parametrize("fusion", ALL, ids=name)
def test_the_order_of_the_atlases_does_not_matter(fusion: LabelFusion, shape: tuple[int, ...]) -> None:
    first = atlases(shape, 5)
    order = [3, 0, 4, 2, 1]
    fused, other = fusion(first), fusion(shuffled(first, order))
    torch.testing.assert_close(fused.posterior, other.posterior, rtol=1e-3, atol=1e-5)
    clear = fused.posterior.topk(2, dim=1).values.diff(dim=1).abs()[:, 0] > 1e-4
    picked = fused.voxels[clear]
    assert torch.equal(fused.labels.flatten()[picked], other.labels.flatten()[picked])
    torch.testing.assert_close(fused.agreement.flatten()[picked], other.agreement.flatten()[picked])
    if isinstance(fusion, JointLabelFusion):
        same = fused.winner.flatten()[picked] == torch.tensor(order)[other.winner.flatten()[picked].long()]
        assert same.float().mean() > 0.99  # but for equal weights


@pytest.mark.parametrize("shape", SHAPES, ids=["2d", "3d"])
@pytest.mark.parametrize("kind", [LocallyWeightedVote, JointLabelFusion, VoteNetPlus])
def test_blocks_do_not_change_the_result(kind: type, shape: tuple[int, ...]) -> None:
    given = atlases(shape, 3)
    whole, parts = kind(patch_radius=1, block=10**6)(given), kind(patch_radius=1, block=60)(given)
    torch.testing.assert_close(whole.posterior, parts.posterior, rtol=1e-4, atol=1e-5)
    assert (whole.labels != parts.labels).sum() <= 1  # a tie by rounding


@pytest.mark.parametrize("fusion", ALL, ids=name)
def test_fusion_is_done_where_atlases_disagree_or_where_asked(fusion: LabelFusion) -> None:
    given = atlases(SHAPES[0], 3)
    differs = given.disagreement()
    fused = fusion(given)
    assert torch.equal(fused.voxels, differs.flatten().nonzero()[:, 0])
    assert torch.equal(fused.labels[~differs], given.labels[0][~differs])
    torch.testing.assert_close(fused.posterior.sum(dim=1), torch.ones(len(fused.voxels)))
    mask = torch.zeros_like(differs)
    mask[5:9, 5:9] = True
    part = fusion(given, mask)
    assert len(part.voxels) == 16
    assert torch.equal(part.labels[~mask], PluralityVote()(given).labels[~mask])


def test_agreement_and_soft_labels_of_a_vote() -> None:
    labels = torch.tensor([[[7, 0], [3, 3]], [[7, 3], [3, 0]], [[7, 3], [3, 7]]], dtype=torch.uint8)
    fused = PluralityVote()(WarpedAtlases(labels))
    assert fused.labels.tolist() == [[7, 3], [3, 0]]  # three labels of one vote each: the smallest
    torch.testing.assert_close(fused.agreement, torch.tensor([[1, 2 / 3], [1, 1 / 3]]))
    assert fused.winner.tolist() == [[-1, -1], [-1, 1]]  # two atlases say 3, both weigh the same; one says 0
    assert fused.values.tolist() == [0, 3, 7]
    torch.testing.assert_close(fused.soft()[:, 0, 1], torch.tensor([1 / 3, 2 / 3, 0]))
    torch.testing.assert_close(fused.soft()[:, 1, 0], torch.tensor([0.0, 1.0, 0.0]))


def test_large_label_values_are_no_trouble() -> None:
    labels = torch.tensor([[[0, 100_000]], [[0, 100_000]], [[12, 5]]])
    assert PluralityVote()(WarpedAtlases(labels)).labels.tolist() == [[0, 100_000]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.zeros(2, 4, 4)}, "expected integers"),
        ({"labels": torch.zeros(0, 4, 4, dtype=torch.long)}, "at least one"),
        ({"target": None}, "both or none"),
        ({"target": torch.zeros(1, 4, 5)}, "target of warped atlases: expected shape"),
        ({"images": torch.zeros(3, 1, 4, 4)}, "images of warped atlases: expected shape"),
        ({"images": torch.full((2, 1, 4, 4), torch.nan)}, "not finite"),
        ({"probabilities": torch.zeros(2, 4)}, "probabilities of warped atlases: expected shape"),
    ],
)
def test_atlases_that_do_not_belong_together_are_refused(change: dict, message: str) -> None:
    right = {
        "labels": torch.zeros(2, 4, 4, dtype=torch.long),
        "images": torch.zeros(2, 1, 4, 4),
        "target": torch.zeros(1, 4, 4),
    }
    with pytest.raises(InputError, match=message):
        WarpedAtlases(**right | change)


def test_what_a_fusion_lacks_is_named() -> None:
    labels = torch.zeros(2, 4, 4, dtype=torch.long)
    labels[0, 1:3] = 1
    bare = WarpedAtlases(labels)
    with pytest.raises(InputError, match="mask of a fusion"):
        PluralityVote()(bare, torch.ones(4, 5))
    for fusion in (TrustedVote(), VoteNetPlus()):
        with pytest.raises(InputError, match="probabilities"):
            fusion(bare)
    for fusion in (LocallyWeightedVote(), JointLabelFusion()):
        with pytest.raises(InputError, match="images"):
            fusion(bare)
    with pytest.raises(InputError, match="alpha"):
        JointLabelFusion(alpha=0.0)
    with pytest.raises(InputError, match="radius of patches"):
        JointLabelFusion(patch_radius=(1, 1, 1))(WarpedAtlases(labels, torch.rand(2, 1, 4, 4), torch.rand(1, 4, 4)))
