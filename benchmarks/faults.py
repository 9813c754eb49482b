# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Faults and odd inputs: brings each about, and compares what a run makes of it with what is expected.

    python benchmarks/faults.py [--kinds NIFTI,DICOM] [--table FILE]

Every row is a run in a process of its own, which must end with the exit status and the words that the row names,
without a traceback, without a value of a patient's tag, with the finished cases kept and no temporary file left.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from pathlib import Path

import fire
import torch
from fault_rows import dicom, disk, kills, labels, nifti, settings, shared
from fault_rows.row import Row, attempt
from tqdm import tqdm

ALL = (nifti, dicom, labels, disk, settings, shared)


def try_all(kinds: str = "", table: str = "", names: str = "") -> None:
    """Try all faults and print the table.

    Args:
        kinds: beginnings of the kinds to try, with commas between; without it all.
        table: file for the whole table, in Markdown; the counts are printed anyway.
        names: a part of the names to try.
    """
    torch.set_num_threads(1)
    wanted = tuple(str(kind).lower() for kind in (kinds if isinstance(kinds, tuple) else kinds.split(",")))
    rows = [row for part in ALL for row in part.rows() if row.kind.lower().startswith(wanted) and names in row.name]
    found: list[tuple[Row, list[str]]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for number, row in enumerate(tqdm(rows, disable=not sys.stderr.isatty())):
            found.append((row, attempt(row, Path(scratch) / f"{number:03}")))
            if found[-1][1]:
                print(f"{row.kind}: {row.name}: {'; '.join(found[-1][1])}", flush=True)
        if not names and kills.KIND.lower().startswith(wanted):
            found += kills.tried(Path(scratch) / "kills")
    lines = ["| kind | fault | expected | found |", "| --- | --- | --- | --- |"]
    lines += [
        f"| {row.kind} | {row.name.replace('|', '/')} | {row.expected} | {'; '.join(misses) or 'as expected'} |"
        for row, misses in found
    ]
    if table:
        Path(table).write_text("\n".join(lines) + "\n", encoding="utf-8")
    tried, missed = Counter(row.kind for row, _ in found), Counter(row.kind for row, misses in found if misses)
    print("| kind | tried | not as expected |\n| --- | --- | --- |")
    for kind, count in tried.items():
        print(f"| {kind} | {count} | {missed[kind]} |")
    sys.exit(bool(missed))


if __name__ == "__main__":
    fire.Fire(try_all)
