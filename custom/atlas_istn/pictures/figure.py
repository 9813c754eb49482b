# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""A picture of an inference run: for some cases the image, the three results and the deformation; and the atlas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from monai.data import MetaTensor

from ..errors import InputError
from ..io.files import write_whole
from ..io.results import FILES, find_labelled_cases, read_atlas_to_subject, read_oriented, result_file
from .conventions import RESULTS, check_picture

__all__ = ["draw_results"]

Plane = npt.NDArray[Any]  # [X, Y]: what is shown, x to the right

COLOURS = ("#ff4d4d", "#40c4ff", "#00e676", "#ffd740", "#ea80fc", "#ff9e40")
TRUTH = {"colors": "white", "linestyles": "dashed", "linewidths": 0.8}
GRID_LINES = 16  # of the deformed grid, over the extent of the atlas


@dataclass(frozen=True)
class _View:
    """How the planes of an image are shown: its slice, the shape of its pixels, and whether y points up."""

    volume: MetaTensor
    index: int | None

    @classmethod
    def of(cls, image: MetaTensor, labelmap: MetaTensor) -> _View:
        """The image itself in 2D; in 3D the axial slice with the most labelled voxels, else the middle one."""
        if image.ndim == 3:
            return cls(image, None)
        foreground = (labelmap[0] > 0).sum(dim=(0, 1))
        return cls(image, int(foreground.argmax()) if foreground.any() else image.shape[-1] // 2)

    def plane(self, volume: MetaTensor) -> Plane:
        voxels = volume[0].numpy()
        return np.asarray(voxels if self.index is None else voxels[..., self.index])

    def show(self, axes: Axes, plane: Plane | None = None) -> None:
        spacing = np.asarray(self.volume.pixdim)
        axes.imshow(
            (self.plane(self.volume) if plane is None else plane).T,
            cmap="gray",
            origin="upper" if self.index is None else "lower",  # a PNG has y down, a volume in RAS has anterior up
            aspect=float(spacing[1] / spacing[0]),
            interpolation="nearest",
        )

    def points(self) -> npt.NDArray[np.float64]:
        """LPS millimetres ``[X, Y, dim]`` of the pixels of the plane."""
        dim = self.volume.ndim - 1
        size_x, size_y = self.volume.shape[1:3]
        grid = np.indices((size_x, size_y, 1), dtype=float)[..., 0]
        grid[2] = self.index or 0
        affine = self.volume.affine.numpy()
        world = np.einsum("ij,jxy->xyi", affine[:dim, :dim], grid[:dim]) + affine[:dim, 3]
        return world * np.array([-1.0, -1.0, 1.0])[:dim]


def draw_results(
    dataset_dir: str | Path,
    output_dir: str | Path,
    data_list: str = "test_corrupt",
    path: str | Path = "",
    cases: int = 4,
    initial_atlas: str | Path = "",
) -> None:
    """Draw the first cases of an inference run, one row each, under a row with the atlas.

    A row shows the image, the contours of the ITN, of the 1-pass and of the refined result upon it, and the grid of the
    atlas as the refined registration deforms it. Where the data set has a label, its contour is dashed. Of a 3D image
    the axial slice with the most labelled voxels is shown.

    Args:
        dataset_dir: data set that was run.
        output_dir: what inference wrote.
        data_list: list of the data set.
        path: picture to write, ``.png``, ``.pdf`` or ``.svg``; default ``OUTPUT_DIR/figure.png``.
        cases: number of cases to show.
        initial_atlas: the ``models/initial_atlas.pt`` that training wrote; with it the atlas is shown before
            and after training.

    Raises:
        InputError: there are no results in the folder, the picture has another suffix, or a file cannot be read or
            written.
    """
    output = Path(output_dir)
    picture = check_picture(Path(path) if path else output / "figure.png")
    listed = find_labelled_cases(Path(dataset_dir), data_list)
    done = [case for case in listed if (output / case["case"]).is_dir()][:cases]
    if not done or cases < 1:
        raise InputError(
            f"{output}: found no results of the list '{data_list}' of {dataset_dir} to draw. Run inference first, with "
            "this dataset_dir, output_dir and list."
        )
    atlas = _atlas(output / "atlas", initial_atlas)
    figure = Figure(figsize=(10, 2.1 * (1 + len(done))), layout="constrained")
    rows = figure.subplots(1 + len(done), 5)
    for axes in rows.flat:
        axes.set_axis_off()
    _draw_atlas(rows[0], atlas)
    values: set[int] = set()
    for row, case in zip(rows[1:], done, strict=True):
        values |= _draw_case(row, case, output / case["case"], dim=next(iter(atlas.values())).ndim)
    _draw_legend(rows[0][-1], sorted(values))
    write_whole(picture, lambda part: figure.savefig(part, dpi=100))


def _atlas(folder: Path, initial: str | Path) -> dict[str, Plane]:
    """Title → image or foreground probability of the atlas, before and after training."""
    try:
        image = nib.load(folder / "atlas_image.nii.gz").get_fdata()
        labels = nib.load(folder / "atlas_probabilities.nii.gz").get_fdata().reshape(*image.shape, -1)
        pictures = {"atlas image": image, "atlas labels": labels[..., 1:].sum(axis=-1)}
        if initial:
            start = torch.load(initial, weights_only=True)
            before = {"initial image": start["image"][0, 0], "initial labels": start["labels"][0, 1:].sum(dim=0)}
            pictures = {**{title: picture.numpy() for title, picture in before.items()}, **pictures}
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"the atlas cannot be read ({reason}). Run inference, or training, again.") from error
    return pictures


def _draw_atlas(row: Sequence[Axes], atlas: Mapping[str, Plane]) -> None:
    for axes, (title, picture) in zip(row, atlas.items(), strict=False):
        flat = picture.ndim == 2
        plane = picture if flat else picture[..., picture.shape[-1] // 2]
        axes.imshow(plane.T, cmap="gray", origin="upper" if flat else "lower")
        axes.set_title(title, fontsize=9)


def _draw_case(row: Sequence[Axes], case: Mapping[str, str], folder: Path, dim: int) -> set[int]:
    """Draw one case; returns the label values that occur."""
    image = read_oriented(case["image"], dim)
    results = {title: read_oriented(result_file(folder, FILES[name]), dim) for name, title in RESULTS.items()}
    truth = read_oriented(case["label"], dim) if "label" in case else None
    view = _View.of(image, results["refined"] if truth is None else truth)
    for axes in row:
        view.show(axes)
    row[0].set_title(case["case"], fontsize=8)
    row[-1].set_title("deformed grid", fontsize=9)
    values = {int(value) for result in results.values() for value in np.unique(view.plane(result)) if value > 0}
    for axes, (title, result) in zip(row[1:], results.items(), strict=False):
        axes.set_title(title, fontsize=9)
        _draw_contours(axes, view.plane(result), values)
    if truth is not None:
        for axes in row[:-1]:
            for value in np.unique(view.plane(truth))[1:]:
                axes.contour((view.plane(truth) == value).T, levels=[0.5], **TRUTH)
    _draw_grid(row[-1], view, folder)
    _draw_contours(row[-1], view.plane(results["refined"]), values)
    return values


def _colour(value: int) -> str:
    return COLOURS[(value - 1) % len(COLOURS)]


def _draw_contours(axes: Axes, plane: Plane, values: set[int]) -> None:
    for value in values & set(np.unique(plane).astype(int)):
        axes.contour((plane == value).T, levels=[0.5], colors=_colour(value), linewidths=1.2)


def _draw_grid(axes: Axes, view: _View, folder: Path) -> None:
    """Draw where the grid lines of the atlas run in the subject: the lines on which an atlas coordinate is constant."""
    transform = read_atlas_to_subject(folder)
    points = view.points()
    atlas = transform(points.reshape(-1, points.shape[-1])).reshape(points.shape)
    step = max(np.ptp(atlas[..., 0]), np.ptp(atlas[..., 1])) / GRID_LINES
    for axis in (0, 1):
        coordinate = atlas[..., axis]
        levels = np.arange(coordinate.min() + step / 2, coordinate.max(), step)
        axes.contour(coordinate.T, levels=levels, colors="#ffe082", linewidths=0.5, linestyles="solid")


def _draw_legend(axes: Axes, values: Sequence[int]) -> None:
    lines = [Line2D([], [], color=_colour(value), label=f"label {value}") for value in values]
    lines.append(Line2D([], [], color="gray", linestyle="dashed", label="truth"))
    axes.legend(handles=lines, loc="center", fontsize=9, frameon=False)
