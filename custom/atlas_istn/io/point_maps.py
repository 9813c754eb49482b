# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Transforms of any kind that ITK knows, as maps of points."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from .itk_transforms import Points, read_transform

__all__ = ["ItkMap", "read_point_map"]

_DIMENSIONS = (2, 3)


class ItkMap:
    """A transform that ITK holds. It takes point by point; `CompositeTransform` is much faster where it can be had.

    Args:
        transform: an ITK transform of as many dimensions on either side.
    """

    def __init__(self, transform: Any) -> None:
        self.transform = transform
        self.dim = int(transform.GetInputSpaceDimension())

    def __call__(self, points: Points) -> Points:
        """Map LPS points ``[N, dim]`` in millimetres."""
        return np.array([self.transform.TransformPoint(point) for point in points.tolist()]).reshape(-1, self.dim)


def read_point_map(path: str | os.PathLike[str]) -> Any:
    """Read a transform file: ours, or any of ITK's (.h5, .tfm, .txt, .mat), such as those of ANTs and Elastix.

    Returns:
        A map of LPS points ``[N, dim]`` in millimetres, with its ``dim``. It takes points of the image whose grid is
        resampled on to those of the image that is resampled.

    Raises:
        InputError: the file is missing, or is no transform.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file. Expected a transform, as a registration writes it. Check the path.")
    if Path(path).suffix == ".h5":
        try:
            return read_transform(path)
        except InputError:  # of a kind that only ITK knows, or damaged, which ITK will say too
            pass
    import itk

    try:
        found = list(itk.transformread(os.fspath(path)))
    except Exception as error:  # of a file that is none ITK complains in many ways
        raise InputError(
            f"{path}: the transform cannot be read ({type(error).__name__}). Expected a transform file of ITK (.h5, "
            ".tfm, .txt or .mat). Write it again."
        ) from error
    if len(found) != 1 or int(found[0].GetInputSpaceDimension()) not in _DIMENSIONS:
        raise InputError(
            f"{path}: expected one transform in 2D or 3D, found {len(found)}. Join them to a composite one."
        )
    return ItkMap(found[0])
