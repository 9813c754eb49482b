# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.

"""Cases that cannot be trained on are all named before the first epoch."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from monai.transforms import AsDiscreted, Compose

from atlas_istn.errors import InputError
from atlas_istn.io.loading import LoadCased
from atlas_istn.training.cases import TrainingCases, check_cases

NAMES = {0: "background", 1: "core", 2: "shell"}
LABELS: dict[str, Any] = {
    "core": (1, {}),
    "shell": (2, {}),
    "empty": (0, {}),
    "unknown": (7, {}),
    "shifted": (1, {"shift": 3.0}),
}


def write(folder: Path, name: str) -> dict[str, str]:
    value, options = LABELS[name]
    image, label = folder / f"{name}.nii", folder / f"{name}_label.nii"
    voxels = np.random.default_rng(0).random((8, 8, 8)).astype(np.float32)
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), image)
    affine = np.eye(4)
    affine[0, 3] = options.get("shift", 0.0)
    classes = np.zeros((8, 8, 8), dtype=np.uint8)
    classes[2:5, 2:5, 2:5] = value
    nib.save(nib.Nifti1Image(classes, affine), label)
    return {"case": name, "image": str(image), "label": str(label)}


def cases(folder: Path, *names: str) -> TrainingCases:
    read = LoadCased(["image", "label"], 3, [0, 1, 2])
    data = [write(folder, name) for name in names]
    channels = AsDiscreted("label", to_onehot=3)
    return TrainingCases(data=data, transform=Compose([read, channels]), num_workers=2, progress=False)


def test_every_bad_case_of_both_lists_is_named_at_once(tmp_path: Path) -> None:
    training = cases(tmp_path, "core", "unknown", "shell", "shifted")
    validation = cases(tmp_path, "core")
    validation.failures["gone"] = "label: no such file"
    with pytest.raises(InputError) as caught:
        check_cases(training, validation, NAMES)
    lines = str(caught.value).splitlines()[1:]
    assert [line.split(":")[0].strip() for line in lines] == ["shifted", "unknown", "gone"]
    assert "unexpected label values 7" in lines[1]


def test_cases_without_names_are_called_by_their_images(tmp_path: Path) -> None:
    """As MONAI Label lists them."""
    entries = [write(tmp_path, name) for name in ("core", "unknown")]
    data = [{key: entry[key] for key in ("image", "label")} for entry in entries]
    read = Compose([LoadCased(["image", "label"], 3, [0, 1, 2])])
    training = TrainingCases(data=data, transform=read, progress=False)
    with pytest.raises(InputError, match=rf"  {re.escape(data[1]['image'])}: .*unexpected label values 7"):
        check_cases(training, training, NAMES)


def test_a_class_without_any_label_and_labels_of_background_alone_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=re.escape("shell (class 2): no training label has it")):
        check_cases(cases(tmp_path, "core"), cases(tmp_path, "core", "shell"), NAMES)
    with pytest.raises(InputError, match=r"empty: .*empty_label\.nii: nothing but background"):
        check_cases(cases(tmp_path, "core", "shell", "empty"), cases(tmp_path, "core"), NAMES)


def test_cases_in_both_lists_or_twice_in_one_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    check_cases(cases(tmp_path, "core", "shell"), cases(tmp_path, "core"), NAMES)
    assert "1 cases are in the training and in the validation list" in caplog.text
    caplog.clear()
    (tmp_path / "other").mkdir()
    check_cases(cases(tmp_path, "core", "shell", "shell"), cases(tmp_path / "other", "core"), NAMES)
    assert [record.getMessage() for record in caplog.records] == [
        "2 cases are in the training list more than once: shell, shell"
    ]
