# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Data sets whose images are degraded as scanners and artefacts do, to measure how a model bears a shift.

Strengths are relative to the range between the 1st and 99th percentile of the image, to millimetres or to the size of
the image, so that they mean the same for every data set.
"""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from monai.data import MetaTensor
from monai.transforms import AdjustContrast, RandBiasField, RandCoarseDropout, RandGaussianNoise
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Tensor
from tqdm import tqdm

from ..errors import InputError
from ..io.cases import find_cases
from ..io.files import write_whole
from ..io.loading import read_volume
from ..io.names import is_png
from ..io.outputs import write_image, write_json

__all__ = ["KINDS", "degrade", "degrade_dataset"]

Random = np.random.RandomState

GHOST_PERIOD = 8  # lines of k-space acquired during one breath


def _noise(image: MetaTensor, deviation: float, random: Random) -> Tensor:
    """Gaussian noise of a standard deviation in intensity ranges."""
    transform = RandGaussianNoise(prob=1.0, std=deviation, sample_std=False)
    return torch.as_tensor(transform.set_random_state(None, random)(image))


def _bias_field(image: MetaTensor, coefficient: float, random: Random) -> Tensor:
    """Multiplication by exp of a random cubic polynomial with coefficients up to the given one."""
    transform = RandBiasField(degree=3, coeff_range=(-coefficient, coefficient), prob=1.0)
    return torch.as_tensor(transform.set_random_state(None, random)(image))


def _blur(image: MetaTensor, sigma: float, _: Random) -> Tensor:
    """Gaussian point spread of a standard deviation in millimetres."""
    # Not MONAI's GaussianSmooth, which takes what lies beyond the border for zero and darkens the edge.
    sigmas = sigma / np.asarray(image.pixdim)[: image.ndim - 1]
    return torch.from_numpy(gaussian_filter(image.numpy(), [0.0, *sigmas], mode="nearest"))


def _contrast(image: MetaTensor, gamma: float, random: Random) -> Tensor:
    """Gamma curve between the percentiles, darkening (gamma) or brightening (1 / gamma); beyond them saturated."""
    return torch.as_tensor(AdjustContrast(gamma if random.rand() < 0.5 else 1 / gamma)(image.clamp(0.0, 1.0)))


def _ghosting(image: MetaTensor, amplitude: float, random: Random) -> Tensor:
    """Ghosts of a sinusoidal motion along the phase-encoding axis, one of the first two; amplitude in millimetres.

    The object moves while the lines of k-space are acquired one after the other, so by the shift theorem each line has
    a phase ramp of its own shift.
    """
    axis = 1 + int(random.randint(2))
    size = image.shape[axis]
    lines = torch.fft.fftfreq(size)
    breath = torch.sin(2 * torch.pi * lines * size / GHOST_PERIOD + 2 * torch.pi * random.rand())
    phase = -2 * torch.pi * lines * breath * amplitude / float(image.pixdim[axis - 1])
    ramp = torch.polar(torch.ones(size), phase).reshape([-1 if k == axis else 1 for k in range(image.ndim)])
    # A magnitude image has no negative values: its zero is taken to be the darkest voxel.
    darkest = image.as_tensor().min()
    moved = torch.fft.ifft(torch.fft.fft(image.as_tensor() - darkest, dim=axis) * ramp, dim=axis)
    return moved.abs() + darkest


def _missing_block(image: MetaTensor, share: float, random: Random) -> Tensor:
    """A dark box somewhere in the image, with this share of the image's size along every axis."""
    size = [max(1, round(share * n)) for n in image.shape[1:]]
    dropout = RandCoarseDropout(holes=1, spatial_size=size, fill_value=float(image.min()), prob=1.0)
    return torch.as_tensor(dropout.set_random_state(None, random)(image))


KINDS: dict[str, tuple[Callable[[MetaTensor, float, Random], Tensor], tuple[float, float, float]]] = {
    "noise": (_noise, (0.05, 0.1, 0.2)),
    "bias_field": (_bias_field, (0.1, 0.25, 0.4)),
    "blur": (_blur, (0.6, 1.0, 1.5)),
    "contrast": (_contrast, (1.5, 2.2, 3.0)),
    "ghosting": (_ghosting, (1.0, 2.0, 3.0)),
    "missing_block": (_missing_block, (0.25, 0.35, 0.45)),
}
"""Kind → function and its parameter at strength 1, 2 and 3."""


def degrade(image: MetaTensor, kind: str, strength: int, seed: int = 0) -> MetaTensor:
    """Degrade one image.

    Args:
        image: ``[C, *shape]``, with a spacing in mm.
        kind: one of `KINDS`.
        strength: 1, 2 or 3. The same seed draws the same pattern at every strength, but for the place of a block.
        seed: of what is drawn.

    Returns:
        float32 ``[C, *shape]`` on the same grid, in the image's units. Every channel has the same fault; one of several
        that is constant stays so.

    Raises:
        InputError: there is no such kind or strength, or the image is constant.
    """
    if kind not in KINDS:
        raise InputError(f"kind '{kind}': expected one of {', '.join(KINDS)}.")
    if strength not in (1, 2, 3):
        raise InputError(f"strength {strength!r}: expected 1, 2 or 3.")
    if len(image) > 1:
        channels = [image[number : number + 1] for number in range(len(image))]
        parts = [one if one.min() == one.max() else degrade(one, kind, strength, seed) for one in channels]
        return MetaTensor(torch.cat([part.as_tensor().float() for part in parts]), meta=image.meta)
    function, parameters = KINDS[kind]
    low, high = np.percentile(image.numpy(), [1, 99])
    if low == high:
        low, high = float(image.min()), float(image.max())
    if low == high:
        raise InputError(f"{image.meta.get('filename_or_obj', 'image')}: the image is constant. Check the export.")
    normalised = (image - low) / (high - low)
    degraded = function(normalised, parameters[int(strength) - 1], Random(seed))
    return MetaTensor((degraded * (high - low) + low).float(), meta=image.meta)


def degrade_dataset(
    dataset_dir: str | Path, output_dir: str | Path, kind: str, strength: int, data_list: str = "test", seed: int = 0
) -> Path:
    """Write a list of a data set anew, its images degraded, its labels unchanged.

    The layout is that of the Medical Segmentation Decathlon; dataset.json is written last and says what was done. Names
    of cases stay, so that results on both can be compared case by case. PNG images stay PNG; all others become NIfTI.

    Args:
        dataset_dir: folder with a dataset.json.
        output_dir: another folder; made if missing, older files are replaced.
        kind: noise, bias_field, blur, contrast, ghosting or missing_block.
        strength: 1, 2 or 3.
        data_list: list of the data set, with labels.
        seed: what happens to a case depends on the seed and its name alone.

    Returns:
        The path of the new dataset.json.

    Raises:
        InputError: a file cannot be read or written, the folders are the same, or kind or strength are unknown.
    """
    source, target = Path(dataset_dir), Path(output_dir)
    if source.resolve() == target.resolve():
        raise InputError(f"output_dir {target}: is the data set itself. Choose another folder.")
    cases = find_cases(str(source), data_list, with_labels=True)
    description = json.loads((source / "dataset.json").read_text(encoding="utf-8"))
    entries = [_degrade_case(case, target, kind, strength, seed) for case in tqdm(cases, desc=f"{kind} {strength}")]
    kept = {key: value for key, value in description.items() if not isinstance(value, list)}
    degradation = {"kind": kind, "strength": strength, "seed": seed}
    write_json({**kept, "degradation": degradation, data_list: entries}, target / "dataset.json")
    return target / "dataset.json"


def _degrade_case(case: dict[str, str], target: Path, kind: str, strength: int, seed: int) -> dict[str, str]:
    name, label = case["case"], Path(case["label"])
    flat = is_png(case["image"])
    image = read_volume(case["image"], 2 if flat else 3, channels=None)
    degraded = degrade(image, kind, strength, zlib.crc32(f"{seed} {name}".encode()))
    entry = {
        "image": f"imagesTs/{name}{'.png' if flat else '.nii.gz'}",
        "label": f"labelsTs/{_label_name(name, label)}",
    }
    if flat:
        depth = np.uint8 if image.max() < 256 else np.uint16
        pixels = _channels_last(degraded).swapaxes(0, 1).round().clip(0, np.iinfo(depth).max).astype(depth)
        write_whole(target / entry["image"], lambda part: Image.fromarray(pixels).save(part))
    else:
        write_image(_channels_last(degraded), np.asarray(degraded.affine), target / entry["image"])
    write_whole(target / entry["label"], lambda part: shutil.copyfile(label, part))
    return {key: f"./{path}" for key, path in entry.items()}


def _channels_last(image: MetaTensor) -> npt.NDArray[np.float32]:
    """Voxels ``[*shape]`` of one channel, or ``[*shape, C]``."""
    voxels = image.numpy()
    return voxels[0] if len(voxels) == 1 else np.moveaxis(voxels, 0, -1)


def _label_name(name: str, label: Path) -> str:
    return name + "".join(label.suffixes[-2:] if label.name.lower().endswith(".nii.gz") else label.suffixes[-1:])
