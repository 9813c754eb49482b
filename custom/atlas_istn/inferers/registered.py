# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Atlases that were registered to an image, and the folder that keeps them for another fusion."""

from __future__ import annotations

import hashlib
import json
import logging
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import __version__
from ..fusion.atlases import WarpedAtlases
from ..io.files import write_whole

__all__ = ["Registered", "WarpCache"]

logger = logging.getLogger(__name__)


class Registered(NamedTuple):
    """Some atlases of a set on the grid of an image.

    Attributes:
        atlases: what a fusion is made of, with images.
        chosen: which of the set they are, ``[n]``.
        folded: share of the voxels at which the map of each folds, ``[n]``.
    """

    atlases: WarpedAtlases
    chosen: Tensor
    folded: Tensor


class WarpCache:
    """Keeps registered atlases in files, one for each image, so that another fusion need not register them again.

    A file is named by what it was made of: the voxels of the image and of all atlases, the settings of the registration
    and the version of this package. Whatever of it changes, the atlases are registered anew. A file takes 6 bytes for
    each voxel and atlas of one channel.

    Args:
        folder: of the files.
        settings: of the registration, as JSON has them.
        files: what else decides it, such as models.
    """

    def __init__(self, folder: str, settings: Mapping[str, Any], files: Sequence[str] = ()) -> None:
        self.folder = Path(folder)
        text = json.dumps([__version__, settings], sort_keys=True)
        there = [path for path in map(Path, files) if path.is_file()]  # of the others their readers will complain
        self._common = text.encode() + b"".join(hashlib.sha256(path.read_bytes()).digest() for path in there)

    def path(self, sources: Sequence[str], *tensors: Tensor) -> Path:
        """Return the file for an image and atlases: their tensors, and their files if these matter."""
        digest = hashlib.sha256(self._common + json.dumps(sources).encode())
        for tensor in tensors:
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.cpu().contiguous().numpy().data)
        return self.folder / f"{digest.hexdigest()}.npz"

    def read(self, path: Path, image: Tensor) -> Registered | None:
        """Read what a file has for an image; None where there is none, or a damaged one."""
        try:
            with np.load(path) as file:
                kept = {name: torch.from_numpy(file[name]).to(image.device) for name in file.files}
        except FileNotFoundError:
            return None
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            logger.warning("%s: damaged (%s), made anew", path, type(error).__name__)
            return None
        return Registered(WarpedAtlases(kept["labels"], kept["images"], image[0]), kept["chosen"], kept["folded"])

    def write(self, path: Path, registered: Registered) -> None:
        """Write a file, whole or not at all.

        Raises:
            InputError: it cannot be written.
        """
        atlases = registered.atlases
        parts = {"labels": atlases.labels.to(torch.int16), "images": atlases.images}
        parts |= {"chosen": registered.chosen, "folded": registered.folded}
        arrays: Any = {name: tensor.cpu().numpy() for name, tensor in parts.items() if tensor is not None}
        write_whole(path, lambda part: np.savez(part, **arrays))
