# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""The inputs that once failed, each as its README expects."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import yaml

from .row import Row, Work
from .runs import CASES, ROOT, copy_case, evaluate, infer, train

__all__ = ["rows"]


def _infer(name: str, inner: str, settings: dict[str, object], folder: Path) -> Work:
    case = copy_case(name, folder)
    if name == "09_annex_symlink":
        store = next((case / "data" / ".store").glob("*.nii.gz"))
        (case / "data" / "sub-01_T1w.nii.gz").symlink_to(store.relative_to(case / "data"))
    return lambda: infer(folder, case / inner, ckpt_path=_shipped(), **{**_own(), **settings})


def _shipped() -> str:
    return str(ROOT / "bundle" / "models" / "model.pt")


def _own() -> dict[str, object]:
    """Undo what makes the small model."""
    config = yaml.safe_load((ROOT / "bundle" / "configs" / "inference.yaml").read_text())
    return {**{name: config[name] for name in ("spatial_size", "itn", "itn_activation")}, "stn#channels": [32, 64, 128]}


def _evaluate(name: str, settings: dict[str, object], folder: Path) -> Work:
    case = copy_case(name, folder)
    return lambda: evaluate(folder, case, ckpt_path=_shipped(), **{**_own(), **settings})


def _train(name: str, lists: tuple[str, str], folder: Path) -> Work:
    case = copy_case(name, folder)
    own = yaml.safe_load((case / "tiny.yaml").read_text())
    chosen = {"train_list": lists[0], "val_list": lists[1]}
    return lambda: train(folder, case / "data", **own, **chosen)


INFERRED: dict[str, tuple[str, dict[str, object], int, tuple[str, ...], tuple[str, ...]]] = {
    "01_no_orientation_codes": ("", {}, 0, ("no orientation",), ("out/scan/scan_seg.nii.gz",)),
    "02_sform_qform_differ": ("", {}, 0, ("scan.nii.gz: ", "sform"), ("out/scan/scan_seg.nii.gz",)),
    "03_sform_spacing_not_pixdim": ("", {}, 0, ("scan_sform_only.nii.gz: ",), ("out/scan_sform_only/*_seg.nii.gz",)),
    "04_negative_pixdim": ("", {}, 0, ("scan.nii.gz: ",), ("out/scan/scan_seg.nii.gz",)),
    "05_one_hot_voxel": ("", {}, 0, ("results of 2 cases",), ("out/hot/hot_seg.nii.gz",)),
    "06_constant_border": ("", {}, 0, ("padding",), ("out/pad_minus1024_one_plane/*_seg.nii.gz",)),
    "07_complex": ("", {}, 1, ("scan.nii.gz", "complex"), ()),
    "08_units_micron_metre": (
        "",
        {},
        0,
        ("results of 2 cases",),
        ("out/g02_metre/*_seg.nii.gz",),
    ),
    "09_annex_symlink": ("data", {}, 0, (), ("out/sub-01_T1w/sub-01_T1w_seg.nii.gz",)),
    "10_case_named_atlas": ("", {}, 0, ("results of 2 cases",), ("out/atlas_2/atlas_2_seg.nii.gz",)),
    "15_dicom_appledouble": ("data", {}, 0, ("results of 1 cases",), ("out/data/data_seg.nii.gz",)),
    "16_dicom_no_preamble_skipped": ("data", {}, 0, ("results of 2 cases",), ("out/old_series/*_seg.nii.gz",)),
    "17_cd_with_dicomdir": ("data", {}, 0, ("results of 1 cases",), ("out/SE1/SE1_seg.nii.gz",)),
    "18_seg_orientation_rounding": ("data", {"output_format": "dicom_seg"}, 0, (), ("out/data/data_seg.dcm",)),
    "19_positions_one_decimal": ("data", {}, 0, (), ("out/data/data_seg.nii.gz",)),
    "20_pixel_padding": ("data", {}, 0, (), ("out/data/data_seg.nii.gz",)),
    "21_own_seg_inside": ("data", {"output_format": "dicom_seg"}, 0, (), ("out/data/data_seg.dcm",)),
}
SCORED: dict[str, dict[str, object]] = {
    "11_label_float_eps": {},
    "12_label_affine_4um": {},
    "22_label_ids_over_2p24": {"label_values": [0, 614454277, 312782574]},
}
TRAINED: dict[str, tuple[tuple[str, str], str]] = {
    "14_class_never_present": (("no2", "no2_val"), "posterior (class 2)"),
}


def rows() -> Iterator[Row]:
    """All inputs, where they are at hand."""
    if not CASES.is_dir():
        return
    kind = "inputs that once failed"
    for name, (inner, settings, status, says, kept) in INFERRED.items():
        yield Row(kind, name, partial(_infer, name, inner, settings), status, says, kept)
    for name, settings in SCORED.items():
        yield Row(kind, name, partial(_evaluate, name, settings), 0, (), ("out/metrics.csv", "out/*/*_seg.nii.gz"))
    for name, (lists, reason) in TRAINED.items():
        yield Row(kind, name, partial(_train, name, lists), 1, (reason,))
    aborting = partial(_train, "13_training_aborts", ("eps", "plain_val"))
    for number in range(5):  # it aborted in three of five; its label is one of those that are accepted now
        yield Row(kind, f"13_training_aborts, {number}", aborting, 0)
