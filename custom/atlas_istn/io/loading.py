# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Reading images and labels, and refusing those that cannot give a right result.

Array axes are x, y(, z) as stored, whichever the format; the affine says where they point. A PNG has no geometry of
its own and gets the one that ITK gives it: spacing 1, origin 0, identity direction in LPS. So its RAS affine is
``diag(-1, -1, 1, 1)``, and ``array[0, x, y]`` is the pixel in column x and row y.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import ImageReader, ITKReader, MetaTensor, NibabelReader, PILReader
from monai.data.utils import to_affine_nd
from monai.transforms import EnsureChannelFirst, MapLabelValue, MapTransform
from monai.utils import SpaceKeys, convert_to_tensor
from PIL import Image

from ..errors import InputError
from .dicom import SeriesReader

__all__ = ["LoadCased", "check_image", "check_same_grid", "label_classes", "read_volume"]

_AFFINE_TOLERANCE = 1e-3  # mm
_PNG_AFFINE = torch.diag(torch.tensor([-1.0, -1.0, 1.0, 1.0], dtype=torch.float64))
_SHOWN = 10  # unexpected label values that a message names


class LoadCased(MapTransform):
    """Read the image of a case, and its label where there is one, with all checks of the input.

    Values that are tensors or arrays already, as some hosts pass them, are checked alike.

    Args:
        keys: keys to read; all but ``image_key`` are labels.
        spatial_dims: 2 or 3.
        label_values: the value that stands for each class, background first; ``[0, 255]`` makes 255 class 1. Without it
            the values are the classes.
        image_key: which of the keys is the image.
        allow_missing_keys: accept cases without a label.

    Raises:
        InputError: on calling, see :func:`read_volume`, :func:`check_image`, :func:`label_classes` and
            :func:`check_same_grid`.
    """

    def __init__(
        self,
        keys: KeysCollection,
        spatial_dims: int,
        label_values: Sequence[int] | None = None,
        image_key: str = "image",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.spatial_dims = spatial_dims
        self.label_values = label_values
        self.image_key = image_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace paths by MetaTensors ``[1, *shape]``: float32 images, int32 class indices.

        Args:
            data: paths (of a file or a DICOM series folder), tensors or arrays under the keys.
        """
        result = dict(data)
        for key in self.key_iterator(result):
            volume = read_volume(result[key], self.spatial_dims)
            if key == self.image_key:
                check_image(volume)
            else:
                volume = label_classes(volume, self.label_values)
            result[key] = volume
        for key in self.key_iterator(result):
            check_same_grid(result[self.image_key], result[key])
        return result


def read_volume(source: str | os.PathLike[str] | torch.Tensor | np.ndarray, spatial_dims: int) -> MetaTensor:
    """Read one image with one channel, whatever its format.

    Args:
        source: a NIfTI, PNG, NRRD or MHA file, or a folder with one DICOM series; or the voxels themselves.
        spatial_dims: the number of dimensions expected, 2 or 3.

    Returns:
        float32 ``[1, *shape]`` with a 4x4 RAS affine in mm. Of the header only the geometry is kept, since other fields
        may identify a patient.

    Raises:
        InputError: if the file cannot be read, has other dimensions or several channels, holds voxels that are not
            finite, or an affine that cannot be inverted.
    """
    if isinstance(source, (torch.Tensor, np.ndarray)):
        volume = convert_to_tensor(source, dtype=torch.float32, track_meta=True)
        volume = volume[None] if volume.ndim == spatial_dims else volume
    else:
        volume = _read_file(Path(source))
    volume = _with_geometry_only(volume)
    _check_dimensions(volume, spatial_dims)
    _check_finite(volume)
    _check_affine(volume, spatial_dims)
    return volume


def check_image(image: MetaTensor) -> None:
    """Refuse an image that shows nothing.

    Args:
        image: ``[1, *shape]``.

    Raises:
        InputError: if all voxels have the same value.
    """
    if image.min() == image.max():
        raise InputError(
            f"{_name(image)}: the image is constant, all voxels are {float(image.min()):g}. Expected an image with "
            f"contrast. Check the export."
        )


def label_classes(label: MetaTensor, label_values: Sequence[int] | None = None) -> MetaTensor:
    """Turn the values of a label image into class indices.

    Args:
        label: ``[1, *shape]``, values as stored.
        label_values: the value of each class, background first; without it any whole number from 0 stands for itself.

    Returns:
        int32 ``[1, *shape]`` of class indices, on the same grid.

    Raises:
        InputError: if there are values outside the table.
    """
    found = [float(value) for value in label.as_tensor().unique()]
    known = (
        label_values if label_values is not None else {value for value in found if value >= 0 and value.is_integer()}
    )
    unexpected = [value for value in found if value not in known]
    if unexpected:
        shown = ", ".join(f"{value:g}" for value in unexpected[:_SHOWN]) + (", …" if len(unexpected) > _SHOWN else "")
        table = "whole numbers from 0" if label_values is None else ", ".join(f"{value:g}" for value in label_values)
        raise InputError(
            f"{_name(label)}: unexpected label values {shown}. Expected {table} (label_values). Correct the label, or "
            f"list its values in the configuration."
        )
    values = range(int(max(found)) + 1) if label_values is None else label_values
    return MapLabelValue(values, range(len(values)), dtype=np.int32)(label)


def check_same_grid(image: MetaTensor, label: MetaTensor) -> None:
    """Refuse a label that does not lie on the image's grid.

    Args:
        image: ``[1, *shape]``.
        label: ``[1, *shape]``.

    Raises:
        InputError: if the shapes differ, or an entry of the affines by more than 0.001 mm.
    """
    remedy = "Expected one grid. Resample the label to the image."
    if image.shape != label.shape:
        raise InputError(
            f"{_name(label)}: the label has {_size(label)} voxels, the image {_name(image)} {_size(image)}. {remedy}"
        )
    difference = float((image.affine - label.affine).abs().max())
    if difference > _AFFINE_TOLERANCE:
        raise InputError(
            f"{_name(label)}: the affine differs from that of the image {_name(image)} by up to {difference:.3g} mm. "
            f"{remedy}"
        )


def _read_file(path: Path) -> MetaTensor:
    if not path.exists():
        raise InputError(f"{path}: no such file or folder. Check the path.")
    try:
        # Not by LoadImage, which makes every reader that MONAI knows, and warns of one that it has no GPU decoder.
        reader = _reader(path)
        voxels, meta = reader.get_data(reader.read(path))
        volume = MetaTensor.ensure_torch_and_prune_meta(voxels.astype(np.float32), {**meta, "source": str(path)})
        volume = EnsureChannelFirst()(volume)
    except InputError:
        raise
    except Exception as error:  # each reader has its own exceptions for damaged files
        # What ITK says of a DICOM slice may hold its file name, and with it an identifier.
        reason = type(error).__name__ if path.is_dir() else f"{type(error).__name__}: {error}"
        raise InputError(
            f"{path}: the image cannot be read ({' '.join(reason.split())[:200]}). Expected a complete NIfTI, PNG, "
            f"NRRD or MHA file, or a folder with one DICOM series. Copy or convert it again."
        ) from error
    if path.suffix.lower() == ".png":
        volume.affine = _PNG_AFFINE
    return volume


def _reader(path: Path) -> ImageReader:
    name = path.name.lower()
    if path.is_dir():
        return SeriesReader()
    if name.endswith((".nii", ".nii.gz")):
        return NibabelReader()
    # ITK reads grey PNG files with an alpha channel as one channel of wrong pixels.
    return PILReader(converter=_without_palette) if name.endswith(".png") else ITKReader()


def _without_palette(image: Image.Image) -> Image.Image:
    """Indices into a palette are no intensities; as colours they are refused later."""
    return image.convert("RGB") if image.mode == "P" else image


def _with_geometry_only(volume: MetaTensor) -> MetaTensor:
    meta = {
        # Not under MONAI's own key, "filename_or_obj": with that, Spacingd takes every "image_…" beside the image for
        # metadata, also the "image_path" of MONAI Label, which is a string.
        "source": str(volume.meta.get("source", volume.meta.get("filename_or_obj", "image"))),
        "original_affine": to_affine_nd(3, np.asarray(volume.meta.get("original_affine", volume.affine))),
        "original_channel_dim": "no_channel",
        "space": SpaceKeys.RAS,
        "spatial_shape": np.asarray(volume.shape[1:]),
    }
    return MetaTensor(volume.as_tensor(), affine=to_affine_nd(3, volume.affine), meta=meta)


def _check_dimensions(volume: MetaTensor, spatial_dims: int) -> None:
    found = volume.ndim - 1
    if found != spatial_dims:
        raise InputError(
            f"{_name(volume)}: the image has {found} dimensions ({_size(volume)}). Expected {spatial_dims}. Convert "
            f"the image, or choose a configuration for images like it."
        )
    if len(volume) != 1:
        raise InputError(
            f"{_name(volume)}: the image has {len(volume)} channels (a colour image, or a 4D series). Expected a grey "
            f"image with one. Convert it, or extract one channel or time point."
        )


def _check_finite(volume: MetaTensor) -> None:
    count = int((~volume.as_tensor().isfinite()).sum())
    if count:
        raise InputError(
            f"{_name(volume)}: {count} of {volume.numel()} voxels are not finite (NaN or infinite). Expected numbers. "
            f"Replace them, for example by the background value."
        )


def _check_affine(volume: MetaTensor, spatial_dims: int) -> None:
    axes = volume.affine[:spatial_dims, :spatial_dims]
    lengths = axes.norm(dim=0)
    # The determinant of unit axes is the volume that they span: 1 for right angles, 0 in one plane.
    if not volume.affine.isfinite().all() or (lengths == 0).any() or (axes / lengths).det().abs() < 1e-3:
        raise InputError(
            f"{_name(volume)}: the affine has no inverse, its axes are {axes.tolist()}. Expected {spatial_dims} "
            f"independent axes{' in the x-y plane' if spatial_dims == 2 else ''}. Correct the header (qform, sform)."
        )


def _name(volume: MetaTensor) -> str:
    return str(volume.meta["source"])


def _size(volume: MetaTensor) -> str:
    return " × ".join(str(size) for size in volume.shape[1:])
