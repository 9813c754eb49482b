# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""The letter B data set of the Atlas-ISTN paper, drawn anew: a data set for first steps and tests, without a download.

One letter B, given by formulas, is deformed by a random affine map composed with a random cubic B-spline free-form
deformation. The image is the label map in two grey levels under Gaussian noise. In the corrupted test set, discs
are added to the image and erased from it, while the label map stays the intact letter.

The constants were fitted to the paper's own set: spread of the affine parameters, overlap with their mean after an
affine alignment, area of letter and holes, grey levels, size and number of the discs.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from skimage.measure import label as connected_components
from tqdm import tqdm

from ..errors import InputError
from ..io.files import write_whole

__all__ = ["base_coordinates", "generate_letter_b"]

logger = logging.getLogger(__name__)

Points = NDArray[np.float64]  # [2, H, W], components (y, x)
Mask = NDArray[np.bool_]  # [H, W]

# The lists of dataset.json and the ending of their folders. The place of a list here is part of its random seeds.
FOLDER_ENDINGS = {"training": "Tr", "validation": "Tr", "test": "Ts", "test_corrupt": "Ts"}
MIN_SIZE = 32  # on a smaller grid the stroke is less than two pixels wide
VERSION = 1  # of the drawing: to be raised when a change below makes other images from the same seed

# Lengths are in pixels of a 128 x 128 image; other sizes scale them.
REFERENCE_SIZE = 128
BACKGROUND, FOREGROUND, NOISE_SD = 100.0, 150.0, 25.5  # grey levels of 255
MAX_ROTATION, MAX_LOG_SCALE, MAX_SHIFT = np.deg2rad(20.0), 0.1, 10.0  # drawn uniformly within plus and minus
CONTROL_POINTS, CONTROL_SD = 5, 7.0  # B-spline coefficients along each side, and their standard deviation
DISC_NUMBERS, DISC_RADII = (5, 15), (1.0, 10.0)  # drawn once for the discs added and once for the discs erased


def generate_letter_b(
    output_dir: str | Path,
    num_training: int = 1000,
    num_validation: int = 50,
    num_test: int = 50,
    num_corrupt: int = 50,
    size: int = 128,
    seed: int = 0,
) -> Path:
    """Writes a letter B data set in the layout of the Medical Segmentation Decathlon.

    Images and label maps are 8-bit PNG files of one channel; the letter has the label value 255. `dataset.json` lists
    `training`, `validation`, `test` (clean) and `test_corrupt`, and is written last: a folder with the same complete
    data set is left alone, one without `dataset.json` is filled (again).

    Args:
        output_dir: folder to fill; made if missing.
        num_training: number of cases in the list `training`.
        num_validation: number of cases in the list `validation`.
        num_test: number of cases in the list `test`.
        num_corrupt: number of cases in the list `test_corrupt`.
        size: height and width of the images in pixels, at least 32.
        seed: a case depends on the seed, its list and its place in the list alone, not on the number of cases.

    Returns:
        The path of `dataset.json`.

    Raises:
        InputError: an argument is out of range, or the folder holds another data set or cannot be written.
    """
    counts = dict(zip(FOLDER_ENDINGS, (num_training, num_validation, num_test, num_corrupt), strict=True))
    for name, count in counts.items():
        _check_integer(f"the number of cases in the list '{name}'", count, least=0)
    _check_integer("size", size, least=MIN_SIZE)
    _check_integer("seed", seed, least=0)

    root = Path(output_dir)
    description = _describe(counts, size, seed)
    try:
        if _is_complete(root, description):
            logger.info("%s already holds this letter B data set.", root)
        else:
            _write(root, description, size, seed)
    except OSError as error:
        raise InputError(f"{root}: cannot write the data set here ({error}); choose a writable folder.") from error
    return root / "dataset.json"


def _draw(list_name: str, index: int, size: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Draws the image and the label map of one case, both [size, size]."""
    rng = _random_state(list_name, index, seed)
    letter = _in_base_letter(_draw_coordinates(rng, size))
    bright = _with_clutter(rng, letter) if list_name == "test_corrupt" else letter
    image = np.where(bright, FOREGROUND, BACKGROUND) + rng.normal(0.0, NOISE_SD, letter.shape)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8), letter.astype(np.uint8) * 255


def base_coordinates(list_name: str, index: int, size: int = 128, seed: int = 0) -> Points:
    """The true correspondence of a case: where each of its pixels comes from in the base letter.

    Two pixels of two cases correspond if they come from the same place.

    Args:
        list_name: `training`, `validation`, `test` or `test_corrupt`.
        index: place in the list, from 0.
        size: height and width of the images in pixels.
        seed: that of the data set.

    Returns:
        `[2, size, size]`, (y, x) in pixels of a 128 x 128 image.
    """
    return _draw_coordinates(_random_state(list_name, index, seed), size)


def _random_state(list_name: str, index: int, seed: int) -> np.random.Generator:
    return np.random.default_rng([seed, list(FOLDER_ENDINGS).index(list_name), index])


def _draw_coordinates(rng: np.random.Generator, size: int) -> Points:
    """Draws deformations until one leaves the letter a B: the place of each pixel in the base letter."""
    pixels = np.indices((size, size)) * (REFERENCE_SIZE / size)
    while True:
        points = _move_affinely(rng, pixels + _free_form_displacement(rng, size))
        if _is_letter_b(_in_base_letter(points)):
            return points


def _move_affinely(rng: np.random.Generator, points: Points) -> Points:
    """Takes points of the image to the base letter, by a random shift, rotation and scale about the image centre."""
    angle = rng.uniform(-MAX_ROTATION, MAX_ROTATION)
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    scale = np.diag(np.exp(rng.uniform(-MAX_LOG_SCALE, MAX_LOG_SCALE, 2)))
    shift = rng.uniform(-MAX_SHIFT, MAX_SHIFT, (2, 1, 1))
    # The letter is scaled, rotated, shifted; a point looks for its origin by the inverse.
    centre = REFERENCE_SIZE / 2
    return np.einsum("ij,jhw->ihw", np.linalg.inv(rotation @ scale), points - centre - shift) + centre


def _free_form_displacement(rng: np.random.Generator, size: int) -> Points:
    """Draws the displacement of a cubic B-spline free-form deformation, [2, size, size], in reference pixels."""
    coefficients = rng.normal(0.0, CONTROL_SD, (2, CONTROL_POINTS, CONTROL_POINTS))
    # Without the prefilter the values are taken as the spline's coefficients and are not interpolated.
    zoom = size / CONTROL_POINTS
    return np.stack([ndimage.zoom(c, zoom, order=3, mode="mirror", prefilter=False) for c in coefficients])


def _in_base_letter(points: Points) -> Mask:
    """Says which points, in reference pixels, lie in the undeformed letter: two bowls less a hole in each."""

    def bowl(top: float, bottom: float, left: float, bend: float, right: float) -> Mask:
        """A shape like a D: straight from `left` to `bend`, half an ellipse from there."""
        y, x = points
        along = (2 * y - top - bottom) / (bottom - top)
        across = np.maximum(x - bend, 0.0) / (right - bend)
        return (x >= left) & (along**2 + across**2 <= 1)

    bowls = bowl(27, 67.5, 41, 65, 86) | bowl(59.5, 103, 41, 68, 92)
    holes = bowl(35.5, 60.5, 51, 63, 76.5) | bowl(68.5, 94.5, 51, 66, 82.5)
    return bowls & ~holes


def _is_letter_b(mask: Mask) -> bool:
    """Tells whether the mask is one component with two holes, clear of the image border, in either connectivity."""
    outside = ~mask
    return bool(outside[[0, -1]].all() and outside[:, [0, -1]].all()) and all(
        connected_components(mask, connectivity=c).max() == 1
        and connected_components(outside, connectivity=3 - c).max() == 3
        for c in (1, 2)
    )


def _with_clutter(rng: np.random.Generator, mask: Mask) -> Mask:
    """Adds discs anywhere in the image, then erases discs anywhere; each kind has one radius in an image."""
    return (mask | _random_discs(rng, len(mask))) & ~_random_discs(rng, len(mask))


def _random_discs(rng: np.random.Generator, size: int) -> Mask:
    """Draws the union of a random number of discs of one random radius."""
    radius = rng.uniform(*DISC_RADII) * size / REFERENCE_SIZE
    centres = rng.uniform(0, size, (rng.integers(*DISC_NUMBERS, endpoint=True), 2, 1, 1))
    return (((np.indices((size, size)) - centres) ** 2).sum(axis=1) <= radius**2).any(axis=0)


def _describe(counts: dict[str, int], size: int, seed: int) -> dict[str, Any]:
    """Puts together the content of dataset.json."""
    lists = {}
    for name, ending in FOLDER_ENDINGS.items():
        files = [f"{name}_{i + 1:04d}.png" for i in range(counts[name])]
        lists[name] = [{"image": f"./images{ending}/{f}", "label": f"./labels{ending}/{f}"} for f in files]
    return {
        "name": "LetterB",
        "description": "Synthetic letter B after the Atlas-ISTN paper",
        "licence": "Apache-2.0",
        "tensorImageSize": "2D",
        "modality": {"0": "synthetic"},
        "labels": {"0": "background", "1": "B"},
        "generator": {"name": __name__, "version": VERSION, "size": size, "seed": seed},
        "numTraining": counts["training"],
        "numTest": counts["test"],
        **lists,
    }


def _is_complete(root: Path, description: dict[str, Any]) -> bool:
    """Tells whether the data set is there, and refuses a folder that holds another one."""
    file = root / "dataset.json"
    if not file.exists():
        return False
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if found != description:
        raise InputError(
            f"{file}: describes another data set than the letter B asked for (other numbers of cases, size, seed or "
            "origin). Nothing was written: choose another folder, or remove this one first."
        )
    return all((root / path).is_file() for name in FOLDER_ENDINGS for case in found[name] for path in case.values())


def _write(root: Path, description: dict[str, Any], size: int, seed: int) -> None:
    """Draws and writes every case, then dataset.json."""
    for ending in set(FOLDER_ENDINGS.values()):
        for kind in ("images", "labels"):
            (root / f"{kind}{ending}").mkdir(parents=True, exist_ok=True)
    cases = [(name, i, case) for name in FOLDER_ENDINGS for i, case in enumerate(description[name])]
    for name, i, case in tqdm(cases, desc="letter B", unit="case"):
        image, label = _draw(name, i, size, seed)
        write_whole(root / case["image"], Image.fromarray(image).save)
        write_whole(root / case["label"], Image.fromarray(label).save)
    text = json.dumps(description, indent=1)
    write_whole(root / "dataset.json", lambda part: part.write_text(text, encoding="utf-8"))
    logger.info("Wrote %d letter B cases to %s.", len(cases), root)


def _check_integer(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{name}: expected an integer of at least {least}, found {value!r}.")
