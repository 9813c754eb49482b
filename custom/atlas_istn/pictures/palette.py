# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Colours and formats that are the same in every picture."""

from __future__ import annotations

import colorsys
from pathlib import Path

from ..errors import InputError

__all__ = [
    "ALERT",
    "LETTERS",
    "RESULT_COLOURS",
    "TRUTH",
    "atlas_colour",
    "check_picture",
    "label_colour",
    "line_colour",
]

RESULT_COLOURS = {"itn": "#ff9a3d", "fused": "#c6ff3d", "one_pass": "#5cc4ff", "refine": "#2fe08d"}
"""Name of a result → its colour."""
TRUTH = "#ffffff"
"""Of the true labels, upon an image."""
ALERT = "#ff4fd8"
"""Of what is changed, or of another label than expected: no label has it."""
LETTERS = "#ffd740"
"""Of the letters that tell the sides, and of warnings, upon an image or black."""
PICTURES = (".png", ".pdf", ".svg")

_UPON_IMAGES = ("#3fa7ff", "#ffe14d", "#b48cff", "#ff7a7a", "#5fe0d0", "#d0d4da")
_UPON_WHITE = ("#1f77b4", "#d99000", "#8352c9", "#d62728", "#15998a", "#6f7782")
_GOLDEN = 0.618034  # steps of it go round the circle of hues without coming near to each other


def label_colour(number: int) -> str:
    """Return the colour of a label upon an image or black; ``number`` counts the labels from 0, without background."""
    return _UPON_IMAGES[number] if number < len(_UPON_IMAGES) else _hue(number, lightness=0.7)


def atlas_colour(number: int) -> str:
    """Return the colour of one of several atlases upon an image or black; ``number`` counts them from 1."""
    return _hue(number, lightness=0.6)


def line_colour(number: int) -> str:
    """Return the colour of a label upon white: darker, of the same hue as `label_colour`."""
    return _UPON_WHITE[number] if number < len(_UPON_WHITE) else _hue(number, lightness=0.4)


def _hue(number: int, lightness: float) -> str:
    channels = colorsys.hls_to_rgb(number * _GOLDEN % 1, lightness, 0.7)
    return "#" + "".join(f"{round(255 * channel):02x}" for channel in channels)


def check_picture(path: Path) -> Path:
    """Return the path, if pictures are written in the format of its suffix.

    Raises:
        InputError: they are not.
    """
    if path.suffix.lower() not in PICTURES:
        raise InputError(f"path {path}: expected a name that ends in {' or '.join(PICTURES)}. Choose one of them.")
    return path
