# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from atlas_istn.errors import InputError
from atlas_istn.inferers.segmenters import Fold, OutOfFold


def test_an_image_is_seen_by_the_folds_that_were_not_trained_with_it(
    dim: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shares = (0.2, 0.4, 0.9)
    trained = [["a.nii", "b.nii"], ["b.nii", "c.nii"], ["b.nii", str(tmp_path / "a.nii")]]
    folds = [
        Fold(f"fold_{k}", lambda image, share=share: image * 0 + share, names)
        for k, (share, names) in enumerate(zip(shares, trained, strict=True))
    ]
    images = torch.rand(3, 1, *[4] * dim)
    sources = [str(tmp_path / "a.nii"), "c.nii", ""]
    seen = OutOfFold(folds)(images, sources)
    assert seen.shape == images.shape
    for one, expected in zip(seen, (0.4, (0.2 + 0.9) / 2, sum(shares) / 3), strict=True):
        torch.testing.assert_close(one, torch.full_like(one, expected))
    with pytest.raises(InputError, match=r"every one of fold_0, fold_1, fold_2 was trained with b\.nii"):
        OutOfFold(folds)(images[:1], ["b.nii"])
