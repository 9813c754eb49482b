# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
from __future__ import annotations

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import AsDiscrete, Compose, Invertd, Spacingd
from scipy.ndimage import gaussian_filter

from atlas_istn.topology import Signature, TopologyNote
from atlas_istn.workflow.topology_transforms import NOTE, PreserveTopologyd, RecordTopologyd


def letter() -> torch.Tensor:
    """Soft channels [2, 32, 24] of a letter B whose strokes are two voxels wide."""
    plane = np.zeros((32, 24), np.float32)
    plane[4:28, 6:18] = 1
    plane[6:15, 8:16] = plane[17:26, 8:16] = 0
    inside = gaussian_filter(plane, 0.5)
    return torch.from_numpy(np.stack([1 - inside, inside]))


def labelmap_of(channels: torch.Tensor) -> np.ndarray:
    return torch.as_tensor(channels).argmax(dim=0).numpy()


def deliver(spacing: float, pred: torch.Tensor) -> tuple[MetaTensor, Signature]:
    """Take channels from a grid of 1 mm back to an image of another spacing, as the bundle does."""
    size = [max(round(n / spacing), 2) for n in (32, 24)]
    affine = torch.diag(torch.tensor([spacing, spacing, 1.0, 1.0]).double())
    native = MetaTensor(torch.zeros(1, *size), affine=affine)
    preprocessing = Compose([Spacingd("image", [1.0] * 2, mode="bilinear")])
    data = preprocessing({"image": native})
    grid = data["image"].shape[1:]
    pred = torch.nn.functional.interpolate(pred[None], size=grid, mode="bilinear", align_corners=True)[0]
    after = Compose(
        [
            RecordTopologyd("pred"),
            Invertd("pred", preprocessing, orig_keys="image", nearest_interp=False),
            PreserveTopologyd("pred"),
        ]
    )
    result = after({**data, "pred": MetaTensor(pred)})["pred"]
    assert result.shape == native.shape
    return result, Signature.of(labelmap_of(pred), 2)


def test_on_a_fine_grid_it_is_the_plain_argmax_and_says_so() -> None:
    result, target = deliver(1.0, letter())
    assert not target.violations(result[0].numpy().astype(int))
    assert result.meta[NOTE] == TopologyNote("none", True, 0)
    assert "topology" not in result.meta


def test_on_a_coarse_grid_strokes_are_mended() -> None:
    result, target = deliver(2.6, letter())
    assert target.shapes[(1,)] == (1, 2, 0)
    assert not target.violations(result[0].numpy().astype(int))
    note = result.meta[NOTE]
    assert note.step in ("supersample", "correction")
    assert note.voxels_changed > 0
    assert note.kept


def test_on_a_hopeless_grid_it_admits_it() -> None:
    result, target = deliver(9.0, letter())
    assert target.violations(result[0].numpy().astype(int))
    assert not result.meta[NOTE].kept


def test_type_and_metadata_are_those_of_a_plain_argmax() -> None:
    pred = MetaTensor(letter(), affine=torch.diag(torch.tensor([2.0, 2.0, 1.0])))
    image = MetaTensor(torch.zeros(1, 32, 24))
    data = PreserveTopologyd("pred")(RecordTopologyd("pred")({"image": image, "pred": pred}))
    plain = AsDiscrete(argmax=True)(pred)
    torch.testing.assert_close(torch.as_tensor(data["pred"]).float(), torch.as_tensor(plain).float())
    torch.testing.assert_close(data["pred"].affine, plain.affine)


def test_without_a_note_it_is_the_plain_argmax() -> None:
    # As where the image has no metadata, or the result never lay on the model's grid.
    noise = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    for data in ({"pred": noise}, {"pred": noise, "image": torch.zeros(1, 8, 8)}):
        assert (PreserveTopologyd("pred")(RecordTopologyd("pred")(data))["pred"][0] == noise.argmax(dim=0)).all()


def test_notes_of_both_grids_are_one() -> None:
    on_model, native = TopologyNote("lambda", False, 2), TopologyNote("correction", True, 3)
    assert on_model.then(native) == native.then(on_model) == TopologyNote("correction", False, 5)
    assert TopologyNote().then(native) == native
