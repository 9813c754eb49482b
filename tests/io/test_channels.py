# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Images of several channels: in one file or in several, one case, and each channel by itself."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from PIL import Image

from atlas_istn.data.degradations import degrade
from atlas_istn.data.localise import Localised
from atlas_istn.data.transforms import ScalePercentilesd
from atlas_istn.errors import InputError
from atlas_istn.io.cases import find_cases
from atlas_istn.io.channels import ImagePath, files_of
from atlas_istn.io.loading import LoadCased, read_volume
from atlas_istn.io.outputs import write_image
from atlas_istn.io.sources import find_sources
from atlas_istn.networks import Locator
from atlas_istn.settings.table import SETTINGS
from atlas_istn.workflow.cohort import Cohort

AFFINE = np.diag([-1.0, 2.0, 3.0, 1.0])
NOISE = np.random.default_rng(0).normal(100, 20, (2, 6, 5, 4)).astype(np.float32)


def save(path: Path, voxels: np.ndarray, affine: np.ndarray = AFFINE) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, affine), path)
    return str(path)


def save_apart(folder: Path, name: str, voxels: np.ndarray = NOISE) -> ImagePath:
    return ImagePath([save(folder / f"{name}_{number:04}.nii.gz", one) for number, one in enumerate(voxels)])


def test_a_path_of_several_files_survives_copies() -> None:
    path = ImagePath(["a_0000.nii", "a_0001.nii"])
    for other in (copy.deepcopy({"image": path})["image"], pickle.loads(pickle.dumps(path))):
        assert other == "a_0000.nii"
        assert files_of(other) == ("a_0000.nii", "a_0001.nii")
    assert files_of("b.nii") == ("b.nii",)


def test_one_file_or_several_are_the_same_image(tmp_path: Path) -> None:
    apart = read_volume(save_apart(tmp_path, "a"), 3, channels=2)
    together = read_volume(save(tmp_path / "b.nii.gz", np.moveaxis(NOISE, 0, -1)), 3, channels=2)
    for volume in (apart, together):
        np.testing.assert_array_equal(volume, NOISE)
        np.testing.assert_array_equal(volume.affine, AFFINE)
        assert volume.meta["padding"].shape == (2,)
    image = LoadCased(["image", "label"], 3, channels=2)(
        {"image": save_apart(tmp_path, "a"), "label": save(tmp_path / "l.nii", np.ones((6, 5, 4), np.uint8))}
    )
    assert (image["image"].shape, image["label"].shape) == ((2, 6, 5, 4), (1, 6, 5, 4))


def test_flat_images_of_several_channels(tmp_path: Path) -> None:
    flat = NOISE[:, :, :, 0]
    for name, shape in (("a", (6, 5, 1, 2)), ("b", (6, 5, 1, 1, 2))):
        volume = read_volume(save(tmp_path / f"{name}.nii", np.moveaxis(flat, 0, -1).reshape(shape)), 2, channels=2)
        np.testing.assert_array_equal(volume, flat)
    write_image(np.moveaxis(flat, 0, -1), np.diag([-1.0, -1.0, 1.0]), tmp_path / "c.nii.gz")
    np.testing.assert_array_equal(read_volume(tmp_path / "c.nii.gz", 2, channels=2), flat)
    colours = np.random.default_rng(0).integers(0, 255, (7, 9, 3)).astype(np.uint8)  # [row, column, channel]
    Image.fromarray(colours).save(tmp_path / "d.png")
    np.testing.assert_array_equal(read_volume(tmp_path / "d.png", 2, channels=3), colours.T)


def test_another_number_of_channels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a_0000.*has 2 channels .*Expected a grey image.*train with in_channels"):
        read_volume(save_apart(tmp_path, "a"), 3)
    with pytest.raises(InputError, match=r"b\.nii: the image has 1 channel\. Expected 2 \(in_channels\)"):
        read_volume(save(tmp_path / "b.nii", NOISE[0]), 3, channels=2)
    moved = AFFINE.copy()
    moved[0, 3] = 5
    files = ImagePath([save(tmp_path / "c.nii", NOISE[0]), save(tmp_path / "d.nii", NOISE[1], moved)])
    with pytest.raises(InputError, match=r"d\.nii: the affine differs from that of the image.*c\.nii"):
        read_volume(files, 3, channels=2)


def test_channels_of_lists_and_folders_are_one_case(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_apart(tmp_path / "images", name)
    entries = {
        "listed": [{"image": ["images/a_0000.nii.gz", "images/a_0001.nii.gz"]}],
        "shortened": ["images/a.nii.gz", "images/b.nii.gz"],  # as nnU-Net has it
    }
    (tmp_path / "dataset.json").write_text(json.dumps(entries))
    (case,) = find_cases(str(tmp_path), "listed")
    assert case["case"] == "a"
    assert [Path(file).name for file in files_of(case["image"])] == ["a_0000.nii.gz", "a_0001.nii.gz"]
    cases = find_cases(str(tmp_path), "shortened")
    assert [(case["case"], len(files_of(case["image"]))) for case in cases] == [("a", 2), ("b", 2)]
    folder = str(tmp_path / "images")
    assert [case["case"] for case in find_cases(folder, several_channels=True)] == ["a", "b"]
    assert len(find_cases(folder)) == 4  # each an image of one channel
    for place in (tmp_path, tmp_path / "images"):
        sources = find_sources(place, "", ["b"], several_channels=True)
        assert Path(sources["b"]["image"]).name == "b_0000.nii.gz"
    (tmp_path / "images" / "b_0001.nii.gz").unlink()
    entries["listed"][0]["image"].append("images/b_0001.nii.gz")
    (tmp_path / "dataset.json").write_text(json.dumps(entries))
    with pytest.raises(InputError, match=r"1 files of the list 'listed' do not exist: .*b_0001"):
        find_cases(str(tmp_path), "listed")


def test_a_result_is_made_of_all_files(tmp_path: Path) -> None:
    image = save_apart(tmp_path, "a")
    cohort = Cohort(find_cases(str(tmp_path), several_channels=True), str(tmp_path), {})
    before = cohort.key({"image": image})
    save(tmp_path / "a_0001.nii.gz", NOISE[1] + 1)
    assert cohort.key({"image": image}) != before


def test_every_channel_is_scaled_by_itself() -> None:
    voxels = np.stack([NOISE[0], 1000 * NOISE[1] - 5, np.full_like(NOISE[0], 7)])
    scale = ScalePercentilesd("image", 1, 99, (-0.5, 5.0))
    both = scale({"image": MetaTensor(voxels)})["image"]
    for number in (0, 1):
        alone = scale({"image": MetaTensor(voxels[number : number + 1])})["image"]
        np.testing.assert_array_equal(both[number], alone[0])
    assert (both[2] == 0).all()  # it shows nothing
    windows = ScalePercentilesd("image", 1, 99, (-0.5, 5.0), window=[None, [0.0, 10.0], [0.0, 14.0]])
    found = windows({"image": MetaTensor(voxels)})["image"]
    np.testing.assert_array_equal(found[0], both[0])
    assert (found[2] == 0.5).all()
    with pytest.raises(InputError, match="expected one for each of 2 channels, found 3"):
        windows({"image": MetaTensor(voxels[:2])})


def test_windows_as_they_are_typed() -> None:
    setting = SETTINGS["intensity_window"]
    assert setting.read("[0, 10]") == [0, 10]
    assert setting.read("[[0, 10], null]") == [[0, 10], None]
    for wrong in ("[10, 0]", "[[0, 10], 3]", "[[0, 10, 20], null]", "3", "[]"):
        with pytest.raises(ValueError, match="2 rising numbers"):
            setting.read(wrong)


def test_the_locator_sees_all_channels() -> None:
    torch.manual_seed(0)
    locator = Locator(2, 2, [16, 16], [1.0, 1.0])
    scan = torch.rand(1, 2, 24, 20)
    found = locator(scan)
    assert found.shape == (1, 3, 24, 20)
    torch.testing.assert_close(locator(scan * torch.tensor([1.0, 50.0]).reshape(1, 2, 1, 1)), found)  # each is scaled
    assert not torch.allclose(locator(scan.flip(1)), found)


def test_channels_are_cut_and_degraded_alike() -> None:
    image = MetaTensor(NOISE[:, :, :, 0] + np.array([0, 1000])[:, None, None], affine=np.eye(4))
    label = MetaTensor(np.stack([np.ones((6, 5)), np.zeros((6, 5))]), affine=np.eye(4))
    label[:, 0, 0] = 1 - label[:, 0, 0]  # in a corner, so that the grid goes beyond the image
    cut = Localised(["image", "label"], [8, 8], [1.0, 1.0], truth="label")({"image": image, "label": label})["image"]
    for number in (0, 1):
        alone = Localised(["image", "label"], [8, 8], [1.0, 1.0], truth="label")(
            {"image": image[number : number + 1], "label": label}
        )["image"]
        np.testing.assert_array_equal(cut[number], alone[0])
        np.testing.assert_array_equal(cut.meta["padding"][number], alone.meta["padding"][0])
        faulty = degrade(image, "noise", 2, seed=1)[number]
        np.testing.assert_array_equal(faulty, degrade(image[number : number + 1], "noise", 2, seed=1)[0])
