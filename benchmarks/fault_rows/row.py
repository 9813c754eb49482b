# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""One fault: how it is brought about, what is expected, and the run that shows it, in a process of its own."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Row", "Work", "attempt"]

Work = Callable[[], object]

OUT = "out"
SECRET = "Canary"  # in everything that identifies a patient


@dataclass(frozen=True)
class Row:
    """One fault and what is expected of it.

    Attributes:
        kind: of the fault.
        name: what is wrong.
        prepare: makes the files in an empty folder, and returns what to run.
        status: exit status that is expected.
        says: what the run must say, whatever the case of letters.
        kept: files in the folder that must be there afterwards.
    """

    kind: str
    name: str
    prepare: Callable[[Path], Work]
    status: int = 1
    says: Sequence[str] = ()
    kept: Sequence[str] = ()

    @property
    def expected(self) -> str:
        """In words."""
        words = [f"status {self.status}"]
        words += [f"says '{text}'" for text in self.says]
        words += [f"{path} is there" for path in self.kept]
        return ", ".join(words)


def attempt(row: Row, folder: Path) -> list[str]:
    """Run a row in a process that is forked from this one; return what is not as expected."""
    folder.mkdir(parents=True)
    work = row.prepare(folder)
    log = folder.with_name(f"{folder.name}.log")
    status = _forked(work, log)
    said = log.read_text(errors="replace")
    misses = []
    if status != row.status:
        misses.append(f"status {status}")
    if "Traceback" in said:
        misses.append("a traceback")
    if SECRET in said:
        misses.append("a patient's tag is shown")
    misses += [f"does not say '{text}'" for text in row.says if text.lower() not in said.lower()]
    misses += [f"{path} is missing" for path in row.kept if not list(folder.glob(path))]
    for path in filter(os.path.ismount, folder.iterdir()):
        subprocess.run(["umount", str(path)], check=True)
    left = [path.name for path in folder.rglob(".*") if ".part." in path.name or path.name.startswith(".tmp")]
    return misses + [f"{name} is left" for name in left]


def _forked(work: Work, log: Path) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    try:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
        status = _ended(work)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _ended(work: Work) -> int:
    """Do the work as Python does that of a program; return its exit status."""
    try:
        work()
    except SystemExit as error:
        if error.code is not None and not isinstance(error.code, int):
            sys.stderr.write(f"{error.code}\n")
            return 1
        return error.code or 0
    except BaseException:
        if sys.excepthook is sys.__excepthook__:
            traceback.print_exc()
        else:
            sys.excepthook(*sys.exc_info())
        return 1
    return 0
