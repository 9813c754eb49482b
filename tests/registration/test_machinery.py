# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Every transformation with every similarity and regulariser, by configurations alone, through the one loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser

from atlas_istn.errors import InputError
from atlas_istn.registration.objective import Pair
from atlas_istn.registration.register import Registration
from atlas_istn.registration.regularisers import bending_energy
from atlas_istn.registration.similarity import SoftDice, correlation
from atlas_istn.registration.transformations import Affine, Deformation, Grid
from atlas_istn.spatial import BSpline, DisplacementField, Transform, VelocityField, compose_affine, control_points

ROOM = "atlas_istn.registration"
SHAPES = {2: (32, 28), 3: (18, 16, 17)}

RIGID, AFFINE, SHEAR = ({"_target_": f"{ROOM}.transformations.Affine", "kind": k} for k in ("rigid", "affine", "shear"))
FIELD = f"{ROOM}.transformations.Deformation"
TRANSFORMATIONS = {
    "rigid": RIGID,
    "affine": AFFINE,
    "shear": SHEAR,
    "velocity": {"_target_": FIELD, "kind": "velocity"},
    "displacement": {"_target_": FIELD, "kind": "displacement", "distance": 2},
    "b_spline": {"_target_": FIELD, "kind": "b_spline", "distance": 6, "rate": 0.1},
}
SIMILARITIES = {
    "squared": {"_target_": f"{ROOM}.similarity.squared_error", "_mode_": "callable"},
    "robust": {"_target_": f"{ROOM}.similarity.RobustError", "scale": 1.0},
    "correlation": {"_target_": f"{ROOM}.similarity.correlation", "_mode_": "callable"},
    "local": {"_target_": f"{ROOM}.similarity.LocalCorrelation", "size": 7},
    "mutual": {"_target_": f"{ROOM}.similarity.MutualInformation"},
    "dice": {"_target_": f"{ROOM}.similarity.SoftDice"},
}
# Of the regulariser: the information of small images is noisy, and sharp labels tell of their borders alone.
WEIGHTS = {"mutual": 0.03, "dice": 0.1, "robust": 0.01}
REGULARISERS = ("mean_squared_gradient", "bending_energy")
CASES = [
    (transformation, similarity, regulariser)
    for transformation in TRANSFORMATIONS
    for similarity in SIMILARITIES
    # An affine map has no field that a regulariser could see.
    for regulariser in (REGULARISERS[:1] if transformation in ("rigid", "affine", "shear") else REGULARISERS)
]


def registration(transformation: str, similarity: str, regulariser: str, **settings: Any) -> Registration:
    """A registration made of a configuration."""
    parser = ConfigParser(
        {
            "register": {
                "_target_": f"{ROOM}.register.Registration",
                "transformation": TRANSFORMATIONS[transformation],
                "similarity": SIMILARITIES[similarity],
                "regulariser": {"_target_": f"{ROOM}.regularisers.{regulariser}", "_mode_": "callable"},
                "regularisation": WEIGHTS.get(similarity, 5e-3),
                **settings,
            }
        }
    )
    return parser.get_parsed_content("register")


def pattern(dim: int, similarity: str = "squared") -> torch.Tensor:
    """A labelmap [1, 4, *shape] of blobs that fill the image, soft: an image with contrast everywhere.

    Soft Dice is best where labels are certain, not where they are equal: it gets sharp labels.
    """
    shape = SHAPES[dim]
    axes = [torch.linspace(0, 1, n) for n in shape]
    place = torch.stack(torch.meshgrid(axes, indexing="ij"))
    frequency, sharpness = (8, 60) if similarity == "dice" else (5, 6)
    waves = [
        torch.stack([torch.sin((frequency + 2 * c) * place[a] + c + 2 * a) for a in range(dim)]).prod(dim=0)
        for c in range(3)
    ]
    return torch.softmax(sharpness * torch.stack([torch.zeros(shape), *waves]), dim=0)[None]


def truth(transformation: str, dim: int) -> Transform:
    """A map of the family, some voxels large; what is looked for resamples the pattern by it."""
    shape, spacing = SHAPES[dim], (1.0,) * dim
    angles = 1 if dim == 2 else 3
    parts = {
        "translation": [1.5, -1.0, 0.8][:dim],
        "rotation": [0.12, -0.08, 0.1][:angles],
        "scale": ([0.08, -0.06, 0.04] if transformation in ("affine", "shear") else [0.0] * 3)[:dim],
        "turn": [0.5, 0.3, -0.2][:angles] if transformation == "shear" else [],
    }
    affine = compose_affine(torch.tensor([[value for part in parts.values() for value in part]]))
    if transformation in ("rigid", "affine", "shear"):
        return Transform(None, affine, shape, spacing)
    still = torch.eye(dim, dim + 1)[None]
    nodes = control_points(shape, 6) if transformation == "b_spline" else [n // 2 for n in shape]
    place = torch.stack(torch.meshgrid(*[torch.linspace(0, 3, n) for n in nodes], indexing="ij"))
    size = 1.6 if transformation == "b_spline" else 0.8  # of voxels of the image and of half its resolution
    field = size * torch.sin(place.roll(1, dims=0) + torch.arange(dim).reshape(-1, *[1] * dim))[None]
    model = {"velocity": VelocityField(), "displacement": DisplacementField(), "b_spline": BSpline(shape)}
    return Transform(field, still, shape, spacing, model[transformation])


def error(found: Transform, expected: Transform) -> float:
    """Mean distance in voxels of where both take the points of the fixed image, off its border."""
    dim = len(found.shape)
    distance = (found.moving_to_fixed() - expected.moving_to_fixed()).norm(dim=1)
    return float(distance[(slice(None), *[slice(2, -2)] * dim)].mean())


@pytest.mark.parametrize(("transformation", "similarity", "regulariser"), CASES)
def test_an_analytic_warp_of_the_family_is_recovered(
    transformation: str, similarity: str, regulariser: str, dim: int
) -> None:
    moving, expected = pattern(dim, similarity), truth(transformation, dim)
    register = registration(transformation, similarity, regulariser, iterations=110)
    found, fit = register(moving, expected.to_fixed(moving))
    still = Transform(None, torch.eye(dim, dim + 1)[None], SHAPES[dim], (1.0,) * dim)
    assert error(still, expected) > 1.0
    assert error(found, expected) <= 0.5
    assert fit.loss <= fit.curve[0]


@pytest.mark.parametrize(("transformation", "similarity", "regulariser"), CASES)
def test_identical_images_stay_where_they_are(transformation: str, similarity: str, regulariser: str, dim: int) -> None:
    image = pattern(dim, similarity)
    found, _ = registration(transformation, similarity, regulariser, iterations=5)(image, image)
    # Adam's first step has its full length whatever the gradient: rounding may move a parameter by it, before the best
    # iterate is chosen. The self-information of Gaussian windows is not greatest exactly at the identity.
    limit = 0.1 if similarity in ("mutual", "local") else 0.02
    assert float(found.moving_to_fixed().norm(dim=1).mean()) < limit


@pytest.mark.parametrize("transformation", list(TRANSFORMATIONS))
def test_a_batch_is_as_many_single_runs(transformation: str, dim: int) -> None:
    moving, expected = pattern(dim), truth(transformation, dim)
    fixed = torch.cat([expected.to_fixed(moving), moving, expected.to_moving(moving)])
    register = registration(transformation, "squared", "mean_squared_gradient", iterations=40)
    together, fit = register(moving, fixed)
    for index in range(3):
        alone, single = register(moving, fixed[[index]])
        # Sums of other lengths round otherwise, which Adam's division by a small root amplifies: paths part a little.
        torch.testing.assert_close(single.loss[0], fit.loss[index], rtol=0.1, atol=2e-4)
        if transformation != "shear":  # before anything is scaled, the gradient of the axes of scaling is only rounding
            difference = (alone.moving_to_fixed() - together[index].moving_to_fixed()).norm(dim=1)
            assert difference.mean() < 0.02


def test_an_affine_map_may_act_before_a_deformation(dim: int) -> None:
    moving = pattern(dim)
    bend, shift = truth("velocity", dim), truth("rigid", dim)
    expected = Transform(bend.field, shift.affine, bend.shape, bend.spacing)
    both = Registration(Deformation("velocity", affine=Affine("rigid")), iterations=120, regularisation=1e-3)
    found, _ = both(moving, expected.to_fixed(moving))
    assert error(found, expected) <= 0.5


def test_voxels_need_not_be_isotropic() -> None:
    """A rotation of millimetres on voxels of 1 mm by 3 mm is found as a rotation."""
    moving = pattern(2)
    spacing = (1.0, 3.0)
    expected = Transform(None, compose_affine(torch.tensor([[1.0, 2.0, 0.1, 0.0, 0.0]])), SHAPES[2], spacing)
    found, _ = Registration(Affine("rigid"), iterations=120)(moving, expected.to_fixed(moving), spacing)
    torch.testing.assert_close(found.affine, expected.affine, rtol=0, atol=0.1)


def test_coarser_grids_find_the_same_map_with_anisotropic_voxels() -> None:
    moving = pattern(2)
    spacing = (1.0, 3.0)
    expected = Transform(None, compose_affine(torch.tensor([[1.0, 2.0, 0.1, 0.0, 0.0]])), SHAPES[2], spacing)
    register = Registration(Affine("rigid", rate=0.02), iterations=0, coarse={2: 80})
    found, fit = register(moving, expected.to_fixed(moving), spacing)
    assert error(found, expected) < 0.25
    assert found.shape == SHAPES[2]
    assert len(fit.curve) == 1  # judged on the full grid, without a step there


@pytest.mark.parametrize("kind", ["velocity", "displacement"])
def test_a_deformation_begins_where_an_affine_registration_ended(kind: str, dim: int) -> None:
    moving = pattern(dim)
    shift, bend = truth("rigid", dim), truth(kind, dim)
    expected = Transform(bend.field, shift.affine, bend.shape, bend.spacing, bend.model)
    fixed = expected.to_fixed(moving)
    rough, fit = Registration(Affine(rate=0.02), iterations=40, coarse={2: 40})(moving, fixed)
    transformation = Deformation(kind, affine=Affine(rate=0.002))
    still = transformation.initial(1, Grid(SHAPES[dim], (1.0,) * dim))[0]
    register = Registration(transformation, regularisation=1e-3, iterations=60, coarse={2: 40})
    found, _ = register(moving, fixed, start=(still, fit.state[0]))
    assert error(found, expected) < min(0.5, 0.7 * error(rough, expected))


def test_a_displacement_is_refined_by_predictions_where_images_show_nothing(dim: int) -> None:
    """MAS-refine, eq. (3) to (6): with (IS) the labels that a network sees move what images alone do not."""
    maps, expected = pattern(dim, "dice"), truth("displacement", dim)
    flat = torch.full((1, 1, *SHAPES[dim]), 0.5)
    register = Registration(Deformation("displacement"), correlation, bending_energy, 0.1, iterations=80)
    predictions = Pair(maps, expected.to_fixed(maps), SoftDice(half=True), weight=3.0)
    image_alone, _ = register(flat, flat)
    both, fit = register(flat, flat, others=[predictions])
    assert error(image_alone, expected) > 1.0
    assert error(both, expected) < 0.7
    assert fit.loss < fit.curve[0]


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(InputError, match="B-spline"):
        Registration(Deformation("b_spline"), coarse={2: 10})
    with pytest.raises(InputError, match="rigid, affine, shear"):
        Affine("elastic")
    with pytest.raises(InputError, match="b_spline"):
        Deformation("spline")
    with pytest.raises(InputError, match="at least 1 voxel"):
        Deformation(distance=0.5)
