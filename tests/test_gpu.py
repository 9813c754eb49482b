# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Training, refinement and inference on a CUDA device, where there is one: `pytest -m gpu`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigWorkflow

from atlas_istn.data.letter_b import generate_letter_b
from atlas_istn.fusion.atlases import WarpedAtlases
from atlas_istn.fusion.base import LabelFusion
from atlas_istn.fusion.joint import JointLabelFusion, VoteNetPlus
from atlas_istn.fusion.staple import Staple
from atlas_istn.fusion.vote import LocallyWeightedVote, PluralityVote, TrustedVote
from support import ROOT

CONFIGS = ROOT / "bundle" / "configs"

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]


def test_a_model_is_trained_and_used_on_the_device(tmp_path: Path) -> None:
    generate_letter_b(tmp_path / "data", num_training=8, num_validation=4, num_test=1, num_corrupt=4)
    common = {"dataset_dir": str(tmp_path / "data"), "device": "$torch.device('cuda')"}
    data = str(CONFIGS / "data" / "letter_b.yaml")
    train = ConfigWorkflow(
        config_file=[str(CONFIGS / "train.yaml"), data],
        run_id="training",
        logging_file=False,
        **common,
        output_dir=str(tmp_path / "out"),
        max_epochs=2,
        batch_size=4,
        val_interval=1,
    )
    train.initialize()
    train.run()
    files = [str(CONFIGS / name) for name in ("inference.yaml", "evaluate.yaml")]
    evaluate = ConfigWorkflow(
        config_file=[*files, data],
        run_id="evaluate",
        logging_file=False,
        **common,
        test_list="test_corrupt",
        ckpt_path=str(tmp_path / "out/models/model.pt"),
        output_dir=str(tmp_path / "results"),
    )
    evaluate.initialize()
    evaluate.run()
    assert len(list((tmp_path / "results").glob("*/*_seg.png"))) == 4


@pytest.mark.parametrize(
    "fusion", [PluralityVote(), LocallyWeightedVote(), Staple(), JointLabelFusion(), TrustedVote(), VoteNetPlus()]
)
def test_labels_are_fused_on_the_device_as_on_the_cpu(fusion: LabelFusion) -> None:
    torch.manual_seed(0)
    target = torch.randn(1, 14, 15, 16)
    images = target + torch.randn(4, 1, 14, 15, 16)
    parts = torch.randint(0, 3, (4, 14, 15, 16)), images, target, torch.rand(4, 14, 15, 16)
    here = fusion(WarpedAtlases(*parts))
    there = fusion(WarpedAtlases(*(part.cuda() for part in parts)))
    assert there.labels.is_cuda
    torch.testing.assert_close(there.posterior.cpu(), here.posterior, rtol=1e-3, atol=1e-4)
