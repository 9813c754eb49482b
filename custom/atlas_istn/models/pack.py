# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""One file that holds the bundle and the package, for machines on which only the requirements are installed."""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from ..errors import InputError
from ..io.files import write_whole
from .export import load_network

__all__ = ["pack_bundle"]

_PACKAGE = Path(__file__).resolve().parents[1]
_LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.py[cod]", ".*", "experiments", "experiments.md")
_OF_TRAINING = shutil.ignore_patterns(
    *(
        "checkpoints",
        "tensorboard",
        "atlas_evolution*",
        "validation",
        "results",
        "plan.json",
        "plan.png",
        "dataset.json",
        "data.yaml",
    ),
    *("initial_atlas.pt", "locator.*", "fold_*", "ensemble"),
)
"""What a trained bundle holds beside what it needs; some of it names files of the data set."""
_PATHS = {"bundle_root": ".", "dataset_dir": "data", "output_dir": "output", "data_list_file": "null"}
"""Ids that are paths of the machine on which a model was trained → what stands for them elsewhere."""


def pack_bundle(bundle_dir: str = "bundle", output: str = "hippocampus_atlas_istn.zip") -> None:
    """Write a zip of a bundle with the package inside, which runs where only the requirements are installed.

    The zip holds one folder, named as the file. In it the package lies beside ``configs``, since MONAI's runner, MONAI
    Label and MONAI Deploy all look for Python modules in the bundle's root. ``requirements.txt`` there lists what has
    to be installed. The records of experiments, and what a training leaves beside its model, stay behind; paths of this
    machine are taken out of the configurations.

    Args:
        bundle_dir: folder with ``configs`` and ``models/model.pt``.
        output: the zip file.

    Raises:
        InputError: the folder is no bundle, its weights do not fit ``configs/inference.yaml``, or the file cannot be
            written.
    """
    bundle, target = Path(bundle_dir), Path(output)
    if target.suffix != ".zip":
        raise InputError(f"output {target}: the name has another suffix. Expected a file name that ends with .zip.")
    _check(bundle)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / target.stem
        shutil.copytree(bundle, root, ignore=lambda path, names: _LEFT_OUT(path, names) | _OF_TRAINING(path, names))
        for config in (root / "configs").glob("*.yaml"):
            config.write_text(_portable(config.read_text(encoding="utf-8")), encoding="utf-8")
        shutil.copytree(_PACKAGE, root / _PACKAGE.name, ignore=_LEFT_OUT)
        (root / "requirements.txt").write_text("\n".join(_requirements()) + "\n", encoding="utf-8")
        archive = shutil.make_archive(f"{root}-packed", "zip", folder, root.name)
        write_whole(target, lambda part: shutil.copyfile(archive, part))
    sys.stdout.write(f"{target}: {target.stat().st_size / 1e6:.1f} MB\n")


def _portable(text: str) -> str:
    """A configuration without absolute paths at its top level."""
    for name, elsewhere in _PATHS.items():
        text = re.sub(rf"^{name}: ['\"]?/.*$", f"{name}: {elsewhere}", text, flags=re.MULTILINE)
    return text


def _check(bundle: Path) -> None:
    """Refuse what would be no working bundle once it is unpacked."""
    metadata = bundle / "configs" / "metadata.json"
    if not metadata.is_file():
        raise InputError(f"{metadata}: no such file. Expected a bundle with configs and models. Set bundle_dir to one.")
    load_network(bundle / "configs" / "inference.yaml")


def _requirements() -> list[str]:
    """What pip has to install, as the package itself states it."""
    try:
        stated = requires("atlas-istn") or []
    except PackageNotFoundError as error:
        raise InputError(
            "the package atlas-istn is not installed, so its requirements are unknown. Install it."
        ) from error
    return [line for line in stated if "extra ==" not in line]
