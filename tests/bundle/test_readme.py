# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""The commands of the README: each is understood and its ids exist; with `pytest -m readme` each is run as it stands.

They run in a folder that has what the README's words in capitals stand for: DATA, SCANS, the cases CASE_A, FRAME_1, and
so on. Nothing of a command is changed but N, the number of processes; settings that make it small are put behind it.
"""

from __future__ import annotations

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.bundle import ConfigParser

from atlas_istn.__main__ import COMMANDS, understand
from atlas_istn.settings.check import check_settings
from atlas_istn.settings.table import SETTINGS
from support import ROOT

CONFIGS = ROOT / "bundle" / "configs"
SHAPE = (24, 32, 24)
CASES = ("CASE_A", "CASE_B", "FRAME_1", "FRAME_2", "FRAME_3")
SHORT = ["--max_epochs", "1", "--val_interval", "1", "--batch_size", "2", "--final_atlas_rounds", "1"]
TINY = {
    "letter_b": ["--num_training", "6", "--num_validation", "9", "--num_test", "2", "--num_corrupt", "2"],
    "training": [*SHORT, "--refine_iterations", "2"],
    "calibrate": ["--refine_iterations", "2"],
}
"""Workflow or command → what makes it small."""


PAGES = tuple(f"bundle/docs/{name}.md" for name in ("registration", "multi_atlas", "cross_modality"))


def readme_commands(page: str = "README.md") -> list[str]:
    """The commands of this package and its bundle in a page, in order, on one line each."""
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = r"```bash\n(?P<block>.*?)```"
    inline = r"(?<!`)`(?P<inline>(?:python -m (?:monai\.bundle|atlas_istn) \w|torchrun )[^`]*)`(?!`)"
    commands = []
    for found in re.finditer(f"{blocks}|{inline}", text, re.DOTALL):
        if found["inline"]:
            commands.append(" ".join(found["inline"].split()))
        else:
            commands += re.sub(r"\\\n\s*", "", found["block"]).splitlines()
    bare = dict.fromkeys(re.sub(r"\s+# .*", "", command) for command in commands)
    return [command for command in bare if command.startswith(("python -m", "torchrun"))]


def arguments_of(command: str) -> tuple[str, list[str]]:
    """Module and what is behind it."""
    words = shlex.split(command)
    module = words.index("-m") + 1
    return words[module], words[module + 1 :]


def options_of(arguments: Sequence[str]) -> dict[str, str]:
    """What follows each option, as MONAI's command line takes it."""
    assert len(arguments) % 2 == 0, f"an option without a value: {arguments}"
    assert all(name.startswith("--") for name in arguments[::2])
    return {name.removeprefix("--"): value for name, value in zip(arguments[::2], arguments[1::2], strict=True)}


def config_file(name: str) -> Path:
    """The bundle's file for one in the README; a bundle that training made has files of the same names."""
    if not name.startswith("bundle/"):
        return next(path for path in (CONFIGS / Path(name).name, CONFIGS / "pair" / Path(name).name) if path.is_file())
    assert (ROOT / name).is_file(), name
    return ROOT / name


@pytest.mark.parametrize(
    "command", [*readme_commands(), *(command for page in PAGES for command in readme_commands(page))]
)
def test_a_command_is_understood_and_its_ids_exist(command: str) -> None:
    module, (name, *arguments) = arguments_of(command)
    if module == "atlas_istn":
        place, function, _ = COMMANDS[name]
        understand(name, getattr(importlib.import_module(f"atlas_istn.{place}"), function), arguments)
        return
    assert module == "monai.bundle"
    if name != "run":
        assert name == "ckpt_export"
        options = options_of(arguments)
        assert {"net_id", "filepath", "ckpt_file", "meta_file", "config_file"} == options.keys()
        assert all((ROOT / options[option]).is_file() for option in ("ckpt_file", "meta_file", "config_file"))
        return
    run_id, *rest = arguments
    options = options_of(rest)
    files = [word for word in re.split(r"[\[\]',]", options.pop("config_file")) if word]
    parser = ConfigParser()
    parser.read_config([config_file(file) for file in files if Path(file).name not in ("data.yaml", "my_pairs.yaml")])
    assert isinstance(parser[run_id], list)
    assert not {option for option in options if option.partition("#")[0] not in SETTINGS}
    for option, value in options.items():
        parser[option] = value
    check_settings(parser.config)


def test_settings_that_pages_name_exist() -> None:
    options = {name for place, function, _ in COMMANDS.values() for name in parameters(place, function)}
    readme = re.findall(r"`--(\w+)[^`]*`", (ROOT / "README.md").read_text(encoding="utf-8"))
    foreign = {"index"}  # an option of pip's
    assert set(readme) - options - SETTINGS.keys() - foreign == set()
    page = (ROOT / "bundle" / "docs" / "settings.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.+?) \|", page, re.MULTILINE)
    assert rows
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} - SETTINGS.keys() == set()


def parameters(place: str, function: str) -> Sequence[str]:
    command = getattr(importlib.import_module(f"atlas_istn.{place}"), function)
    return [*command.__annotations__]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the README's words in capitals are files."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "bundle").symlink_to(ROOT / "bundle")
    (folder / "MODEL").symlink_to(ROOT / "bundle" / "models" / "model.pt")
    rng = np.random.default_rng(0)
    for part, names in {"DATA": [f"patient_{number:02}" for number in range(16)], "SCANS": CASES}.items():
        for name in names:
            write_case(folder / part, name, rng)
    points = [{"id": "1", "position": [0.0, 0.0, 0.0], "label": "middle"}]
    markup = {"markups": [{"type": "Fiducial", "coordinateSystem": "LPS", "controlPoints": points}]}
    (folder / "landmarks.mrk.json").write_text(str(markup).replace("'", '"'))
    lines = [f"{name},{'one' if number % 2 else 'other'}" for number, name in enumerate(CASES)]
    (folder / "groups.csv").write_text("\n".join(["case,group", *lines]) + "\n")
    shutil.copy(folder / "SCANS" / "labels" / "CASE_A.nii.gz", folder / "labels.nii.gz")
    shutil.rmtree(folder / "SCANS" / "labels")
    for image in (folder / "SCANS" / "images").iterdir():
        image.rename(folder / "SCANS" / image.name)
    (folder / "SCANS" / "images").rmdir()
    for name, case in (("A", CASES[0]), ("B", CASES[1])):
        shutil.copy(folder / "SCANS" / f"{case}.nii.gz", folder / f"{name}.nii.gz")
    return folder


def write_case(folder: Path, name: str, rng: np.random.Generator) -> None:
    """An ellipsoid somewhere about the middle, of two labels, and an image of it."""
    grid = np.indices(SHAPE, dtype=float) - np.reshape(SHAPE, (3, 1, 1, 1)) / 2 - rng.normal(0, 1, (3, 1, 1, 1))
    inside = np.square(grid / rng.normal([7, 9, 7], 0.4).reshape(3, 1, 1, 1)).sum(axis=0) < 1
    label = np.where(inside, 1 + (grid[1] > 0), 0).astype(np.uint8)
    image = (100.0 * label + rng.normal(100, 10, SHAPE)).astype(np.float32)
    for part, voxels in (("images", image), ("labels", label)):
        (folder / part).mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), folder / part / f"{name}.nii.gz")


@pytest.mark.readme
@pytest.mark.parametrize("command", readme_commands())
def test_a_command_runs(command: str, workplace: Path) -> None:
    """In the README's order: later commands need what earlier ones made."""
    words = shlex.split(re.sub(r"\bN\b", "2", command))
    module, arguments = arguments_of(command)
    name = arguments[1] if arguments[0] == "run" else arguments[0]
    options = dict(pairwise(words))
    if options.get("--output_dir") == "RESULTS":
        shutil.rmtree(workplace / "RESULTS", ignore_errors=True)
    if options.get("--bundle_root") == "DIR":
        with zipfile.ZipFile(workplace / "my_model.zip") as archive:
            archive.extractall(workplace / "DIR.parts")
        next((workplace / "DIR.parts").iterdir()).rename(workplace / "DIR")
    program = [sys.executable, *words[1:], *TINY.get(name, [])]
    if words[0] == "torchrun":  # in the place of the training before, not behind it
        program = [sys.executable, "-m", "torch.distributed.run", *program[1:], "--output_dir", "MANY"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "custom"), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(
        program, cwd=workplace, env=environment, capture_output=True, text=True, timeout=900, check=False
    )
    assert run.returncode == 0, f"{module} {name}: {run.stdout[-3000:]}\n{run.stderr[-3000:]}"
