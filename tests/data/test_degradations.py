# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Each degradation does to a known image what its name says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from PIL import Image

from atlas_istn.data.degradations import KINDS, degrade, degrade_dataset
from atlas_istn.errors import InputError
from atlas_istn.io.cases import find_cases
from atlas_istn.io.loading import LoadCased

SHAPES = {2: (48, 40), 3: (24, 28, 20)}
STRENGTHS = (1, 2, 3)


def picture(dim: int, scale: float = 1.0, offset: float = 0.0, spacing: float = 1.0) -> MetaTensor:
    """A smooth pattern with a bright ball, between 0 and 1, scaled and shifted."""
    axes = torch.meshgrid(*[torch.linspace(-1, 1, n) for n in SHAPES[dim]], indexing="ij")
    pattern = 0.3 + 0.2 * torch.stack([torch.cos(3 * x + k) for k, x in enumerate(axes)]).mean(dim=0)
    pattern[torch.stack(axes).norm(dim=0) < 0.5] += 0.5
    affine = torch.diag(torch.tensor([*[spacing] * 3, 1.0], dtype=torch.float64))
    return MetaTensor(scale * pattern[None] + offset, affine=affine)


def change(image: MetaTensor, kind: str, strength: int, seed: int = 0) -> np.ndarray:
    return degrade(image, kind, strength, seed).numpy() - image.numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_stronger_means_farther_from_the_original(kind: str, dim: int) -> None:
    image = picture(dim)
    for seed in range(3):
        sizes = [np.square(change(image, kind, strength, seed)).mean() for strength in STRENGTHS]
        assert 0 < sizes[0] < sizes[1] < sizes[2]


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_draws_the_same(kind: str, dim: int) -> None:
    image = picture(dim)
    before = image.clone()
    first, again = (degrade(image, kind, 2, seed=4) for _ in range(2))
    np.testing.assert_array_equal(first.numpy(), again.numpy())
    np.testing.assert_array_equal(image.numpy(), before.numpy())
    assert first.dtype == torch.float32
    torch.testing.assert_close(first.affine, image.affine)
    if kind != "blur":  # nothing is drawn
        others = [degrade(image, kind, 2, seed).numpy() for seed in range(5, 10)]
        assert any(not np.array_equal(first.numpy(), other) for other in others)


@pytest.mark.parametrize("kind", KINDS)
def test_strength_does_not_depend_on_the_units(kind: str, dim: int) -> None:
    """Intensities in other units, as MR has them, are degraded alike."""
    plain, scaled = (degrade(picture(dim, *units), kind, 2).numpy() for units in ((1.0, 0.0), (5000.0, -1000.0)))
    np.testing.assert_allclose((scaled + 1000) / 5000, plain, atol=1e-4)  # single precision of numbers up to 5000


def test_noise_is_white_and_gaussian_with_the_given_deviation() -> None:
    image = picture(3)
    low, high = np.percentile(image.numpy(), [1, 99])
    for strength, deviation in zip(STRENGTHS, KINDS["noise"][1], strict=True):
        noise = change(image, "noise", strength)[0] / (high - low)
        assert noise.std() == pytest.approx(deviation, rel=0.03)  # three standard errors of 13,440 voxels are 2 %
        assert abs(noise.mean()) < 4 * deviation / np.sqrt(noise.size)
        assert abs(np.corrcoef(noise[1:].ravel(), noise[:-1].ravel())[0, 1]) < 0.04


def test_a_bias_field_multiplies_smoothly(dim: int) -> None:
    """The logarithm of the quotient is a cubic polynomial: its fourth differences vanish."""
    image = picture(dim)
    low, high = np.percentile(image.numpy(), [1, 99])
    normalised = (image.numpy()[0] - low) / (high - low)
    bright = np.where(np.abs(normalised) > 0.05, normalised, np.nan)  # else the quotient has no precision
    field = 1 + change(image, "bias_field", 3)[0] / (high - low) / bright
    logarithm = np.log(field)
    assert np.nanmax(np.abs(np.diff(logarithm, axis=0))) > 1e-3
    assert np.nanmax(np.abs(np.diff(logarithm, n=4, axis=0))) < 1e-4


def test_blur_is_a_gaussian_in_millimetres() -> None:
    """The variance of a blurred point is sigma squared, whatever the voxel size."""
    for spacing in (0.5, 1.0):
        image = MetaTensor(torch.zeros(1, 41, 41), affine=torch.diag(torch.tensor([spacing, spacing, 1.0, 1.0])))
        image[0, 20, 20] = 1.0
        for strength, sigma in zip(STRENGTHS, KINDS["blur"][1], strict=True):
            blurred = degrade(image, "blur", strength)[0].numpy()
            assert blurred.sum() == pytest.approx(1.0, abs=1e-3)
            offsets = (np.arange(41) - 20) * spacing
            # A Gaussian that is sampled at a voxel's size and cut at four sigmas has nearly, not quite, this variance.
            assert (blurred.sum(axis=1) * offsets**2).sum() == pytest.approx(sigma**2, rel=0.1)


def test_blur_leaves_a_constant_border_as_it_is() -> None:
    image = picture(2)
    image[:, :8] = 0.25
    assert np.abs(change(image, "blur", 3)[0, 0, 4:-4]).max() < 1e-3


def test_contrast_keeps_the_order_of_the_intensities(dim: int) -> None:
    image = picture(dim)
    order = np.argsort(image.numpy().ravel(), kind="stable")
    means = set()
    for seed in range(8):
        values = degrade(image, "contrast", 3, seed).numpy().ravel()[order]
        assert np.diff(values).min() >= -1e-6
        means.add(round(float(values.mean()), 4))
    assert len(means) == 2  # darker or brighter
    assert min(means) < float(image.mean()) < max(means)


def test_ghosts_are_shifted_copies(dim: int) -> None:
    """A point spreads along the phase-encoding axis alone, and loses no energy."""
    shape = (64, 48, 4)[:dim]
    image = MetaTensor(torch.zeros(1, *shape), affine=torch.eye(4))
    image[(0, 32, 24, *[2] * (dim - 2))] = 1.0
    directions = set()
    for seed in range(8):
        ghosts = degrade(image, "ghosting", 1, seed).numpy()[0]
        hit = np.argwhere(ghosts > 0.02)
        assert all(len(set(hit[:, k])) == 1 for k in range(2, dim))
        along = [k for k in (0, 1) if len(set(hit[:, k])) > 1]
        assert len(along) == 1
        directions.add(along[0])
        # The phases of the lines have modulus 1, so that the energy stays (Parseval).
        assert np.square(ghosts).sum() == pytest.approx(1.0, abs=1e-4)
    assert directions == {0, 1}


def test_a_block_is_missing(dim: int) -> None:
    image = picture(dim)
    for strength, share in zip(STRENGTHS, KINDS["missing_block"][1], strict=True):
        places = set()
        for seed in range(4):
            changed = np.argwhere(np.abs(change(image, "missing_block", strength, seed)[0]) > 1e-5)
            degraded = degrade(image, "missing_block", strength, seed).numpy()[0]
            low, high = changed.min(axis=0), changed.max(axis=0)
            assert all(high - low + 1 <= np.round(np.multiply(share, SHAPES[dim])))
            assert np.ptp(degraded[tuple(changed.T)]) < 1e-6
            assert degraded[tuple(changed[0])] == pytest.approx(float(image.min()), abs=1e-6)
            places.add(tuple(low))
        assert len(places) > 1


@pytest.mark.parametrize(
    ("kind", "strength", "message"),
    [("fog", 1, "kind 'fog': expected one of noise,"), ("noise", 4, "strength 4: expected 1, 2 or 3")],
)
def test_unknown_degradations_are_refused(kind: str, strength: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        degrade(picture(2), kind, strength)


def test_a_constant_image_is_refused() -> None:
    with pytest.raises(InputError, match="constant"):
        degrade(MetaTensor(torch.ones(1, 8, 8)), "noise", 1)


def write_dataset(root: Path, suffix: str, count: int = 2) -> Path:
    """Images and labels of a set, in one folder each, with a list of the cases in another order."""
    dim = 2 if suffix == ".png" else 3
    rng = np.random.default_rng(0)
    entries = []
    for index in reversed(range(count)):
        entry = {key: f"{key}s/case_{index}{suffix}" for key in ("image", "label")}
        pixels = (picture(dim).numpy()[0] * 200 + rng.integers(0, 20, SHAPES[dim])).astype(np.uint8)
        for key, voxels in (("image", pixels), ("label", (pixels > 150).astype(np.uint8))):
            path = root / entry[key]
            path.parent.mkdir(parents=True, exist_ok=True)
            if dim == 2:
                Image.fromarray(voxels.T).save(path)
            else:
                nib.save(nib.Nifti1Image(voxels, np.diag([-1.5, 1.0, 2.0, 1.0])), path)
        entries.append(entry)
    (root / "dataset.json").write_text(
        json.dumps({"name": "set", "labels": {"0": "background", "1": "ball"}, "training": [], "test": entries})
    )
    return root


@pytest.mark.parametrize("suffix", [".png", ".nii.gz"])
def test_a_data_set_keeps_names_grids_and_labels(tmp_path: Path, suffix: str) -> None:
    source = write_dataset(tmp_path / "source", suffix)
    degrade_dataset(source, tmp_path / "target", kind="bias_field", strength=3)
    content = json.loads((tmp_path / "target" / "dataset.json").read_text())
    assert content["name"] == "set"
    assert content["degradation"] == {"kind": "bias_field", "strength": 3, "seed": 0}
    assert "training" not in content

    before, after = (find_cases(str(root), "test", True) for root in (source, tmp_path / "target"))
    load = LoadCased(["image", "label"], 2 if suffix == ".png" else 3)
    assert [case["case"] for case in before] == [case["case"] for case in after] == ["case_0", "case_1"]
    differences = []
    for old, new in zip(before, after, strict=True):
        assert Path(new["label"]).read_bytes() == Path(old["label"]).read_bytes()
        first, second = load(old), load(new)  # which also checks that image and label share their grid
        torch.testing.assert_close(first["image"].affine, second["image"].affine)
        differences.append((second["image"] / (first["image"] + 1)).numpy())
    assert not np.allclose(differences[0], differences[1], atol=0.1)  # each case has a field of its own


def test_a_case_does_not_depend_on_the_others(tmp_path: Path) -> None:
    both = write_dataset(tmp_path / "both", ".nii.gz")
    one = write_dataset(tmp_path / "one", ".nii.gz", count=1)
    (one / "images" / "case_0.nii.gz").write_bytes((both / "images" / "case_0.nii.gz").read_bytes())
    for root in (both, one):
        degrade_dataset(root, root / "degraded", kind="noise", strength=1)
    voxels = [nib.load(root / "degraded" / "imagesTs" / "case_0.nii.gz").get_fdata() for root in (both, one)]
    np.testing.assert_array_equal(*voxels)


def test_the_data_set_itself_is_not_overwritten(tmp_path: Path) -> None:
    source = write_dataset(tmp_path / "source", ".png")
    with pytest.raises(InputError, match="Choose another folder"):
        degrade_dataset(source, source, kind="noise", strength=1)


def test_the_command(tmp_path: Path) -> None:
    source = write_dataset(tmp_path / "source", ".png", count=1)
    command = [sys.executable, "-m", "atlas_istn", "degrade", source, tmp_path / "out", "--kind", "fog"]
    wrong = subprocess.run([*command, "--strength", "2"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 1
    assert "error: kind 'fog': expected one of noise" in wrong.stderr
    right = [*command[:-1], "ghosting", "--strength", "2", "--data_list", "test"]
    subprocess.run(right, capture_output=True, check=True)
    assert (tmp_path / "out" / "imagesTs" / "case_0.png").is_file()
