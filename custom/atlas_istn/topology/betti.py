# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Components, holes and cavities of a label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage
from skimage.measure import euler_number

from ..errors import InputError

__all__ = ["Topology", "label_topology", "labelmap_topology"]


class Topology(NamedTuple):
    """The Betti numbers of a binary shape.

    Attributes:
        components: connected pieces (b0).
        holes: holes in 2D, handles or tunnels in 3D (b1). A ring and a torus have one each.
        cavities: enclosed voids in 3D (b2). A hollow sphere has one. Always 0 in 2D.
    """

    components: int
    holes: int
    cavities: int


def label_topology(mask: np.ndarray) -> Topology:
    """Count components, holes and cavities of one shape, exactly.

    The foreground has full connectivity (8 neighbours in 2D, 26 in 3D), the background the connectivity dual to it
    (4, 6). Everything outside the image is background.

    Args:
        mask: ``[(D,) H, W]``, read as boolean.

    Returns:
        The topology of the shape; all zeros for an empty mask.

    Raises:
        InputError: the mask is neither 2D nor 3D.
    """
    if mask.ndim not in (2, 3):
        raise InputError(f"Topology needs a 2D or 3D mask, found {mask.ndim}D: pass one label of one case.")
    mask = mask.astype(bool, copy=False)
    boxes = ndimage.find_objects(mask.view(np.uint8))
    if not boxes:
        return Topology(components=0, holes=0, cavities=0)

    # The border of background joins everything outside the shape into one region.
    shape = np.pad(mask[boxes[0]], 1)
    components = _count_regions(shape, connectivity=shape.ndim)
    enclosed = _count_regions(~shape, connectivity=1) - 1
    if shape.ndim == 2:
        return Topology(components, holes=enclosed, cavities=0)
    # Euler-Poincaré: χ = b0 − b1 + b2.
    holes = components + enclosed - int(euler_number(shape, connectivity=3))
    return Topology(components, holes, cavities=enclosed)


def labelmap_topology(labelmap: np.ndarray, labels: Sequence[int]) -> dict[int, Topology]:
    """Topology of each label of a labelmap.

    Args:
        labelmap: ``[(D,) H, W]`` integers.
        labels: the label values to look at.

    Returns:
        Label value to topology, in the order of ``labels``; all zeros for a label that is absent.

    Raises:
        InputError: the labelmap is neither 2D nor 3D.
    """
    return {label: label_topology(labelmap == label) for label in labels}


def _count_regions(mask: np.ndarray, connectivity: int) -> int:
    structure = ndimage.generate_binary_structure(mask.ndim, connectivity)
    return int(ndimage.label(mask, structure)[1])
