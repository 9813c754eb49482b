# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Reading images and labels, and refusing those that cannot give a right result.

Array axes are x, y(, z) as stored, whichever the format; the affine says where they point. A PNG has no geometry of
its own and gets the one that ITK gives it: origin 0, identity direction in LPS. So its RAS affine is
``diag(-sx, -sy, 1, 1)``, and ``array[0, x, y]`` is the pixel in column x and row y. Where nobody states the size sx, sy
of a pixel in mm, it is 1, and lengths are in pixels.
"""

from __future__ import annotations

import gzip
import logging
import os
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import itk
import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch
from monai.config import KeysCollection
from monai.data import ITKReader, MetaTensor
from monai.data.utils import to_affine_nd
from monai.transforms import EnsureChannelFirst, MapTransform
from monai.utils import SpaceKeys, convert_to_tensor

from ..errors import InputError, lacks_memory
from ..spatial.world import LPS
from .channels import files_of
from .dicom import read_series, read_voxels
from .geometry import (
    check_affine,
    check_same_grid,
    check_size,
    in_own_plane,
    name_of,
    nifti_geometry,
    read_nifti_header,
    size_of,
)
from .intensities import border_padding, check_contrast, check_finite, check_real, without_padding
from .label_table import LabelValues, class_of_value
from .names import is_png
from .png import read_png

__all__ = ["LENGTH_UNIT", "LoadCased", "PixelSize", "label_classes", "read_volume"]

logger = logging.getLogger(__name__)

LENGTH_UNIT = "length_unit"
"""Key, in the metadata of an image, of the unit that its affine is in: ``"mm"`` or ``"pixels"``."""

PixelSize = Sequence[float]
"""Size of a pixel along x and y in mm."""

_WHOLE = 1e-3  # how far off a whole number the value of a label may be
_PIECE = 2**20  # bytes of a compressed file that are read at a time
_NEEDED = 16  # bytes for each voxel while a NIfTI file is read
_EXACT = 2**24  # up to which single precision holds all whole numbers
_SHOWN = 10  # unexpected label values that a message names


class LoadCased(MapTransform):
    """Read the image of a case, and its label where there is one, with all checks of the input.

    Values that are tensors or arrays already, as some hosts pass them, are checked alike. Padding at the border of the
    image becomes background.

    Args:
        keys: keys to read; all but ``image_key`` are labels.
        spatial_dims: 2 or 3.
        label_values: the values that stand for each class, see `atlas_istn.io.label_table`; ``[0, 255]`` makes 255
            class 1. Without it the values are the classes.
        image_key: which of the keys is the image.
        allow_missing_keys: accept cases without a label.
        pixel_size: of PNG files, see `read_volume`.
        channels: that the image has to have.

    Raises:
        InputError: on calling, see `read_volume`, `label_classes`, and the checks of `atlas_istn.io.geometry` and
            `atlas_istn.io.intensities`.
    """

    def __init__(
        self,
        keys: KeysCollection,
        spatial_dims: int,
        label_values: LabelValues | None = None,
        image_key: str = "image",
        allow_missing_keys: bool = False,
        pixel_size: PixelSize | None = None,
        channels: int = 1,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.channels = channels
        self.spatial_dims = spatial_dims
        self.pixel_size = pixel_size
        self.label_values = label_values
        self.image_key = image_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace paths by MetaTensors: float32 images ``[C, *shape]``, int32 class indices ``[1, *shape]``.

        Args:
            data: paths (of a file, an `ImagePath` of several, or a DICOM series folder), tensors or arrays.
        """
        result = dict(data)
        for key in self.key_iterator(result):
            if key == self.image_key:
                volume = read_volume(result[key], self.spatial_dims, self.pixel_size, self.channels)
                check_contrast(volume)
                volume = _without_border(volume)
                for warning in volume.meta["warnings"].splitlines():
                    logger.warning("%s: %s", name_of(volume), warning)
            else:
                label = read_volume(result[key], self.spatial_dims, self.pixel_size, label=True)
                volume = label_classes(label, self.label_values)
            result[key] = volume
        for key in self.key_iterator(result):
            check_same_grid(result[self.image_key], result[key])
        return result


def read_volume(
    source: str | os.PathLike[str] | torch.Tensor | np.ndarray,
    spatial_dims: int,
    pixel_size: PixelSize | None = None,
    channels: int | None = 1,
    label: bool = False,
) -> MetaTensor:
    """Read one image, whatever its format.

    Args:
        source: a NIfTI, PNG, NRRD or MHA file, an `ImagePath` of several, or a folder with one DICOM series; or the
            voxels themselves.
        spatial_dims: the number of dimensions expected, 2 or 3.
        pixel_size: of a PNG file, which does not tell it.
        channels: the number expected, in one file or in several; None for any. Unless it is several, a colour PNG whose
            pixels are all grey has one.
        label: it is a label, see `read_png`.

    Returns:
        float32 ``[C, *shape]`` with a 4x4 RAS affine in mm; float64 where whole numbers, such as the identifiers of
        labels, are too large for it. Of the header only the geometry is kept, since other fields may identify a
        patient. What a user should know of it is ``meta["warnings"]``, one in each line; ``meta["padding"]`` is the
        share of voxels of each channel that the header declares as padding and that became background;
        ``meta[LENGTH_UNIT]`` is the unit of lengths.

    Raises:
        InputError: if the file cannot be read, has a voxel size of its own beside a `pixel_size`, has other dimensions
            or several channels, holds voxels that are no finite real numbers, is larger than the memory, or has an
            affine that cannot be inverted.
    """
    if isinstance(source, (torch.Tensor, np.ndarray)):
        given = convert_to_tensor(source, dtype=torch.float32, track_meta=True)
        name = given.meta.get("source", given.meta.get("filename_or_obj", "image"))
        affine = given.meta.get("original_affine", given.affine)
        known: dict[str, Any] = {
            "padding": given.meta.get("padding", 0.0),
            "warnings": given.meta.get("warnings", "").splitlines(),
            "unit": given.meta.get(LENGTH_UNIT, "mm"),
        }
        volume = _volume(given if given.ndim > spatial_dims else given[None], given.affine, str(name), affine, **known)
    else:
        volume = _together(
            [_read_file(Path(file), pixel_size, channels in (None, 1), label) for file in files_of(source)]
        )
    volume = in_own_plane(_without_thickness(volume, spatial_dims))
    _check_dimensions(volume, spatial_dims, channels)
    check_finite(volume)
    check_affine(volume)
    return volume


def label_classes(label: MetaTensor, label_values: LabelValues | None = None) -> MetaTensor:
    """Turn the values of a label image into class indices.

    Args:
        label: ``[1, *shape]``, values as stored; those within 0.001 of a whole number are that number.
        label_values: the values of each class, background first; without it any whole number from 0 stands for itself.

    Returns:
        int32 ``[1, *shape]`` of class indices, on the same grid.

    Raises:
        InputError: if there are values outside the table.
    """
    found, places = np.unique(label.numpy(), return_inverse=True)
    whole = np.round(found)
    table = None if label_values is None else class_of_value(label_values)
    known = whole >= 0 if table is None else np.isin(whole, list(table))
    unexpected = found[~known | (np.abs(found - whole) > _WHOLE)]
    if len(unexpected):
        shown = ", ".join(f"{value:.12g}" if value.is_integer() else f"{value:.6g}" for value in unexpected[:_SHOWN])
        wanted = "whole numbers from 0" if table is None else ", ".join(str(value) for value in table)
        raise InputError(
            f"{name_of(label)}: unexpected label values {shown}{', …' if len(unexpected) > _SHOWN else ''}. Expected "
            f"{wanted} (label_values). Correct the label, or list its values in the configuration."
        )
    classes = whole if table is None else [table[int(value)] for value in whole]
    indices = np.asarray(classes, dtype=np.int32)[places].reshape(label.shape)
    return MetaTensor(torch.from_numpy(indices), meta=label.meta)


def _without_border(image: MetaTensor) -> MetaTensor:
    """The image with background in place of padding that no header declares."""
    cleaned = [without_padding(voxels, border_padding(voxels)) for voxels in image.float().cpu().numpy()]
    shares = np.array([share for _, share in cleaned])
    if not shares.any():
        return image.float()
    warning = (
        f"{shares.max():.1%} of the voxels are padding, one value far from all others that fills the border: it was "
        f"left out of the scaling of intensities"
    )
    meta = dict(image.meta)
    meta["padding"] = meta["padding"] + shares
    meta["warnings"] = "\n".join(filter(None, [meta["warnings"], warning]))
    return MetaTensor(torch.from_numpy(np.stack([voxels for voxels, _ in cleaned])), meta=meta)


def _together(volumes: Sequence[MetaTensor]) -> MetaTensor:
    """One image of the channels of several files, which lie on one grid."""
    first, *others = volumes
    for other in others:
        check_same_grid(first, other)
    if not others:
        return first
    meta = dict(first.meta)
    meta["padding"] = np.concatenate([volume.meta["padding"] for volume in volumes])
    meta["warnings"] = "\n".join(
        dict.fromkeys(line for volume in volumes for line in volume.meta["warnings"].splitlines())
    )
    return MetaTensor(torch.cat([volume.as_tensor() for volume in volumes]), meta=meta)


def _without_thickness(volume: MetaTensor, spatial_dims: int) -> MetaTensor:
    """An image ``[C, X, Y, 1, …]`` as ``[C, X, Y]``: a single slice, which many formats hold in no other way."""
    if set(volume.shape[1 + spatial_dims :]) != {1}:
        return volume
    shape = volume.shape[: 1 + spatial_dims]
    return MetaTensor(volume.as_tensor().reshape(shape), meta={**volume.meta, "spatial_shape": np.asarray(shape[1:])})


def _read_file(path: Path, pixel_size: PixelSize | None, grey: bool, label: bool) -> MetaTensor:
    if not path.exists():
        what = "the link leads nowhere. Fetch what it stands for" if path.is_symlink() else "no such file or folder"
        raise InputError(f"{path}: {what}. Check the path.")
    if pixel_size and not is_png(path):
        raise InputError(
            f"{path}: the file states its voxel size. Expected PNG files with a pixel_size, found one of "
            f"{' × '.join(f'{size:g}' for size in pixel_size)} mm. Leave pixel_size out."
        )
    try:
        return _read_format(path, pixel_size, grey, label)
    except InputError:
        raise
    except Exception as error:  # each reader has its own exceptions for damaged files
        if lacks_memory(error):
            raise
        # What libraries say of DICOM may hold identifiers.
        reason = type(error).__name__ if path.is_dir() else f"{type(error).__name__}: {error}"
        raise InputError(
            f"{path}: the image cannot be read ({' '.join(reason.split())[:200]}). Expected a complete NIfTI, PNG, "
            f"NRRD, MHA or MHD file, or a folder with one DICOM series. Copy or convert it again."
        ) from (None if path.is_dir() else error)


def _read_format(path: Path, pixel_size: PixelSize | None, grey: bool, label: bool) -> MetaTensor:
    name = path.name.lower()
    if path.is_dir():
        voxels, affine, padding = read_voxels(read_series(path))
        voxels, share = without_padding(voxels, padding)
        return _volume(voxels[None], affine, path, padding=share)
    if name.endswith((".nii", ".nii.gz")):
        return _nifti(path)
    if is_png(path):
        pixels = read_png(path, grey, label)
        check_real(pixels.dtype, str(path))
        affine = LPS @ np.diag([*(pixel_size or (1.0, 1.0)), 1.0, 1.0])
        unit = "mm" if pixel_size else "pixels"
        return _volume(pixels, affine, path, unit=unit)
    voxels, meta = _read_by_itk(path)
    check_real(voxels.dtype, str(path))
    volume = EnsureChannelFirst()(MetaTensor.ensure_torch_and_prune_meta(voxels, {**meta, "source": str(path)}))
    return _volume(volume, volume.affine, path)


def _read_by_itk(path: Path) -> tuple[npt.NDArray[Any], dict[str, Any]]:
    """Voxels and header; as double, which holds them all, where ITK's wheels lack the type, such as signed char."""
    try:
        reader = ITKReader()
        return reader.get_data(reader.read(path))
    except itk.TemplateTypeError:
        reader = ITKReader(pixel_type=itk.D)
        return reader.get_data(reader.read(path))


def _nifti(path: Path) -> MetaTensor:
    image, header = nib.load(path), read_nifti_header(path)
    check_real(image.get_data_dtype(), str(path))
    check_size(image.shape, str(path), _NEEDED)
    geometry = nifti_geometry(header, str(path))
    voxels = np.asanyarray(image.dataobj)
    if path.name.lower().endswith(".gz"):
        _check_archive(path)
    voxels = np.moveaxis(voxels, -1, 0) if voxels.ndim > 3 else voxels[None]
    return _volume(voxels, geometry.affine, path, warnings=geometry.warnings)


def _check_archive(path: Path) -> None:
    """Compare a gzip file with its checksum, which lies behind the voxels, where nibabel does not look."""
    with gzip.open(path) as stream:
        while stream.read(_PIECE):
            pass


def _volume(
    voxels: torch.Tensor | npt.NDArray[Any],
    affine: torch.Tensor | npt.NDArray[Any],
    source: str | os.PathLike[str],
    original_affine: torch.Tensor | npt.NDArray[Any] | None = None,
    padding: float | npt.NDArray[np.float64] = 0.0,
    warnings: Sequence[str] = (),
    unit: str = "mm",
) -> MetaTensor:
    """Voxels ``[C, *shape]`` with their geometry and nothing else of a header."""
    values = convert_to_tensor(voxels)
    large = values.numel() > 0 and max(-float(values.min()), float(values.max())) > _EXACT
    double = large and bool((values == values.round()).all())
    meta = {
        # Not under MONAI's own key, "filename_or_obj": with that, Spacingd takes every "image_…" beside the image for
        # metadata, also the "image_path" of MONAI Label, which is a string.
        "source": str(source),
        "original_affine": to_affine_nd(3, np.asarray(affine if original_affine is None else original_affine)),
        "original_channel_dim": "no_channel",
        "space": SpaceKeys.RAS,
        "spatial_shape": np.asarray(values.shape[1:]),
        "padding": np.full(len(values), padding),
        "warnings": "\n".join(warnings),
        LENGTH_UNIT: unit,
    }
    return MetaTensor(values.to(torch.float64 if double else torch.float32), affine=to_affine_nd(3, affine), meta=meta)


def _check_dimensions(volume: MetaTensor, spatial_dims: int, channels: int | None) -> None:
    found = volume.ndim - 1
    if found != spatial_dims:
        raise InputError(
            f"{name_of(volume)}: the image has {found} dimensions ({size_of(volume)}). Expected {spatial_dims}. "
            f"Convert the image, or choose a configuration for images like it."
        )
    if channels not in (None, len(volume)):
        if channels == 1:
            kind, wanted = " (a colour image, or a 4D series)", "a grey image with one"
            remedy = "Convert it, extract one channel or time point, or train with in_channels"
        else:
            kind, wanted = "", f"{channels} (in_channels), in one file or in files NAME_0000, NAME_0001, …"
            remedy = "Complete the image"
        raise InputError(
            f"{name_of(volume)}: the image has {len(volume)} channel{'s' * (len(volume) > 1)}{kind}. Expected "
            f"{wanted}. {remedy}."
        )
