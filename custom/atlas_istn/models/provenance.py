# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Model files and the record beside each: ``model.json`` holds the SHA-256 of ``model.pt``, and how it came about."""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError
from ..io.files import save_tensors, write_whole
from ..io.outputs import write_json

__all__ = ["SETTINGS", "check_model_file", "check_sums", "read_record", "record_path", "save_model"]

SETTINGS = "settings"
"""Key of a record under which stand the settings that the model was trained with, see `model_settings`."""

_HASH = "sha256"


def record_path(model: str | Path) -> Path:
    """Return where the record of a model file lies: beside it, under the same name with the suffix ``.json``."""
    return Path(model).with_suffix(".json")


def save_model(
    state: Mapping[str, torch.Tensor], path: str | Path, record: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Write a model file and its record.

    The old record goes first, so that a run that is killed in between leaves a model without record, and never a
    record that accuses a good model.

    Args:
        state: the weights and the atlas.
        path: the model file; a model and a record of this name are replaced.
        record: what else the record says, as JSON has it; without it what the present record says.

    Returns:
        The record, the SHA-256 of the file included.

    Raises:
        InputError: a file cannot be written, or the present record cannot be read.
    """
    target = Path(path)
    content: dict[str, Any] = {}

    def write(part: Path) -> None:
        save_tensors(dict(state), part)
        content.update(read_record(target) if record is None else record)
        content[_HASH] = _sha256(part)
        record_path(target).unlink(missing_ok=True)

    write_whole(target, write)
    write_json(content, record_path(target))
    return content


def read_record(model: str | Path) -> dict[str, Any]:
    """Read the record of a model file; it is empty where there is none.

    Raises:
        InputError: the record cannot be read.
    """
    path = record_path(model)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return dict(content)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"{path}: expected the record that training writes beside {Path(model).name}, found a file that cannot be "
            f"read ({type(error).__name__}). Copy both files again, or remove it to use the model unchecked."
        ) from error


def check_model_file(path: str | Path) -> dict[str, Any]:
    """Compare a model file with the SHA-256 in its record; without one, with the checksums that it holds itself.

    Returns:
        The record; empty where there is none.

    Raises:
        InputError: the file is missing, damaged, or another one than that recorded.
    """
    record = read_record(path)
    expected = record.get(_HASH)
    if not expected:
        check_sums(path)
        return record
    try:
        found = _sha256(Path(path))
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}). Expected a model file. Check the path."
        ) from error
    if found != expected:
        raise InputError(
            f"{path}: damaged, or not the model that {record_path(path)} belongs to. Expected the SHA-256 {expected}, "
            f"found {found}. Copy both files again, or remove {record_path(path).name} to use the model unchecked."
        )
    return record


def check_sums(path: str | Path) -> None:
    """Compare what `torch.save` wrote with the checksums in the file, which `torch.load` does not look at.

    Raises:
        InputError: something differs. What is no such file at all passes: loading it will say so.
    """
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        damaged = str(error)
    if damaged:
        raise InputError(f"{path}: damaged, its checksums do not agree ({damaged}). Copy the file again.")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
