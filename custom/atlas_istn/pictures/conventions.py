# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Names, colours, units and formats that are the same in every picture."""

from __future__ import annotations

from pathlib import Path

from ..errors import InputError

__all__ = ["LABEL_COLOURS", "LABEL_LINES", "RESULTS", "RESULT_COLOURS", "check_picture", "length_unit"]

RESULTS = {"itn": "ITN", "one_pass": "1-pass", "refine": "refined"}
"""Name of a result → its title."""
RESULT_COLOURS = {"itn": "#ff9a3d", "one_pass": "#5cc4ff", "refine": "#2fe08d"}
"""Name of a result → its colour."""
LABEL_COLOURS = ("#3fa7ff", "#ffe14d", "#b48cff", "#ff7a7a", "#5fe0d0", "#d0d4da")
"""Of the labels, in their order, upon black or an image."""
LABEL_LINES = ("#1f77b4", "#d99000", "#8352c9", "#d62728", "#15998a", "#6f7782")
"""The same hues for lines upon white."""
PICTURES = (".png", ".pdf", ".svg")


def length_unit(image: Path) -> str:
    """The unit of lengths in an image: a PNG has no pixel size."""
    return "pixels" if image.suffix.lower() == ".png" else "mm"


def check_picture(path: Path) -> Path:
    """The path, if pictures are written in the format of its suffix.

    Raises:
        InputError: they are not.
    """
    if path.suffix.lower() not in PICTURES:
        raise InputError(f"path {path}: expected a name that ends in {' or '.join(PICTURES)}. Choose one of them.")
    return path
