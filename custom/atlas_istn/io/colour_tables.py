# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Names and colours of labels in files for 3D Slicer and ITK-SNAP, which show label maps with them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from PIL import ImageColor

from .files import write_whole

__all__ = ["write_colour_tables"]

_ITK_SNAP = """################################################
# ITK-SnAP Label Description File
# IDX   -R-  -G-  -B-  -A--  VIS MSH  LABEL
################################################
"""


def write_colour_tables(folder: str | os.PathLike[str], labels: Mapping[int, tuple[str, str]]) -> None:
    """Write ``labels.ctbl``, a colour table of 3D Slicer, and ``labels.label.txt``, label descriptions of ITK-SNAP.

    Args:
        folder: for the two files.
        labels: value in the label maps → name and colour (``#rrggbb``), without the background. Neither program has
            negative labels: those are left out.

    Raises:
        InputError: the folder cannot be written.
    """
    slicer, itk_snap = ["0 background 0 0 0 0"], ['0 0 0 0 0 0 0 "Clear Label"']
    for value, (name, colour) in sorted(labels.items()):
        if value > 0:
            rgb = " ".join(str(channel) for channel in ImageColor.getrgb(colour)[:3])
            slicer.append(f"{value} {'_'.join(name.split())} {rgb} 255")  # blanks part the columns
            itk_snap.append(f'{value} {rgb} 1 1 1 "{name.replace(chr(34), chr(39))}"')
    texts = {"labels.ctbl": "# Color table file\n", "labels.label.txt": _ITK_SNAP}
    for (file, head), lines in zip(texts.items(), (slicer, itk_snap), strict=True):
        _write(Path(folder) / file, head + "\n".join(lines) + "\n")


def _write(path: Path, text: str) -> None:
    write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))
