# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""A picture of a training: the loss terms and the validation of ITN, 1-pass and refined result against the epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..errors import InputError
from ..io.files import write_whole
from ..io.results import RESULTS
from .palette import RESULT_COLOURS, check_picture

__all__ = ["draw_curves", "read_curves"]

Curve = dict[int, float]  # epoch → value

STYLES = {
    "segmentation": ("segmentation", "#1f77b4"),
    "a2s": ("atlas to subject", "#8352c9"),
    "s2a": ("subject to atlas", "#d62728"),
    "regularisation": ("regularisation", "#6f7782"),
    **{f"{name}_dice": (kind.title, RESULT_COLOURS[name]) for name, kind in RESULTS.items()},
}
"""Name in the log → name and colour in the picture, in the order of the legend."""


def draw_curves(output_dir: str | Path, path: str | Path = "") -> Path:
    """Draw the curves that a training has logged so far.

    Args:
        output_dir: the training's output folder.
        path: picture to write, ``.png``, ``.pdf`` or ``.svg``; default ``OUTPUT_DIR/curves.png``.

    Returns:
        The path of the picture.

    Raises:
        InputError: the folder holds no logged training, or the picture has another suffix or cannot be written.
    """
    target = check_picture(Path(path) if path else Path(output_dir) / "curves.png")
    curves = read_curves(Path(output_dir) / "tensorboard")
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    losses, scores = figure.subplots(1, 2)
    _draw(losses, _group(curves, "loss/"), "loss terms, before their weights")
    losses.set_yscale("log")
    _draw(scores, _group(curves, "validation/"), "validation, mean Dice", marker="o")
    write_whole(target, lambda part: figure.savefig(part, dpi=120))
    return target


def read_curves(log_dir: str | Path) -> dict[str, Curve]:
    """Everything scalar that `TensorBoardLog` wrote: name → epoch → value.

    A resumed training has several event files; of an epoch that was done twice the later one counts.

    Raises:
        InputError: there is nothing to read.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # loading it takes a second

    curves: dict[str, Curve] = {}
    for file in sorted(Path(log_dir).glob("events.out.tfevents.*"), key=lambda file: file.stat().st_mtime):
        events = EventAccumulator(str(file), size_guidance={"scalars": 0}).Reload()
        for name in events.Tags()["scalars"]:
            curves.setdefault(name, {}).update({event.step: event.value for event in events.Scalars(name)})
    if not curves:
        raise InputError(f"{log_dir}: no logged training found. Give the output_dir of a training.")
    return curves


def _group(curves: Mapping[str, Curve], prefix: str) -> dict[str, Curve]:
    return {name.removeprefix(prefix): curve for name, curve in curves.items() if name.startswith(prefix)}


def _draw(axes: Axes, curves: Mapping[str, Curve], title: str, marker: str = "") -> None:
    for name in [*(name for name in STYLES if name in curves), *(name for name in curves if name not in STYLES)]:
        curve, (label, colour) = curves[name], STYLES.get(name, (name, None))
        epochs: Sequence[int] = sorted(curve)
        values = [curve[epoch] for epoch in epochs]
        axes.plot(epochs, values, label=label, color=colour, marker=marker, markersize=3)
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    if curves:
        axes.legend(fontsize=8, frameon=False)
