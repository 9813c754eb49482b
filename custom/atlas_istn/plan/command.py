# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""`plan`: from a labelled folder to the configuration of a training."""

from __future__ import annotations

import logging
import re
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from ..errors import InputError, message_of
from ..io.loading import PixelSize
from ..io.names import is_png
from ..io.results import length_unit
from .checks import check_anatomy, check_lists, check_scans, some
from .decide import (
    Decision,
    Grid,
    decide_architecture,
    decide_augmentation,
    decide_channels,
    decide_grid,
    decide_refinement,
    decide_window,
    outside,
)
from .discover import LISTS, Case, DataSet, discover
from .labels import LabelTable, label_table
from .picture import draw_plan, mean_labels
from .splits import folds as make_folds
from .splits import patients, split
from .suitability import REFUSE, Suitability, judge
from .survey import Anatomy, Scan, digests, dimensions, look_at_anatomy, look_at_scan
from .timing import batch_size, decide_length, measure_costs
from .write import CONFIG, LISTS_FILE, check_folder, data_config, fold_config, write_folds, write_lists, write_plan

__all__ = ["plan"]

logger = logging.getLogger(__name__)

_CUT = 0.001  # share of the foreground outside the grid, from which a case is named
Found = TypeVar("Found")


@dataclass(frozen=True)
class _Data:
    """A data set that was looked at."""

    found: DataSet
    dim: int
    pixel_size: PixelSize | None
    lists: Mapping[str, Sequence[Case]]
    scans: Sequence[Scan]
    table: LabelTable
    anatomies: Sequence[Anatomy]

    @property
    def unit(self) -> str:
        return length_unit(self.found.cases[0].image, self.pixel_size)


def plan(
    dataset_dir: str,
    output_dir: str = "",
    lists: str = "",
    labels: str = "",
    spacing: str = "",
    leave_out: str = "",
    folds: int = 0,
    hours: str = "",
    seed: int = 0,
    force: bool = False,
    overwrite: bool = False,
    bundle_dir: str = "bundle",
) -> None:
    """Look at a labelled data set, say what is odd, and write the configuration of a training for it.

    The data set is only read. The folder of the plan becomes a bundle when training is over.

    Args:
        dataset_dir: a folder with a dataset.json, or with folders images* and labels*.
        output_dir: folder of the plan; by default output/ and the name of the data set.
        lists: lists of the data set to use, with commas between; by default training, validation and test. Others are
            shared out by patient.
        leave_out: cases and files that are not to be used, as in '*_4d,case_7', with commas between; * is anything.
        labels: classes wanted, as in 'left=1,right=21' or 'hippocampus=1+21'; by default all.
        folds: also make lists and configurations for so many trainings of a cross-validation.
        spacing: width and height of a pixel of PNG images in mm, as in 0.14x0.14, or one number for both; without it
            lengths are in pixels.
        hours: that training may take on this machine, with all that belongs to it; by default 0.75, or what ten epochs
            take.
        seed: of the lists that are made.
        force: train labels that fewer than half of the cases have.
        overwrite: replace a plan that was edited or trained.
        bundle_dir: the bundle that will train.

    Raises:
        InputError: the data set cannot be used as it is, naming all that is wrong, or something would be lost.
    """
    root = Path(output_dir or Path("output") / Path(dataset_dir).absolute().name)
    budget = _number("hours", hours) if hours else None
    data = _look(discover(dataset_dir, _words(lists), _words(leave_out)), labels, _pixel_size(spacing), folds, seed)
    warnings = [
        *data.found.warnings,
        *check_scans(data.scans, data.unit),
        *check_lists({name: cases for name, cases in data.lists.items() if name in LISTS}, data.scans),
        *check_anatomy(data.anatomies, data.table),
    ]
    suits = judge(data.anatomies, data.table)
    _refuse(suits, force)
    grid, decision = decide_grid(data.scans, data.anatomies, data.unit)
    decisions = [
        decide_channels(data.scans),
        decision,
        decide_window(data.scans),
        decide_augmentation(data.anatomies, grid, data.unit),
        decide_architecture(grid),
        decide_refinement(grid),
    ]
    settings = _settings(root, data, bool(folds or leave_out))
    train_config = Path(bundle_dir) / "configs" / "train.yaml"
    if not train_config.is_file():
        raise InputError(f"{train_config}: no such file. Expected a bundle. Set bundle_dir to one.")
    decisions.append(_length(train_config, settings, decisions, data, budget))
    lost = [outside(anatomy, grid) for anatomy in data.anatomies]
    cut = [anatomy.case.name for anatomy, (share, _) in zip(data.anatomies, lost, strict=True) if share > _CUT]
    if cut:
        warnings.append(f"the grid cuts more than 0.1 % of the foreground of {len(cut)} case(s): {some(cut)}")
    warnings += [warning for suit in suits for warning in suit.warnings]

    config = data_config(root, settings, decisions)
    check_folder(root, config, overwrite)
    if "data_list_file" in settings:
        write_lists(root, data.found.folder, data.lists)
    names = data.table.names
    draw_plan(mean_labels(data.anatomies, grid, len(names)), names[1:], grid, lost, data.unit, root / "plan.png")
    write_plan(root, config, _record(data, grid, decisions, suits, warnings))
    write_folds(root, folds)
    sys.stdout.write(_report(data, decisions, suits, warnings) + _next_commands(root, folds))


def _look(found: DataSet, labels: str, pixel_size: PixelSize | None, number: int, seed: int) -> _Data:
    """Read all cases.

    Raises:
        InputError: naming every case that cannot be used.
    """
    stated = [case.image for case in found.cases if not is_png(case.image)]
    if pixel_size and stated:
        raise InputError(
            f"--spacing: expected PNG files, found {stated[0]}, which states its voxel size. Leave it out."
        )
    dim = dimensions(found.folder, found.cases[0])
    scans = _of_all(found.cases, "images", lambda case: look_at_scan(found.folder, case, dim, pixel_size))
    _check_channels(scans)
    table = label_table(scans, found.names, labels)
    anatomies = _of_all(
        found.cases,
        "labels",
        lambda case: _not_empty(look_at_anatomy(found.folder, case, dim, table.values, pixel_size)),
    )
    alike = [[scan.case.name for scan in group] for group in digests(scans).values()]
    lists = split(found.cases, seed, alike)
    if number:
        lists |= make_folds(lists, number, seed, alike)
    return _Data(found, dim, pixel_size, lists, scans, table, anatomies)


def _check_channels(scans: Sequence[Scan]) -> None:
    counts = Counter(len(scan.percentiles) for scan in scans)
    usual = counts.most_common(1)[0][0]
    others = [f"  {scan.case.name}: {len(scan.percentiles)}" for scan in scans if len(scan.percentiles) != usual]
    if others:
        raise InputError(
            f"{len(others)} of {len(scans)} cases have another number of channels than {usual}:\n"
            + "\n".join(others)
            + "\nComplete or convert them, or leave them out."
        )


def _not_empty(anatomy: Anatomy) -> Anatomy:
    if not anatomy.volumes.any():
        raise InputError(f"{anatomy.case.label}: nothing but background. Correct the label, or leave the case out.")
    return anatomy


def _of_all(cases: Sequence[Case], title: str, look: Callable[[Case], Found]) -> list[Found]:
    found, problems = [], {}
    for case in tqdm(cases, desc=title):
        try:
            found.append(look(case))
        except Exception as error:  # whatever a reader raises; all cases are named at once
            problems[case.name] = f"  {case.name}: {message_of(error)}"
    if problems:
        few = 2 * len(problems) < len(cases)
        remedy = f"\nCorrect them, or leave them out: --leave_out '{','.join(problems)}'" if few else ""
        lines = "\n".join(problems.values())
        raise InputError(f"{len(problems)} of {len(cases)} cases cannot be used:\n{lines}{remedy}")
    return found


def _refuse(suits: Sequence[Suitability], force: bool) -> None:
    refused = [suit for suit in suits if suit.refused]
    if refused and not force:
        lines = "\n".join(f"  {suit.name}: {suit.present:.0%} of the cases have it" for suit in refused)
        raise InputError(
            f"an atlas does not suit labels that fewer than {REFUSE:.0%} of the cases have:\n{lines}\n"
            "Leave them out or merge them with --labels, or train them all the same with --force true."
        )


def _settings(root: Path, data: _Data, changed: bool) -> dict[str, Any]:
    """What of the configuration follows from the data set alone."""
    made = changed or any(case.source not in LISTS for case in data.found.cases) or not data.found.has_lists
    made = made or any(name not in {case.source for case in data.found.cases} for name in data.lists)
    settings: dict[str, Any] = {
        "dataset_dir": str(data.found.folder),
        "output_dir": str(root),
        "bundle_root": str(root),
    }
    if made:
        settings["data_list_file"] = str(root / LISTS_FILE)
    if data.pixel_size:
        settings["pixel_size"] = list(data.pixel_size)
    settings["label_names"] = dict(enumerate(data.table.names))
    return settings if data.table.is_plain else {**settings, "label_values": list(data.table.values)}


def _length(
    train_config: Path, settings: dict[str, Any], decisions: Sequence[Decision], data: _Data, hours: float | None
) -> Decision:
    fold = {name: data.lists.get(f"{name}_fold0", data.lists[name]) for name in ("training", "validation")}
    training, validation = (len(cases) for cases in fold.values())
    batch = batch_size(data.dim, training)
    known = {**settings, **{name: value for decision in decisions for name, value in decision.settings.items()}}
    extent = np.median([np.multiply(scan.shape, scan.spacing) for scan in data.scans], axis=0).tolist()
    return decide_length(measure_costs(train_config, known, batch, extent), hours, training, validation, batch)


def _record(
    data: _Data, grid: Grid, decisions: Sequence[Decision], suits: Sequence[Suitability], warnings: Sequence[str]
) -> dict[str, Any]:
    shapes, spacings = (np.array([getattr(scan, name) for scan in data.scans]) for name in ("shape", "spacing"))
    low, high = (np.array([getattr(a, name) for a in data.anatomies]) for name in ("low", "high"))
    return {
        "fingerprint": {
            "cases": {name: len(cases) for name, cases in data.lists.items()},
            "patients": len(patients(data.found.cases)),
            "shape": _range(shapes),
            "spacing": _range(spacings),
            "foreground_box": _range(high - low),
            "intensity_percentiles": [
                _range(channel) for channel in np.array([scan.percentiles for scan in data.scans]).swapaxes(0, 1)
            ],
            "labels": [{key: value for key, value in asdict(suit).items() if key != "warnings"} for suit in suits],
        },
        "decisions": [asdict(decision) for decision in decisions],
        "foreground_outside": {a.case.name: outside(a, grid)[0] for a in data.anatomies if outside(a, grid)[0] > _CUT},
        "warnings": list(warnings),
    }


def _range(values: np.ndarray) -> dict[str, list[float]]:
    rows = {"least": values.min(axis=0), "median": np.median(values, axis=0), "greatest": values.max(axis=0)}
    return {name: [float(f"{number:.6g}") for number in row] for name, row in rows.items()}


def _report(data: _Data, decisions: Sequence[Decision], suits: Sequence[Suitability], warnings: Sequence[str]) -> str:
    sizes = ", ".join(f"{name} {len(cases)}" for name, cases in data.lists.items())
    ignored = ", ".join(f"{name} ({count})" for name, count in data.found.ignored.items() if count)
    number = len(patients(data.found.cases))
    rows = [
        (
            "lists",
            sizes,
            f"{number} patients by the names of the files" + (f"; not used: {ignored}" if ignored else ""),
        ),
        ("labels", ", ".join(data.table.names[1:]), data.table.reason),
        *((decision.name, decision.value, decision.reason) for decision in decisions),
    ]
    lines = [_row(name, f"{value}. {reason[0].upper()}{reason[1:]}.") for name, value, reason in rows]
    lines += ["", _row("label", "cases  topology (share)        centre ±  volume ±")]
    lines += [
        _row(
            suit.name[:22],
            f"{suit.present:5.0%}  {suit.topology!s:10} ({suit.common:.0%})".ljust(31)
            + f"{suit.place:6.2g} {data.unit}  {suit.volume:.0%}",
        )
        for suit in suits
    ]
    lines += ["", *(textwrap.fill(f"warning: {text}", 118, subsequent_indent="  ") for text in warnings)]
    return "\n".join(lines) + "\n"


def _next_commands(root: Path, number: int) -> str:
    """What to do with a plan; with a number of folds, to train and join them."""
    lines = ["", f"Look at {root / 'plan.png'} and {root / CONFIG}. Then train:"]
    for fold in range(number) if number else [None]:
        files = ["bundle/configs/train.yaml", root / CONFIG, *([] if fold is None else [fold_config(root, fold)])]
        listed = ",".join(f"'{file}'" for file in files)
        lines.append(f'python -m monai.bundle run training --config_file "[{listed}]"')
    if number:
        folders = " ".join(str(root / f"fold_{fold}") for fold in range(number))
        lines += ["and join them:", f"python -m atlas_istn ensemble {folders} --output_dir {root / 'ensemble'}"]
    return "\n".join([*lines, ""])


def _row(name: str, text: str) -> str:
    return textwrap.fill(text, 118, initial_indent=name.ljust(24), subsequent_indent=" " * 24, drop_whitespace=True)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _pixel_size(text: str) -> PixelSize | None:
    """What ``--spacing`` says of the pixels of PNG images."""
    sides = [_number("spacing", side) for side in re.split("[x×,]", text)] if text else []
    if len(sides) > 2:
        raise InputError(f"--spacing: expected the width and height of a pixel, as in 0.14x0.14, found '{text}'.")
    return (sides * 2)[:2] or None


def _number(option: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise InputError(f"--{option}: expected a number above 0, found '{text}'.")
    return value
