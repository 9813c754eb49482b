# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Training of a pairwise ISTN by its configurations: the four objectives, transformations, 2D and 3D, resuming."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from atlas_istn.errors import InputError, input_error_behind
from pair_runs import PAIR, QUICK, run, write_config, write_pairs


@pytest.fixture(autouse=True)
def _hook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # the workflows replace it


def train(folder: Path, dim: int = 2, variant: str = "istn_e", transformation: str = "", **settings: object) -> Path:
    """Train on tiny pairs; return the folder of the run."""
    data = folder / "data"
    if not data.exists():
        write_pairs(data, dim)
    configs = [PAIR / "train.yaml", PAIR / "variants" / f"{variant}.yaml"]
    configs += [PAIR / "transformations" / f"{transformation}.yaml"] if transformation else []
    own = write_config(folder / "own.yaml", dim)
    options = {**QUICK, "dataset_dir": data, "output_dir": folder / "out", **settings}
    run("training", *configs, own, **options)
    return folder / "out"


@pytest.mark.parametrize(
    ("variant", "transformation"),
    [
        ("stn_u", ""),
        ("stn_s", ""),
        ("istn_e", ""),
        ("istn_i", ""),
        ("unet_itn", ""),
        ("two_way_consistent", "displacements"),
        ("di", "velocity"),
    ],
)
def test_each_objective_is_an_override(tmp_path: Path, variant: str, transformation: str) -> None:
    out = train(tmp_path, variant=variant, transformation=transformation)
    state = torch.load(out / "models" / "model.pt", weights_only=True)
    assert any(name.startswith("itn.") for name in state) == variant.startswith(("istn", "unet"))
    assert (out / "itn_evolution.png").exists()
    assert list((out / "tensorboard").iterdir())


@pytest.mark.parametrize("transformation", ["rigid", "velocity", "affine_b_spline"])
def test_the_same_configuration_serves_volumes_and_all_transformations(tmp_path: Path, transformation: str) -> None:
    out = train(tmp_path, 3, transformation=transformation, max_epochs=1)
    state = torch.load(out / "models" / "model.pt", weights_only=True)
    assert any("affine_head" in name for name in state) == (transformation != "velocity")
    assert any("field_head" in name for name in state) == (transformation != "rigid")


def test_a_resumed_training_ends_as_an_uninterrupted_one(tmp_path: Path) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    for folder in (whole, halves):
        folder.mkdir()
    augmented = {"augmentation_ranges": "{translation: 2, rotation: 0.2, scale: 0.1}"}
    first = train(whole, max_epochs=2, **augmented)
    train(halves, max_epochs=1, **augmented)
    second = train(halves, max_epochs=2, resume=True, **augmented)
    states = [torch.load(out / "checkpoints" / "checkpoint_2.pt", weights_only=True) for out in (first, second)]
    for name, value in states[0]["network"].items():
        torch.testing.assert_close(states[1]["network"][name], value, rtol=0, atol=0)


def test_pairs_drawn_from_images_train_too(tmp_path: Path) -> None:
    drawn = {"train_list": "training", "random_pairs": 3, "val_list": "training", "val_random_pairs": 2}
    out = train(tmp_path, **drawn, max_epochs=1, merge_structures=False)
    assert len([path for path in (out / "validation").iterdir() if "__" in path.name]) == 2


def test_pairs_without_structures_are_refused_by_all_objectives_but_u(tmp_path: Path) -> None:
    for label in (write_pairs(tmp_path / "data", 2) / "labelsTr").iterdir():
        label.unlink()
    with pytest.raises(RuntimeError) as caught:
        train(tmp_path)
    error = input_error_behind(caught.value)
    assert isinstance(error, InputError)
    assert "labelsTr" in str(error)
    with pytest.raises(RuntimeError) as caught:
        train(tmp_path, structures="none")
    assert "useless" in str(input_error_behind(caught.value))
    train(tmp_path, variant="stn_u", structures="none", overwrite=True)


@pytest.mark.slow
def test_two_processes_train_together_and_resume(tmp_path: Path) -> None:
    """Both runs end with the same weights, and the first process makes a bundle of all validation pairs."""
    write_pairs(tmp_path / "data", 2, count=6)
    own = write_config(tmp_path / "own.yaml", 2)
    configs = [PAIR / "train.yaml", PAIR / "transformations" / "affine_velocity.yaml", own]
    configs.append(PAIR.parent / "multi_gpu_train.yaml")

    def train_together(name: str, **more: object) -> Path:
        settings = {**QUICK, "dataset_dir": tmp_path / "data", "output_dir": tmp_path / name, **more}
        del settings["device"]
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        command += ["-m", "monai.bundle", "run", "training", "--config_file", str([str(path) for path in configs])]
        command += [text for key, value in settings.items() for text in (f"--{key}", str(value))]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        return tmp_path / name

    whole = train_together("whole")
    halves = train_together("halves", max_epochs=1)
    assert train_together("halves", resume=True) == halves
    first, second = (
        torch.load(out / "checkpoints" / "checkpoint_2.pt", weights_only=True)["network"] for out in (whole, halves)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert len([path for path in (halves / "validation").iterdir() if "__" in path.name]) == 2
    assert (halves / "models" / "model.pt").is_file()
    assert (halves / "configs" / "metadata.json").is_file()
