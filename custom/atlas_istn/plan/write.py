# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""The files of a plan, and what must not be lost by planning again."""

from __future__ import annotations

import difflib
import hashlib
import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ..errors import InputError
from ..io.channels import files_of, namesake
from ..io.files import write_whole
from ..io.names import case_names
from ..io.outputs import write_json
from .decide import Decision
from .discover import Case

__all__ = ["check_folder", "data_config", "fold_config", "write_folds", "write_lists", "write_plan"]

CONFIG, RECORD, LISTS_FILE = Path("configs/data.yaml"), Path("plan.json"), Path("dataset.json")
_WIDTH = 110
_HASH = "config_sha256"


def check_folder(root: Path, config: str, overwrite: bool) -> None:
    """Refuse a folder in which a model was trained, or a configuration edited by hand, unless it may be overwritten.

    Args:
        root: the folder.
        config: what is about to be written.
        overwrite: do not refuse.

    Raises:
        InputError: something would be lost; names it, with the differences.
    """
    path = root / CONFIG
    if overwrite or not path.exists():
        return
    before = path.read_text(encoding="utf-8")
    record = json.loads((root / RECORD).read_text(encoding="utf-8")) if (root / RECORD).is_file() else {}
    folders = (root, *root.glob("fold_*"))
    trained = any(
        path for folder in folders for path in (*folder.glob("models/model.pt"), *folder.glob("checkpoints/*.pt"))
    )
    edited = record.get(_HASH) != _sha256(before)
    if not (trained or edited):
        return
    lines = difflib.unified_diff(before.splitlines(), config.splitlines(), "there", "planned", n=0, lineterm="")
    changes = "\n".join(f"  {line}" for line in list(lines)[2:] if not line.startswith("@@")) or "  none"
    what = "a model was trained with it" if trained else "it was edited"
    raise InputError(
        f"{path}: {what}, and would be lost. The differences:\n{changes}\n"
        "Choose another output_dir, or --overwrite true."
    )


def data_config(root: Path, settings: Mapping[str, Any], decisions: Sequence[Decision]) -> str:
    """Write the data configuration as text: what differs from the defaults, with the reasons.

    Args:
        root: the folder of the plan, which becomes the bundle's.
        settings: ids and values that no decision gave.
        decisions: the others.
    """
    lines = [
        "# Made by `plan`; edit it as you like. What it does not say is as in train.yaml. Train with",
        f"#   python -m monai.bundle run training --config_file \"['bundle/configs/train.yaml','{root / CONFIG}']\"",
        _dumped(settings),
    ]
    for decision in decisions:
        if decision.settings:
            lines += [*_comment(f"{decision.name}: {decision.reason}"), _dumped(decision.settings)]
    return "\n".join(lines).rstrip() + "\n"


def write_lists(root: Path, folder: Path, lists: Mapping[str, Sequence[Case]]) -> None:
    """Write ``dataset.json`` with the lists that were made, its paths relative to the data set."""
    entries = {name: [_entry(case) for case in cases] for name, cases in lists.items()}
    write_json({"root": str(folder.absolute()), **entries}, root / LISTS_FILE)


def _entry(case: Case) -> dict[str, Any]:
    """What the list says of a case; its name where the file does not tell it."""
    files = files_of(case.image)
    entry = {"image": files[0] if len(files) == 1 else list(files), "label": case.label}
    return entry if case_names([namesake(case.image)]) == [case.name] else {"case": case.name, **entry}


def write_plan(root: Path, config: str, record: Mapping[str, Any]) -> None:
    """Write the data configuration and ``plan.json``."""
    write_whole(root / CONFIG, lambda part: part.write_text(config, encoding="utf-8"))
    write_json({**record, _HASH: _sha256(config)}, root / RECORD)


def fold_config(root: Path, fold: int) -> Path:
    """Return the path of the configuration that goes behind that of the plan to train a fold."""
    return root / "configs" / f"fold_{fold}.yaml"


def write_folds(root: Path, number: int) -> None:
    """Write what the trainings of a cross-validation have of their own: lists, and a folder in that of the plan."""
    for old in (root / "configs").glob("fold_*.yaml"):
        old.unlink()
    for fold in range(number):
        folder = str(root / f"fold_{fold}")
        settings = {"train_list": f"training_fold{fold}", "val_list": f"validation_fold{fold}"}
        settings |= {"output_dir": folder, "bundle_root": folder}
        text = f"# Fold {fold} of {number}. Goes behind {CONFIG.name}, where all else is.\n{_dumped(settings)}\n"
        write_whole(fold_config(root, fold), lambda part, text=text: part.write_text(text, encoding="utf-8"))  # type: ignore[misc]


def _comment(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent="# ", subsequent_indent="# ", break_long_words=False)


def _dumped(settings: Mapping[str, Any]) -> str:
    lines = []
    for name, value in settings.items():
        text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**6, allow_unicode=True)
        lines.append(f"{name}: {text.removesuffix('...' + chr(10)).strip()}")
    return "\n".join(lines)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
