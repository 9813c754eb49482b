# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Fig. 4, what becomes of one target in each direction, and Fig. 5, estimated similarity against Dice of patches."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from atlas_istn.io.cases import find_cases
from atlas_istn.io.files import write_whole
from atlas_istn.pictures.palette import label_colour

from .lists import DIRECTIONS, LABELS, Direction
from .scores import MEAN, fused_methods, read_rows

__all__ = ["STRUCTURES", "draw_fig_4", "draw_fig_5", "spearman_by_target"]

STRUCTURES = (*LABELS.values(), "all")
BINS, EACH = 10, 20  # of the Dice, and patches drawn from each bin that has any
PANELS = {
    "truth": "truth",
    "atlas": "one atlas",
    "vote": "majority vote",
    "non_local": "NLWV",
    "similarity": "similarity",
    "unet": "U-Net of the atlases' contrast",
    "unet_lge": "U-Net of 4 LGE",
}
MARGIN = 15  # voxels about the heart that are shown

Rows = Sequence[Mapping[str, str]]


def spearman_by_target(rows: Rows, structure: str, estimate: str, seed: int = 0) -> dict[str, float]:
    """Rank correlation of an estimate with the Dice in each target, patches drawn evenly over the Dice."""
    return {
        target: float(
            spearmanr([float(row[estimate]) for row in drawn], [float(row["dice"]) for row in drawn]).statistic
        )
        for target, drawn in _drawn(rows, structure, seed).items()
    }


def _drawn(rows: Rows, structure: str, seed: int) -> dict[str, list[Mapping[str, str]]]:
    """Target → as many patches of every bin of the Dice, with repetition where there are few."""
    bins: dict[str, list[list[Mapping[str, str]]]] = defaultdict(lambda: [[] for _ in range(BINS)])
    for row in rows:
        if structure in (row["structure"], STRUCTURES[-1]):
            bins[row["target"]][min(int(float(row["dice"]) * BINS), BINS - 1)].append(row)
    random = np.random.default_rng(seed)
    return {
        target: [found[index] for found in of_target if found for index in random.integers(len(found), size=EACH)]
        for target, of_target in bins.items()
    }


def draw_fig_5(output_dir: Path, path: Path) -> None:
    """Draw a panel for each direction and structure; nothing without patches."""
    found = {d: read_rows(sorted(output_dir.glob(f"rotation_*/patches/{d.name}.csv"))) for d in DIRECTIONS}
    found = {direction: rows for direction, rows in found.items() if rows}
    if not found:
        return
    figure = Figure(figsize=(3.0 * len(LABELS), 2.8 * len(found)), layout="constrained")
    panels = figure.subplots(len(found), len(LABELS), squeeze=False, sharex=True, sharey="row")
    for axes_of_row, (direction, rows) in zip(panels, found.items(), strict=True):
        for axes, (value, structure) in zip(axes_of_row, LABELS.items(), strict=True):
            drawn = [row for of_target in _drawn(rows, structure, 0).values() for row in of_target]
            estimated, dice = ([float(row[key]) for row in drawn] for key in ("estimated", "dice"))
            axes.plot(dice, estimated, ".", markersize=2, alpha=0.4, color=label_colour(value))
            mean = np.mean(list(spearman_by_target(rows, structure, "estimated").values()))
            axes.set_title(f"{direction.title}, {structure}: ρ = {mean:.2f}", fontsize=8)
        axes_of_row[0].set_ylabel("estimated similarity (−distance)", fontsize=8)
    for axes in panels[-1]:
        axes.set_xlabel("Dice of the labels", fontsize=8)
    write_whole(path, lambda part: figure.savefig(part, dpi=150, format="png"))


def draw_fig_4(output_dir: Path, path: Path) -> None:
    """Draw, in each direction, the target of median Dice of the first rotation that has all; nothing without any."""
    rows = []
    for direction in DIRECTIONS:
        fused = fused_methods(output_dir, direction).get("similarity")
        for rotation in sorted(output_dir.glob("rotation_*")) if fused else ():
            cases = find_cases(str(rotation / "data"), f"{direction.target}_test", with_labels=True)
            scores = fused.only(case["case"] for case in cases).values(MEAN) if fused else {}
            if scores:
                name = sorted(scores, key=lambda case: scores[case])[len(scores) // 2]
                files = next(found for found in cases if found["case"] == name)
                rows.append((direction, rotation, files, scores[name]))
                break
    if not rows:
        return
    found = [_labelled(rotation / "fused", direction, files) for direction, rotation, files, _ in rows]
    columns = max(map(len, found))
    figure = Figure(figsize=(1.9 * columns, 2.1 * len(rows)), layout="constrained")
    panels = figure.subplots(len(rows), columns, squeeze=False)
    for axes in panels.flat:
        axes.set_axis_off()
    for axes_of_row, (direction, _, files, score), of_row in zip(panels, rows, found, strict=True):
        image, heart = np.asarray(nib.load(files["image"]).dataobj), np.argwhere(of_row["truth"] > 0)
        low, high = np.maximum(heart.min(axis=0) - MARGIN, 0), heart.max(axis=0) + MARGIN
        window = slice(low[0], high[0]), slice(low[1], high[1]), int(np.median(heart[:, 2]))
        for axes, (name, labels) in zip(axes_of_row, of_row.items(), strict=False):
            axes.imshow(image[window].T, cmap="gray", vmax=np.percentile(image[window], 99))
            for value in LABELS:
                axes.contour(value == labels[window].T, [0.5], colors=[label_colour(value)], linewidths=1)
            titles = {"truth": f"{direction.title}, truth", "similarity": f"{PANELS['similarity']}, Dice {score:.2f}"}
            axes.set_title(titles.get(name, PANELS[name]), fontsize=8)
    write_whole(path, lambda part: figure.savefig(part, dpi=150, format="png"))


def _labelled(folder: Path, direction: Direction, files: Mapping[str, str]) -> dict[str, np.ndarray]:
    """The truth, and the labels that methods have given to a case, as far as they are there."""
    found = {"truth": np.asarray(nib.load(files["label"]).dataobj)}
    for name in list(PANELS)[1:]:
        run, ending = ("vote", "atlas_1") if name == "atlas" else (name, "seg")
        path = folder / f"{direction.name}_{run}" / files["case"] / f"{files['case']}_{ending}.nii.gz"
        if path.exists():
            found[name] = np.asarray(nib.load(path).dataobj)
    return found
