# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Puts a packed bundle into the app `monaibundle` of MONAI Label. Runs in the environment of MONAI Label."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

CHANGES = Path(__file__).with_name("train.yaml")
ANSWERS = Path(__file__).with_name("answers.py")
JOIN = """

# Added by Atlas-ISTN: clients are told why a study cannot be segmented, and get pictures of models in 2D.
import sys
sys.path.append(os.path.dirname(os.path.abspath(__file__)))
from answers import answering, flat

MyApp.infer = answering(MyApp.infer)
MyApp.init_infers = flat(MyApp.init_infers)
"""
"""Behind the code of the app."""


def make_app(bundle: Path, app: Path, data_config: str) -> None:
    """Make the app where it is missing, and add the model where the app does not have one of this name.

    Args:
        bundle: zip, as `python -m atlas_istn pack` writes it; its name is that of the model.
        app: folder of the app; it must be named monaibundle.
        data_config: data config that the model was trained with, in the bundle's ``configs``; of no effect in a bundle
            that a training made, whose own configuration says it all.
    """
    if not app.is_dir():
        download = ["apps", "--download", "--name", app.name, "--output", str(app.parent)]
        subprocess.run([sys.executable, "-m", "monailabel.main", *download], check=True)  # noqa: S603
    shutil.copy(ANSWERS, app)
    code = (app / "main.py").read_text(encoding="utf-8")
    if JOIN not in code:
        (app / "main.py").write_text(code + JOIN, encoding="utf-8")
    model = app / "model" / bundle.stem
    if model.exists():
        sys.exit(f"{model} exists, and clients may have trained it. Remove it to install the bundle anew.")
    with zipfile.ZipFile(bundle) as archive:
        archive.extractall(model.parent)
    configs = model / "configs"
    if not (configs / "train.yaml").is_file():  # a bundle of atlases, which is not trained
        return
    own = [configs / data_config] if (configs / "data").is_dir() else []
    config = training_config([configs / "train.yaml", *own, CHANGES])
    ConfigParser.export_config_file(config, configs / "train.yaml", fmt="yaml", sort_keys=False)


def training_config(files: list[Path]) -> dict[str, Any]:
    """One training config, as MONAI Label wants it, in which the atlas stays as it is.

    The few studies of a client are no population to build an atlas from. So the handlers that build, check or draw it
    are left out, and the networks learn to register to the atlas that the model brings along.
    """
    config: dict[str, Any] = ConfigParser.load_config_files([str(file) for file in files])
    config["train"]["handlers"] = [
        handler
        for handler in config["train"]["handlers"]
        if "Atlas" not in handler["_target_"] and handler.get("handler") != "@train#atlas"
    ]
    return config


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("app", type=Path)
    parser.add_argument("--data_config", default="data/hippocampus.yaml")
    arguments = parser.parse_args()
    make_app(arguments.bundle, arguments.app, arguments.data_config)
