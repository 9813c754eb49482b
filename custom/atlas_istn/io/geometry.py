# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Where voxels lie in the world: what a NIfTI header says of it, and the checks of grids.

A NIfTI header can state two maps from voxels to the world, sform and qform, and the voxel sizes once more. Where they
disagree, every tool has rules of its own. Here the map is the one that ITK takes, and with it 3D Slicer, SimpleITK and
ANTs, so that the transforms which are written for them fit the scan as they see it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch
from monai.data import MetaTensor
from nibabel.openers import ImageOpener

from ..errors import InputError
from ..spatial.world import LPS

__all__ = [
    "GEOMETRY_FIELDS",
    "SAME_GRID",
    "NiftiGeometry",
    "check_affine",
    "check_resampled_size",
    "check_same_grid",
    "check_size",
    "corner_distance",
    "in_own_plane",
    "name_of",
    "nifti_geometry",
    "read_nifti_header",
    "size_of",
]

Affine = npt.NDArray[np.float64]

logging.getLogger("nibabel.global").setLevel(logging.ERROR)  # what it warns of is told here, with the name of the file

GEOMETRY_FIELDS = (
    *("pixdim", "xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
)
"""Fields of a NIfTI header that place the voxels."""
SAME_GRID = 0.1  # voxels by which the corners of one grid may lie apart: headers hold rounded decimals
_NOTICEABLE = 0.5  # voxels from which on readers who disagree are worth a warning
_TILT = 1e-3  # of an axis out of the x-y plane, up to which a 2D image lies in it
_MILLIMETRES = {0: 1.0, 1: 1e3, 2: 1.0, 3: 1e-3}  # NIfTI's code of a unit → mm; of files without one all take mm
_UNSTATED = (
    "the header states no orientation (qform_code and sform_code are 0): the axes were taken to point right, anterior "
    "and superior, as the NIfTI standard has it. ITK and 3D Slicer take left, posterior, superior; nibabel left, "
    "anterior, superior. Check the result, above all its sides; exported transforms do not fit the scan as these see it"
)
_SCANNER = 1  # code of a form that maps to the world of the scanner
_NEEDED = 64  # bytes for each voxel while an image is resampled: coordinates, input and output in double precision


@dataclass(frozen=True)
class NiftiGeometry:
    """Where a NIfTI header places its voxels.

    Attributes:
        affine: voxel to RAS world map in mm, ``[4, 4]``.
        warnings: what a reader of the results should know, for headers that tools read differently.
    """

    affine: Affine
    warnings: tuple[str, ...]


def read_nifti_header(path: str | os.PathLike[str]) -> nib.Nifti1Header:
    """Read the header of a NIfTI file as it is, without nibabel's corrections."""
    kind = type(nib.load(path).header)
    with ImageOpener(path) as stream:
        return kind.from_fileobj(stream, check=False)


def nifti_geometry(header: nib.Nifti1Header, name: str) -> NiftiGeometry:
    """Decide between the forms of a NIfTI header as ITK does.

    ITK takes the sform if it is orthogonal and there is no qform, or if its code is 1, or if both are alike; else the
    qform. It takes the voxel sizes from ``pixdim``, and mirrors axes whose size is negative. Two things it cannot be
    followed in: such a mirror, which the standard forbids, and a header without any form, whose axes the standard has
    point right, anterior and superior.

    Args:
        header: as `read_nifti_header` gives it.
        name: of the file, for messages.

    Raises:
        InputError: the unit is none of length, or the form that the header states is none.
    """
    sizes = _sizes(header, name)
    forms = _forms(header, np.abs(sizes))
    if not forms:
        if header["qform_code"] > 0 or header["sform_code"] > 0 or np.isnan(sizes).any():
            raise InputError(
                f"{name}: neither sform nor qform of the header is a map from voxels to the world. Expected finite "
                f"numbers, three independent axes and voxel sizes. Correct the header."
            )
        return NiftiGeometry(np.diag([*np.abs(sizes), 1.0]), (_UNSTATED,))
    taken = _itk_form(forms, int(header["sform_code"]))
    affine = _with_sizes(forms[taken or "sform"], np.abs(sizes))
    shape = header.get_data_shape()[:3]
    broken = [name for name in ("sform", "qform") if header[f"{name}_code"] > 0 and name not in forms]
    warnings = (
        *(f"the {name} of the header is no map of voxels to the world, so the other form was taken" for name in broken),
        *_disagreeing_forms(forms, taken, shape, int(header["sform_code"])),
        *_disagreeing_sizes(forms[taken or "sform"], affine, sizes, shape),
    )
    return NiftiGeometry(affine, warnings)


def _sizes(header: nib.Nifti1Header, name: str) -> npt.NDArray[np.float64]:
    """Voxel sizes in mm with their signs; NaN where the header has none."""
    unit = int(header["xyzt_units"]) & 7
    if unit not in _MILLIMETRES:
        raise InputError(
            f"{name}: the unit of the voxel size has the code {unit} (xyzt_units). Expected millimetre, metre or "
            f"micron (2, 1, 3). Correct the header."
        )
    sizes = np.asarray(header["pixdim"][1:4], dtype=np.float64)
    sizes[~np.isfinite(sizes) | (sizes == 0)] = np.nan
    sizes[int(header["dim"][0]) :] = 1.0
    return sizes * _MILLIMETRES[unit]


def _forms(header: nib.Nifti1Header, sizes: npt.NDArray[np.float64]) -> dict[str, Affine]:
    """The forms that the header states and that are maps, in mm."""
    scale = np.diag([*[_MILLIMETRES[int(header["xyzt_units"]) & 7]] * 3, 1.0])
    forms = {}
    if header["sform_code"] > 0:
        forms["sform"] = scale @ header.get_sform().astype(np.float64)
    if header["qform_code"] > 0 and np.isfinite(sizes).all():
        valid = header.copy()
        valid["pixdim"][:4] = [-1.0 if header["pixdim"][0] < 0 else 1.0, *sizes]
        with suppress(ValueError):  # the quaternion is none
            qform = valid.get_qform().astype(np.float64)
            forms["qform"] = np.column_stack([qform[:, :3], scale @ qform[:, 3]])
    return {name: form for name, form in forms.items() if _is_map(form, 3)}


def _is_map(affine: Affine, dim: int) -> bool:
    axes = affine[:dim, :dim]
    lengths = np.linalg.norm(axes, axis=0)
    if not np.isfinite(affine).all() or not lengths.all():
        return False
    # The determinant of unit axes is the volume that they span: 1 for right angles, 0 in one plane.
    return bool(abs(np.linalg.det(axes / lengths)) >= 1e-3)


def _itk_form(forms: dict[str, Affine], sform_code: int) -> str | None:
    """The form that ITK takes; None where it refuses the file."""
    sform, qform = forms.get("sform"), forms.get("qform")
    if sform is None:
        return "qform"
    axes = sform[:3, :3] / np.linalg.norm(sform[:3, :3], axis=0)
    if not np.allclose(axes @ axes.T, np.eye(3), rtol=0, atol=1e-4):
        return None if qform is None else "qform"
    if qform is None or sform_code == _SCANNER:
        return "sform"
    # Of its comparison by singular vectors, this is what does not depend on how they are computed.
    between = np.linalg.inv(sform) @ qform
    return "sform" if np.allclose(np.abs(between), np.eye(4), rtol=0, atol=1e-4) else "qform"


def _with_sizes(form: Affine, sizes: npt.NDArray[np.float64]) -> Affine:
    """The form with other voxel sizes, where there are any and its own differ by more than rounding."""
    lengths = np.linalg.norm(form[:3, :3], axis=0)
    sizes = np.where(np.isnan(sizes), lengths, sizes)
    if np.allclose(lengths, sizes, rtol=1e-3, atol=0):
        return form
    return np.asarray(form @ np.diag([*sizes / lengths, 1.0]))


def _disagreeing_forms(
    forms: dict[str, Affine], taken: str | None, shape: Sequence[int], sform_code: int
) -> Iterator[str]:
    """Say which form was taken where it matters, and who takes which."""
    if taken is None:
        yield (
            "the sform has axes that are not at right angles: ITK and 3D Slicer may refuse the file or straighten it, "
            "and then exported transforms do not fit it"
        )
    if len(forms) == 2 and (apart := corner_distance(forms["sform"], forms["qform"], shape)) > _NOTICEABLE:
        told = f"sform and qform of the header disagree, corners lie up to {apart:.3g} voxels apart"
        if taken == "sform" and sform_code != _SCANNER:
            yield (
                f"{told}, since they mirror each other: the sform was taken, as nibabel does. What ITK and 3D Slicer "
                f"take depends on their versions, and exported transforms do not fit the scan where it is the qform"
            )
        else:
            yield (f"{told}: the {taken} was taken, as ITK and 3D Slicer do; nibabel takes the sform, others the qform")


def _disagreeing_sizes(
    form: Affine, affine: Affine, sizes: npt.NDArray[np.float64], shape: Sequence[int]
) -> Iterator[str]:
    """Say which voxel sizes were taken where it matters, and who takes which."""
    if corner_distance(affine, form, shape) > _NOTICEABLE:
        given, told = (_listed(np.linalg.norm(map_[:3, :3], axis=0)) for map_ in (form, affine))
        yield (
            f"the sform has voxels of {given} mm, pixdim of {told} mm: pixdim was taken, as ITK and 3D Slicer do; "
            f"nibabel takes the sform, and measures other volumes"
        )
    if np.isnan(sizes).any():
        yield (
            "pixdim holds no voxel size: that of the sform was taken. ITK and 3D Slicer take 1 mm, and exported "
            "transforms do not fit the scan there"
        )
    if (sizes < 0).any():
        yield (
            "pixdim is negative, which is no voxel size: its sign was left out. ITK and 3D Slicer mirror the scan at "
            "these axes, and exported transforms do not fit it there"
        )


def _listed(sizes: npt.NDArray[np.float64]) -> str:
    return " × ".join(f"{size:.4g}" for size in sizes)


def corner_distance(affine: npt.ArrayLike, other: npt.ArrayLike, shape: Sequence[int]) -> float:
    """The largest distance between the corners of a grid under two maps, in voxels of the first along one axis.

    Args:
        affine: voxel to world map, ``[dim + 1, dim + 1]``.
        other: likewise.
        shape: voxels of the grid; axes that are missing have one.
    """
    first, second = np.asarray(affine, dtype=np.float64), np.asarray(other, dtype=np.float64)
    dim = len(first) - 1
    size = [*shape, *[1] * dim][:dim]
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in size], [1], indexing="ij"), dtype=float).reshape(dim + 1, -1)
    return float(np.abs(np.linalg.inv(first) @ second @ corners - corners).max())


def in_own_plane(volume: MetaTensor) -> MetaTensor:
    """Give a 2D image that does not lie in the x-y plane coordinates of its own plane, and a warning.

    All maps of 2D images have two dimensions: the shadow of a tilted slice on the x-y plane would be narrower.

    Args:
        volume: ``[C, *shape]``; volumes and slices in the x-y plane stay as they are.
    """
    affine = np.asarray(volume.affine, dtype=np.float64)
    axes = affine[:3, :2]
    sizes = np.linalg.norm(axes, axis=0)
    if volume.ndim != 3 or not np.isfinite(affine).all() or (np.abs(axes[2]) <= _TILT * sizes).all():
        return volume
    flat = np.diag([*sizes, 1.0, 1.0])
    flat[:2, 3] = (axes / sizes.clip(min=np.finfo(float).tiny)).T @ affine[:3, 3]
    warning = "the slice does not lie in the x-y plane: transforms and points are in coordinates of its own plane"
    warnings = "\n".join(filter(None, [volume.meta.get("warnings", ""), warning]))
    plane = torch.as_tensor(LPS @ flat)
    meta = {**volume.meta, "original_affine": plane.numpy(), "warnings": warnings}
    return MetaTensor(volume.as_tensor(), affine=plane, meta=meta)


def check_affine(volume: MetaTensor) -> None:
    """Refuse an image whose affine has no inverse.

    Args:
        volume: ``[1, *shape]``.

    Raises:
        InputError: the axes are not independent, in 2D within the x-y plane.
    """
    dim = volume.ndim - 1
    affine = np.asarray(volume.affine, dtype=np.float64)
    if not _is_map(affine, dim):
        raise InputError(
            f"{name_of(volume)}: the affine has no inverse, its axes are {affine[:dim, :dim].tolist()}. Expected {dim} "
            f"independent axes{' in the x-y plane' if dim == 2 else ''}. Correct the header (qform, sform)."
        )


def check_same_grid(image: MetaTensor, label: MetaTensor) -> None:
    """Refuse a label that does not lie on the image's grid.

    Args:
        image: ``[C, *shape]``.
        label: ``[1, *shape]``, or another channel of the image.

    Raises:
        InputError: the shapes differ, or corners lie more than a tenth of a voxel apart.
    """
    remedy = "Expected one grid. Resample the label to the image."
    if image.shape[1:] != label.shape[1:]:
        raise InputError(
            f"{name_of(label)}: the label has {size_of(label)} voxels, the image {name_of(image)} {size_of(image)}. "
            f"{remedy}"
        )
    apart = corner_distance(image.affine, label.affine, image.shape[1:])
    if apart > SAME_GRID:
        raise InputError(
            f"{name_of(label)}: the affine differs from that of the image {name_of(image)}, corners lie up to "
            f"{apart:.3g} voxels apart. {remedy}"
        )


def check_size(shape: Sequence[int], name: str, needed: int = 4) -> None:
    """Refuse an image that is larger than the machine's memory, before anything is made of that size.

    Args:
        shape: voxels.
        name: of the image, for the message.
        needed: bytes for each voxel.

    Raises:
        InputError: it is.
    """
    wanted, there = needed * np.prod(np.asarray(shape, dtype=np.float64)), _memory()
    if wanted > there:
        raise InputError(
            f"{name}: {' × '.join(f'{n:.0f}' for n in shape)} voxels need {wanted / 2**30:.3g} GiB, and the memory "
            f"has {there / 2**30:.3g}. Expected a smaller image. Check the voxel size and its unit in the header."
        )


def check_resampled_size(image: MetaTensor, spacing: Sequence[float]) -> None:
    """Refuse an image that would become larger than the memory, or nothing, at another voxel size.

    Args:
        image: ``[C, *shape]``.
        spacing: voxel size along the array axes in mm.

    Raises:
        InputError: it would.
    """
    extent = np.asarray(image.pixdim, dtype=float)[: len(spacing)] * image.shape[1:]
    shape = np.round(extent / np.asarray(spacing))
    if (shape < 1).any():
        raise InputError(
            f"{name_of(image)}: the image is {_listed(extent)} mm large, less than one voxel of the model "
            f"({_listed(np.asarray(spacing))} mm). Expected a scan. Check the voxel size and its unit in the header."
        )
    check_size([int(n) for n in shape], name_of(image), _NEEDED)


def _memory() -> float:
    """Bytes of memory of this machine, or of its container; infinite where the system does not tell."""
    try:
        limits = [float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))]
    except (AttributeError, ValueError, OSError):  # Windows
        return float("inf")
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limits.append(float(Path(file).read_text(encoding="ascii")))
        except (OSError, ValueError):  # there is none, or it is "max"
            continue
    return min(limits)


def name_of(volume: MetaTensor) -> str:
    """The path that an image was read from, for messages."""
    return str(volume.meta.get("source", "image"))


def size_of(volume: MetaTensor) -> str:
    """The shape of an image ``[C, *shape]``, for messages."""
    return " × ".join(str(size) for size in volume.shape[1:])
