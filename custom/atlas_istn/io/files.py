# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Writing files so that they appear whole or not at all, also where a process is killed or the power fails."""

from __future__ import annotations

import io
import os
import secrets
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ..errors import InputError

__all__ = ["check_writable", "muted", "remove_parts", "save_tensors", "walk", "write_whole"]

_PART = ".part."


def check_writable(folder: str | os.PathLike[str]) -> None:
    """Make a folder where there is none, and find out whether files can be written into it.

    Raises:
        InputError: they cannot.
    """
    with _refusals_of(Path(folder)):
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass


def write_whole(path: str | os.PathLike[str], write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file, then put it in place: the file appears whole or not at all.

    Args:
        path: the file; its folder is made where it is missing, and an older file of this name is replaced.
        write: called with the temporary path, which has the same suffix.

    Raises:
        InputError: the file cannot be written.
    """
    target = Path(path)
    # Containers that share a folder may have the same process numbers.
    part = target.with_name(f".{secrets.token_hex(8)}{_PART}{target.name}")
    with _refusals_of(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.touch()  # some writers say of a path that cannot be opened all but that
            write(part)
            _flush(part, os.O_RDWR)
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
        if hasattr(os, "O_DIRECTORY"):  # Windows does not open folders
            _flush(target.parent, os.O_RDONLY)


def save_tensors(content: object, path: str | os.PathLike[str]) -> None:
    """Do what `torch.save` does, through the memory.

    By a path, its name would become part of the content, and equal contents would give files that differ. On a full
    disk `torch.save` raises errors of its own.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    Path(path).write_bytes(buffer.getbuffer())


def remove_parts(folder: str | os.PathLike[str]) -> None:
    """Remove the temporary files that killed processes left in a folder, into which no other process writes now."""
    for path in Path(folder).glob(f".*{_PART}*"):
        path.unlink(missing_ok=True)


def _flush(path: Path, flags: int) -> None:
    """Have the disk itself hold a file, or the names in a folder."""
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _refusals_of(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{target}: cannot be written ({error.strerror or error}). Expected a place that may be written to and has "
            "free space. Choose another path or free the space."
        ) from error


@contextmanager
def muted() -> Iterator[None]:
    """Keep off the terminal what the C++ libraries print of a file that they cannot read; the caller says it better."""
    sys.stderr.flush()
    terminal = os.dup(2)
    try:
        with Path(os.devnull).open("wb") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)


def walk(folder: Path) -> Iterator[tuple[Path, list[Path]]]:
    """Yield a folder and all within it, links included, each with its files; nothing that is hidden."""
    seen = set()
    for inner, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(inner)
        folders[:] = sorted(name for name in folders if not name.startswith(".")) if real not in seen else []
        if real not in seen:
            yield Path(inner), [Path(inner, name) for name in sorted(names) if not name.startswith(".")]
        seen.add(real)
