# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Pixels of PNG files, in which grey images and labels come in several dresses."""

from __future__ import annotations

import os

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..errors import InputError

__all__ = ["read_png"]

_SHOWN = 6  # colours that a message names


def read_png(path: str | os.PathLike[str], grey: bool = True, label: bool = False) -> npt.NDArray[np.generic]:
    """Read pixels ``[C, x, y]``.

    An opaque alpha channel is left out. The index into a palette is no intensity, but it is what a label means.

    Args:
        path: of the file.
        grey: a colour image whose pixels are all grey is one channel.
        label: the file is a label.

    Raises:
        InputError: a label is in colours.
    """
    # ITK reads grey files with an alpha channel as one channel of wrong pixels.
    with Image.open(path) as image:
        pixels = np.atleast_3d(np.asarray(image.convert("RGB") if image.mode == "P" and not label else image))
        alpha = image.mode in ("LA", "RGBA") and (pixels[..., -1] == pixels[..., -1].max()).all()
    pixels = pixels[..., :-1] if alpha else pixels
    if (grey or label) and (pixels == pixels[..., :1]).all():
        pixels = pixels[..., :1]
    if label and pixels.shape[2] > 1:
        raise InputError(
            f"{path}: a label in colours: {_colours(pixels)}. Expected one number for each class. Convert it to a grey "
            "PNG, or to one with a palette, in which every colour has its number."
        )
    return pixels.transpose(2, 1, 0)


def _colours(pixels: npt.NDArray[np.generic]) -> str:
    colours = np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0)
    shown = ", ".join(str(tuple(int(value) for value in colour)) for colour in colours[:_SHOWN])
    return shown + (f" and {len(colours) - _SHOWN} more" if len(colours) > _SHOWN else "")
