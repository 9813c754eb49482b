# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch.nn.functional import one_hot

from atlas_istn.errors import InputError
from atlas_istn.fusion.atlases import WarpedAtlases
from atlas_istn.fusion.joint import JointLabelFusion
from atlas_istn.fusion.vote import PluralityVote
from atlas_istn.inferers.fused_target import LearnedAtlas
from atlas_istn.inferers.model_registration import NetworkRegistration, ThroughAtlas
from atlas_istn.inferers.multi_atlas import AtlasSet, MultiAtlasInferer
from atlas_istn.inferers.pair import PairInferer
from atlas_istn.inferers.registered import WarpCache
from atlas_istn.inferers.result import Result
from atlas_istn.networks import AtlasISTN, PairISTN, PairTransformerNetwork
from atlas_istn.registration.objective import Similarity
from atlas_istn.registration.register import Registration
from atlas_istn.registration.regularisers import bending_energy
from atlas_istn.registration.similarity import MutualInformation, correlation
from atlas_istn.registration.transformations import Affine, Deformation
from atlas_istn.spatial import Transform, warp

SHAPES = {2: (30, 26), 3: (16, 18, 15)}


def subject(dim: int, shift: float, stretch: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """An image ``[1, *shape]`` of two solids within each other, and their labels ``[*shape]``."""
    place = torch.stack(torch.meshgrid(*[torch.arange(float(n)) - (n - 1) / 2 for n in SHAPES[dim]], indexing="ij"))
    place[0] = (place[0] - shift) / stretch
    radius = place.norm(dim=0) / min(SHAPES[dim])
    image = torch.sigmoid(20 * (0.36 - radius)) + torch.sigmoid(20 * (0.18 - radius)) + 0.05 * place[1] / SHAPES[dim][1]
    return image[None], (radius < 0.36).long() + (radius < 0.18)


def atlas_set(dim: int, *subjects: tuple[torch.Tensor, torch.Tensor]) -> AtlasSet:
    images, labels = zip(*subjects, strict=True)
    atlases = AtlasSet(SHAPES[dim], 3, (1.0,) * dim)
    atlases.fill([f"atlas_{number}" for number in range(len(images))], torch.stack(images), torch.stack(labels))
    return atlases


def affine() -> Registration:
    return Registration(Affine(rate=0.02), correlation, iterations=10, coarse={2: 40})


def dice(soft: torch.Tensor, labels: torch.Tensor) -> float:
    found = soft.argmax(dim=0)
    both = [(found == value, labels == value) for value in (1, 2)]
    return min(2 * float((a & b).sum()) / float(a.sum() + b.sum()) for a, b in both)


def test_an_empty_set_takes_in_atlases_and_knows_their_mean(dim: int) -> None:
    atlases = atlas_set(dim, subject(dim, 0.0), subject(dim, 2.0))
    torch.testing.assert_close(atlases.atlas_labels.sum(dim=1), torch.ones(1, *SHAPES[dim]))
    assert atlases.stn is None
    assert atlases.labels.dtype == torch.int16


def test_atlases_find_a_target_that_is_shifted_and_stretched(dim: int) -> None:
    image, labels = subject(dim, 1.5, 1.15)
    atlases = atlas_set(dim, subject(dim, -2.0), subject(dim, 0.0), subject(dim, -1.0, 0.9))
    rigid = MultiAtlasInferer(affine(), PluralityVote())
    result = rigid.infer(image[None], atlases)
    assert result.segmentation.shape == (1, 3, *SHAPES[dim])
    torch.testing.assert_close(result.segmentation.sum(dim=1), torch.ones(1, *SHAPES[dim]))
    assert dice(result.segmentation[0], labels) > 0.9
    notes = result.case(0).atlases[0]
    assert [note.atlas for note in notes] == ["atlas_0", "atlas_1", "atlas_2"]
    assert all(note.ncc > 0.97 and note.dice > 0.9 and note.folded_fraction == 0 for note in notes)


def test_a_deformation_goes_where_no_affine_map_can(dim: int) -> None:
    image, labels = subject(dim, 0.0)
    bend = torch.zeros(1, dim, *SHAPES[dim])
    bend[:, 0] = 2.5 * torch.sin(torch.linspace(0, 6.3, SHAPES[dim][1])).reshape(-1, *[1] * (dim - 2))
    target = warp(image[None], bend)[0]
    truth = warp(one_hot(labels, 3).movedim(-1, 0)[None].float(), bend)[0].argmax(dim=0)
    atlases = atlas_set(dim, (image, labels), subject(dim, 0.5))
    deformable = Registration(
        Deformation("velocity", affine=Affine(rate=0.002), rate=0.1), correlation, regularisation=5e-4, iterations=60
    )
    rigid = MultiAtlasInferer(affine(), PluralityVote()).infer(target[None], atlases)
    moved = MultiAtlasInferer(affine(), PluralityVote(), deformable, at_once=1).infer(target[None], atlases)
    overlaps = [
        2
        * float(((found := result.segmentation[0].argmax(dim=0) > 0) & (truth > 0)).sum())
        / float(found.sum() + (truth > 0).sum())
        for result in (rigid, moved)
    ]
    assert overlaps[1] > overlaps[0] + 0.01


def test_a_refinement_is_drawn_by_what_a_network_sees(dim: int) -> None:
    """The images say nothing of where the target is; a segmenter that sees it moves the atlas there."""
    image, labels = subject(dim, 0.0)
    target, truth = subject(dim, 2.0)
    atlases = atlas_set(dim, (image, labels), (image, labels))
    still = Registration(Affine(), correlation, iterations=0)
    refinement = Registration(Deformation("displacement"), lambda a, b: 0 * correlation(a, b), bending_energy, 0.05, 80)

    seen: list[str] = []

    def segmenter(images: torch.Tensor, sources: Sequence[str]) -> torch.Tensor:
        seen.extend(sources)
        outer, inner = (torch.sigmoid(8 * (images - level)) for level in (0.5, 1.5))
        return torch.cat([1 - outer, outer - inner, inner], dim=1).clamp_min(0)

    fusion = PluralityVote()
    before = MultiAtlasInferer(still, fusion).infer(target[None], atlases)
    alone = MultiAtlasInferer(still, fusion, refinement=refinement).infer(target[None], atlases)
    both = MultiAtlasInferer(still, fusion, refinement=refinement, segmenter=segmenter).infer(target[None], atlases)
    start = dice(before.segmentation[0], truth)
    assert dice(alone.segmentation[0], truth) == pytest.approx(start)
    assert dice(both.segmentation[0], truth) > start + 0.15
    assert seen == ["", "", ""]  # of atlases and target none is known to have been trained with


@pytest.mark.parametrize("similarity", [correlation, MutualInformation()])
def test_the_most_similar_atlases_are_taken_whatever_their_order(similarity: Similarity) -> None:
    image, _ = subject(2, 0.5)
    other = torch.rand(1, *SHAPES[2]), torch.ones(SHAPES[2], dtype=torch.long)
    few = MultiAtlasInferer(affine(), JointLabelFusion(1, 0), atlases=2, similarity=similarity)
    result = few.infer(image[None], atlas_set(2, other, subject(2, 0.0), other, subject(2, 1.0)))
    assert [note.atlas for note in result.atlases[0]] == ["atlas_1", "atlas_3"]
    parts = MultiAtlasInferer(affine(), JointLabelFusion(1, 0), atlases=2, at_once=1)
    again = parts.infer(image[None], atlas_set(2, subject(2, 1.0), other, subject(2, 0.0), other))
    assert [note.atlas for note in again.atlases[0]] == ["atlas_0", "atlas_2"]
    assert (again.segmentation - result.segmentation).abs().mean() < 0.01


def test_a_network_of_pairs_registers_in_place_of_the_optimisation(dim: int) -> None:
    """Untrained, it leaves the atlases where they are; its refinement by the images brings them onto the target."""
    torch.manual_seed(0)
    transformation = Affine(rate=0.02)
    stn = PairTransformerNetwork(dim, 2, transformation, (4, 8), cells=2, hidden=8)
    network = PairISTN(None, stn, transformation, (1.0,) * dim)
    image, labels = subject(dim, 2.0)
    atlases = atlas_set(dim, subject(dim, -2.0), subject(dim, -1.0))
    found = []
    for iterations in (0, 60):
        predicted = NetworkRegistration(network, PairInferer(iterations=iterations, similarity=correlation))
        inferer = MultiAtlasInferer(affine(), PluralityVote(), affine(), predicted=predicted)
        found.append(inferer.infer(image[None], atlases).segmentation[0])
    assert torch.equal(found[0].argmax(dim=0), PluralityVote()(WarpedAtlases(atlases.labels.long())).labels)
    assert dice(found[1], labels) > dice(found[0], labels) + 0.1


class Shifted(torch.nn.Module):
    """Stands for the network of an STN: the second of two displacements is a shift. It remembers what it saw."""

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.shift = shift

    def forward(self, images: torch.Tensor, initial: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        self.seen = images
        state = initial[0].repeat(len(images), *[1] * (initial[0].ndim - 1))
        state[:, state.shape[1] // 2] = self.shift
        return (state,)


def test_a_network_of_pairs_serves_the_other_direction_too(dim: int) -> None:
    """Images go to it in its own order, cut to its intensities, and it is its second map that moves the atlases."""
    transformation = Deformation("displacements", distance=1)
    stn = Shifted(-2.0)  # of the places where the fixed images are looked at: these go 2 voxels on
    network = PairISTN(None, stn, transformation, (1.0,) * dim)
    target, truth = subject(dim, 2.0)
    atlases = atlas_set(dim, subject(dim, 0.0), subject(dim, 0.0))
    predicted = NetworkRegistration(network, PairInferer(iterations=0), backward=True, limits=(0.0, 1.5))
    result = MultiAtlasInferer(affine(), PluralityVote(), predicted=predicted).infer(target[None], atlases)
    assert dice(result.segmentation[0], truth) > 0.95
    moving, fixed = stn.seen.chunk(2, dim=1)
    torch.testing.assert_close(moving, target[None].expand(2, *target.shape).clamp(0.0, 1.5))
    torch.testing.assert_close(fixed, atlases.images.clamp(0.0, 1.5))


class ByCentre:
    """Stands for an Atlas-ISTN whose atlas lies in the middle: it goes to the centre of an image. It counts."""

    def __init__(self) -> None:
        self.calls = 0

    def infer(self, image: torch.Tensor, _: object) -> Result:
        self.calls += 1
        shape = image.shape[2:]
        weights = (image[:, :1] > 0.5).float()
        place = torch.stack(torch.meshgrid(*[torch.arange(float(n)) - (n - 1) / 2 for n in shape], indexing="ij"))
        centre = (place * weights).flatten(2).sum(dim=2) / weights.sum()
        linear = torch.eye(len(shape))[None]
        matrix = torch.cat([linear, centre[..., None]], dim=2)
        return Result(image, 0.0, transform=Transform(None, matrix, tuple(shape), (1.0,) * len(shape)))


def test_a_learned_atlas_is_a_way_from_atlas_to_target(dim: int) -> None:
    """Each image goes onto the learned atlas once, and none is registered to another one."""
    learned = AtlasISTN(None, torch.nn.Identity(), SHAPES[dim], 3)
    atlases = atlas_set(dim, subject(dim, -3.0), subject(dim, -2.0))
    istn = ByCentre()
    inferer = MultiAtlasInferer(affine(), PluralityVote(), predicted=ThroughAtlas(learned, istn))
    for shift in (2.0, 1.0):
        image, labels = subject(dim, shift)
        assert dice(inferer.infer(image[None], atlases).segmentation[0], labels) > 0.95
    assert istn.calls == 2 + 2  # images and atlases


def test_an_itn_alone_is_no_way_from_atlas_to_target() -> None:
    itn = AtlasISTN(torch.nn.Identity(), None, SHAPES[2], 1)
    with pytest.raises(InputError, match="found an ITN alone"):
        ThroughAtlas(itn, ByCentre())


class Recorder:
    """A refinement that says what it was asked to register the atlas to."""

    def infer(self, image: torch.Tensor, network: object) -> Result:
        self.prediction = network.segment(image)
        return Result(network.atlas_labels.expand_as(self.prediction), 0.0, self.prediction)


def test_a_learned_atlas_is_registered_to_the_fused_labels(dim: int) -> None:
    image, _ = subject(dim, 0.0)
    atlases = atlas_set(dim, subject(dim, -1.0), subject(dim, 1.0))
    learned = AtlasISTN(None, torch.nn.Identity(), SHAPES[dim], 3)
    learned.atlas_labels.copy_(torch.rand_like(learned.atlas_labels))
    plain = MultiAtlasInferer(affine(), PluralityVote()).infer(image[None], atlases)
    refinement = Recorder()
    onto = MultiAtlasInferer(affine(), PluralityVote(), learned=LearnedAtlas(learned, refinement))
    result = onto.infer(image[None], atlases)
    torch.testing.assert_close(refinement.prediction, plain.segmentation)
    torch.testing.assert_close(result.segmentation, learned.atlas_labels.expand_as(result.segmentation))
    assert len(result.atlases[0]) == 2
    atlases.show(learned)
    assert atlases.stn is learned.stn
    torch.testing.assert_close(atlases.atlas_labels, learned.atlas_labels)


def test_warped_atlases_are_kept_and_used_for_the_same_alone(dim: int, tmp_path: Path) -> None:
    """The registration that may not run shows that none did."""

    def forbidden(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        raise RuntimeError

    image = subject(dim, 1.5)[0][None]
    atlases = atlas_set(dim, subject(dim, -2.0), subject(dim, 0.0))
    cache = WarpCache(str(tmp_path), {"rate": 0.02})
    first = MultiAtlasInferer(affine(), PluralityVote(), cache=cache).infer(image, atlases)
    still = Registration(Affine(), forbidden, iterations=5)
    again = MultiAtlasInferer(still, PluralityVote(), cache=cache).infer(image, atlases)
    torch.testing.assert_close(again.segmentation, first.segmentation, rtol=0, atol=0)
    assert again.atlases == first.atlases
    MultiAtlasInferer(still, JointLabelFusion(patch_radius=1), cache=cache).infer(image, atlases)

    others = [
        (image + 1e-6, atlases, cache),
        (image, atlas_set(dim, subject(dim, -2.0), subject(dim, 0.01)), cache),
        (image, atlases.subset([0]), cache),
        (image, atlases, WarpCache(str(tmp_path), {"rate": 0.03})),
    ]
    for target, some, kept in others:
        with pytest.raises(RuntimeError):
            MultiAtlasInferer(still, PluralityVote(), cache=kept).infer(target, some)

    [file] = tmp_path.iterdir()
    whole = file.read_bytes()
    for damaged in (whole[:-100], whole[:2000] + bytes([whole[2000] ^ 1]) + whole[2001:], b""):
        file.write_bytes(damaged)
        once_more = MultiAtlasInferer(affine(), PluralityVote(), cache=cache).infer(image, atlases)
        torch.testing.assert_close(once_more.segmentation, first.segmentation)
        assert len(file.read_bytes()) == len(whole)
