# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.

from __future__ import annotations

from pathlib import Path

import pytest
from monai.bundle import ConfigParser

from atlas_istn.settings.stack import ATLAS, PAIR, Family
from atlas_istn.settings.trained import trained_configs
from support import ROOT

CONFIGS = ROOT / "bundle" / "configs"


@pytest.mark.parametrize(("folder", "family"), [(CONFIGS, ATLAS), (CONFIGS / "pair", PAIR)], ids=["atlas", "pair"])
def test_a_training_in_several_processes_leaves_configurations_for_one(
    folder: Path, family: Family, tmp_path: Path
) -> None:
    def texts(*more: Path) -> dict[str, str]:
        parser = ConfigParser()
        parser.read_config([str(path) for path in (folder / "train.yaml", *more)])
        parser["max_epochs"] = 7
        return trained_configs(folder / "parts", parser.config, tmp_path, {}, family)

    alone = texts()
    assert "max_epochs: 7" in alone["train.yaml"]
    assert texts(CONFIGS / "multi_gpu_train.yaml") == alone
