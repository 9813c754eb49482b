# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""A picture of an inference run: for some cases the image, their results and the deformation; and the atlas."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
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
from ..io.results import (
    RESULTS,
    find_case_folders,
    find_results,
    image_dimensions,
    is_registered,
    read_atlas_to_subject,
    read_case_report,
    read_oriented,
)
from ..io.sources import find_sources
from .palette import TRUTH, check_picture, label_colour
from .panels import draw_legend, draw_outlines, mark_sides, show_image
from .planes import MARGIN, Plane, atlas_coordinates, choose_planes, middle_planes

__all__ = ["draw_results"]

Array = npt.NDArray[Any]

DASHED = {"linestyles": "dashed", "linewidths": 0.8}
GRID, GRID_LINES = "#ffe082", 16  # colour of the deformed grid, and its lines over the extent of the atlas
WIDTH, HEIGHT, LEGEND = 2.0, 2.1, 0.35  # of a panel and of the legend, inches


def draw_results(
    dataset_dir: str | Path,
    output_dir: str | Path,
    data_list: str = "",
    path: str | Path = "",
    cases: int = 4,
    initial_atlas: str | Path = "",
) -> None:
    """Draw the first cases of an inference run, one row each, under a row with the atlas.

    A row shows the image, the outlines of each result upon it, and the grid of the atlas as the registration deforms
    it; what a run does not have, such as the atlas of a U-net, is left out. Where the data set has a label, its outline
    is dashed. Of a 3D image the axial slice with the most labelled voxels is shown, the one that `report` shows.

    Args:
        dataset_dir: data set that was run.
        output_dir: what inference wrote.
        data_list: list of the data set; default whatever list has a case.
        path: picture to write, ``.png``, ``.pdf`` or ``.svg``; default ``OUTPUT_DIR/figure.png``.
        cases: number of cases to show.
        initial_atlas: the ``models/initial_atlas.pt`` that training wrote; with it the atlas is shown before
            and after training.

    Raises:
        InputError: there are no results in the folder, the data set has none of their images, the picture has another
            suffix, or a file cannot be read or written.
    """
    output = Path(output_dir)
    picture = check_picture(Path(path) if path else output / "figure.png")
    folders = {folder.name: folder for folder in find_case_folders(output)}
    if not folders or cases < 1:
        raise InputError(
            f"{output}: found no results to draw. Run inference first, with this output_dir, and ask for one case or "
            "more."
        )
    several = read_case_report(next(iter(folders.values()))).get("channels", 1) > 1
    sources = find_sources(Path(dataset_dir), data_list, folders, several)
    rows = [(source, folders[case], read_case_report(folders[case])) for case, source in list(sources.items())[:cases]]
    results = [find_results(folder, report) for _, folder, report in rows]
    titles = {name: kind.title for name, kind in RESULTS.items() if any(name in found for found in results)}
    atlas, spacing = _read_atlas(output / "atlas", initial_atlas) if (output / "atlas").is_dir() else ({}, [])
    registered = any(is_registered(folder) for _, folder, _ in rows)
    columns = max(1 + len(titles) + registered, len(atlas))
    lines = len(rows) + bool(atlas)
    figure = Figure(figsize=(WIDTH * columns, HEIGHT * lines + LEGEND), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False)
    for axes in panels.flat:
        axes.set_axis_off()
    if atlas:
        _draw_atlas(panels[0], atlas, spacing)
    for row, (source, folder, report), files in zip(panels[-len(rows) :], rows, results, strict=True):
        _draw_case(row, source, folder, report, files)
    for axes, title in zip(panels[-len(rows), 1:], [*titles.values(), *["deformed grid"] * registered], strict=False):
        axes.set_title(title, fontsize=9)
    _draw_legend(figure, rows[0][2]["labels"], any("label" in source for source, _, _ in rows))
    write_whole(picture, lambda part: figure.savefig(part, dpi=100))
    sys.stdout.write(f"{picture}: {len(rows)} cases\n")


def _read_atlas(folder: Path, initial: str | Path) -> tuple[dict[str, Array], list[float]]:
    """Title → image or foreground probability of the atlas, before and after training; and its voxel size."""
    try:
        file = nib.load(folder / "atlas_image.nii.gz")
        image, spacing = file.get_fdata(), [float(size) for size in file.header.get_zooms()]
        labels = nib.load(folder / "atlas_probabilities.nii.gz").get_fdata().reshape(*image.shape, -1)
        pictures = {"atlas image": image, "atlas labels": labels[..., 1:].sum(axis=-1)}
        if initial:
            start = torch.load(initial, weights_only=True)
            before = {"initial image": start["image"][0, 0], "initial labels": start["labels"][0, 1:].sum(dim=0)}
            pictures = {**{title: picture.numpy() for title, picture in before.items()}, **pictures}
    except Exception as error:  # what is no model fails in many ways
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"the atlas cannot be read ({reason}). Run inference, or training, again.") from error
    return pictures, spacing


def _draw_atlas(row: Sequence[Axes], atlas: Mapping[str, Array], spacing: Sequence[float]) -> None:
    plane = middle_planes(atlas["atlas image"].shape, spacing)[0]
    for axes, (title, volume) in zip(row, atlas.items(), strict=False):
        show_image(axes, plane.cut(volume), plane, vmin=volume.min(), vmax=volume.max())
        mark_sides(axes, plane)
        axes.set_title(title, fontsize=9)


def _draw_case(
    row: Sequence[Axes],
    source: Mapping[str, str],
    folder: Path,
    report: Mapping[str, Any],
    files: Mapping[str, Path],
) -> None:
    dim = image_dimensions(list(files.values())[-1])
    image = read_oriented(source["image"], dim, report.get("pixel_size"))
    maps = [read_oriented(file, dim)[0].numpy().astype(int) for file in files.values()]
    truth = read_oriented(source["label"], dim, label=True)[0].numpy().astype(int) if "label" in source else None
    colours = {value: label_colour(number) for number, value in enumerate(report["labels"].values())}
    anything = np.any([labels > 0 for labels in (*maps, *([] if truth is None else [truth]))], axis=0)
    plane = choose_planes(anything, image.pixdim.tolist(), MARGIN)[0]
    if is_registered(folder):
        _draw_grid(row[1 + len(maps)], plane, image, folder)
    shown = [None, *maps, *([maps[-1]] if is_registered(folder) else [])]
    for axes, labels in zip(row, shown, strict=False):
        show_image(axes, plane.cut(image[0].numpy()), plane)
        mark_sides(axes, plane)
        if labels is not None:
            draw_outlines(axes, plane.cut(labels), colours)
    row[0].set_title(folder.name, fontsize=8)
    if truth is not None:
        for axes in row[: 1 + len(maps)]:
            draw_outlines(axes, plane.cut(truth), dict.fromkeys(np.unique(truth[truth > 0]), TRUTH), **DASHED)


def _draw_grid(axes: Axes, plane: Plane, image: MetaTensor, folder: Path) -> None:
    """Draw where the grid lines of the atlas run in the subject: the lines on which an atlas coordinate is constant."""
    across, down, _ = atlas_coordinates(read_atlas_to_subject(folder), image.affine.numpy(), plane)
    step = max(np.ptp(across), np.ptp(down)) / GRID_LINES
    for coordinate in (across, down):
        levels = np.arange(coordinate.min() + step / 2, coordinate.max(), step)
        axes.contour(coordinate, levels=levels, colors=GRID, linewidths=0.5, linestyles="solid")


def _draw_legend(figure: Figure, labels: Mapping[str, int], truth: bool) -> None:
    lines = [Line2D([], [], color=label_colour(number), label=name) for number, name in enumerate(labels)]
    if truth:
        lines.append(Line2D([], [], color="gray", linestyle="dashed", label="truth"))
    draw_legend(figure, lines)
