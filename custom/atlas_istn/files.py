# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Writing files so that they appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import InputError

__all__ = ["check_writable", "write_whole"]


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
        InputError: the folder cannot be written.
    """
    target = Path(path)
    part = target.with_name(f".{os.getpid()}.part.{target.name}")
    with _refusals_of(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(part)
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)


@contextmanager
def _refusals_of(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{target}: cannot be written ({error.strerror or error}). Expected a folder that may be written to and "
            "has free space. Choose another folder or free the space."
        ) from error
