# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from atlas_istn.inferers.result import AtlasMaps, Result
from atlas_istn.io.loading import read_volume
from atlas_istn.workflow.atlas_maps import write_atlas_maps
from atlas_istn.workflow.results import ATLAS_MAPS, CaseResult, to_dictionary

VALUES = (0, 7, 9)


@pytest.mark.parametrize(("shape", "source"), [((5, 4), "scan.png"), ((5, 4, 3), "scan.nii.gz")], ids=["png", "nifti"])
def test_maps_of_atlases_are_written_on_the_grid_of_the_image(
    tmp_path: Path, shape: tuple[int, ...], source: str
) -> None:
    labels = torch.randint(0, 3, (1, 2, *shape))
    agreement = torch.randint(1, 3, (1, 1, *shape)) / 2
    winner = torch.randint(0, 3, (1, 1, *shape))
    image = MetaTensor(torch.zeros(1, 1, *shape), affine=torch.diag(torch.tensor([2.0, 1.0, 1.0, 1.0])))
    result = Result(torch.zeros(1, 3, *shape), 0.0, maps=AtlasMaps(labels, agreement, winner))
    output = {key: value[0] for key, value in to_dictionary(result.case(0), image).items()}
    batch = {"image": image[0], "case": "scan", "source": source, "reference": "", "grid_affine": np.eye(4)}
    network = SimpleNamespace(atlas_labels=torch.zeros(1, 3, *shape), atlas_image=torch.zeros(1, 1, *shape))
    case = CaseResult.of(batch, {**output, "added": output["pred"]}, result, network)
    assert list(case.labelmaps) == ["pred", "added"]  # what a config adds is a result, too; image and maps are none
    assert list(case.atlas_maps) == list(ATLAS_MAPS)
    write_atlas_maps(case, tmp_path, VALUES)
    suffix = source.removeprefix("scan")
    found = {
        name: read_volume(tmp_path / f"scan_{name}{suffix}", len(shape))
        for name in ("agreement", "winner", "atlas_1", "atlas_2")
    }
    white = 255 if suffix == ".png" else 1
    np.testing.assert_allclose(found["agreement"][0] / white, agreement[0, 0], atol=0.005)
    np.testing.assert_array_equal(found["winner"][0], winner[0, 0])
    for number in (1, 2):
        np.testing.assert_array_equal(found[f"atlas_{number}"][0], torch.tensor(VALUES)[labels[0, number - 1]])
    if suffix != ".png":
        np.testing.assert_allclose(found["winner"].pixdim, [2.0, 1.0, 1.0])


def test_a_case_without_maps_has_no_such_files(tmp_path: Path) -> None:
    case = CaseResult(
        "a", "a.nii", "", np.eye(4), Result(torch.zeros(1, 2, 3, 3), 0.0), {}, None, torch.zeros(1, 2, 3, 3)
    )
    write_atlas_maps(case, tmp_path, (0, 1))
    assert not list(tmp_path.iterdir())
