# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""One run at a time in an output folder, by a lock of the operating system, which ends with its process."""

from __future__ import annotations

import atexit
import errno
import logging
import os
from pathlib import Path
from typing import BinaryIO

from ..errors import InputError
from .files import check_writable

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["hold_folder", "release_folder"]

logger = logging.getLogger(__name__)

_NAME = ".lock"
_held: dict[str, BinaryIO] = {}


def hold_folder(folder: str | os.PathLike[str]) -> None:
    """Make this process the only one that writes into a folder, until it releases it or ends, however it ends.

    The folder is made where it is missing. A process that holds it already may ask again. The lock is one of the file
    ``.lock`` in the folder, which network file systems know too; the file is gone when the folder is released, and
    what a killed process leaves of it locks nobody out.

    Raises:
        InputError: another process holds the folder, or it cannot be written into.
    """
    check_writable(folder)
    key = os.path.realpath(folder)
    if fcntl is None or key in _held:
        return
    path = Path(key, _NAME)
    while key not in _held:
        stream = path.open("ab")
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            stream.close()
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                path.unlink(missing_ok=True)
                logger.warning("%s: the file system knows no locks: let no other run write into this folder", folder)
                return
            raise InputError(
                f"{folder}: another run is writing into this folder. Expected a folder of one run at a time. Wait for "
                "it to end, or choose another output_dir."
            ) from error
        if _is_at(path, stream):  # and was not removed by a process that released it in between
            _held[key] = stream
        else:
            stream.close()


def release_folder(folder: str | os.PathLike[str]) -> None:
    """Let others write into a folder; of no effect where this process does not hold it."""
    key = os.path.realpath(folder)
    stream = _held.pop(key, None)
    if stream is not None:
        path = Path(key, _NAME)
        if _is_at(path, stream):
            path.unlink(missing_ok=True)
        stream.close()


def _is_at(path: Path, stream: BinaryIO) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(stream.fileno()))
    except FileNotFoundError:
        return False


def _release_all() -> None:
    for folder in list(_held):
        release_folder(folder)


def _forget_all() -> None:
    """In a forked process: let go, or the lock would outlive the parent."""
    for stream in _held.values():
        stream.close()
    _held.clear()


atexit.register(_release_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
