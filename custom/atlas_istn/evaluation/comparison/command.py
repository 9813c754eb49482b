# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""The command that compares evaluated results: tables with tests, and pictures."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from ...errors import InputError
from ...io.files import write_whole
from ...io.outputs import write_csv
from .plots import box_plots, itn_against_refine, sweep_plot
from .rendering import LEGEND, latex, latex_text, markdown, method_table, paired_table, score_tables
from .results import common_scores, read_methods
from .tables import Row, method_rows, paired_rows, score_rows

__all__ = ["compare"]


def compare(
    *outputs: str, output_dir: str, reference: str = "", sweep: str = "", holes: Mapping[str, int] | None = None
) -> None:
    """Compare evaluated results over the cases that all of them have.

    Writes into output_dir: comparison.md and comparison.tex with all tables, scores.csv, tests.csv and methods.csv with
    their figures, boxplots.png, scatter.png (ITN against refine, where an output has both) and, on demand, sweep.png.
    The same input gives the same tables, to the last digit.

    Args:
        outputs: folders that evaluate wrote, or metrics.csv files. NAME=PATH names one, NAME:RESULT=PATH takes one of
            its results (itn, one_pass, refine) under this name; without that, every result is compared.
        output_dir: folder for the tables and pictures.
        reference: name of the method that the others are tested against; default, for each, the best of the others.
        sweep: name of a setting, such as lambda, whose value ends the name of every output, as in 0.1=PATH: draw the
            metrics against it.
        holes: label name to the number of holes of its shape, as in '{B: 2}', for the share of correct topology;
            without it a correct label is one that has one component.

    Raises:
        InputError: a file cannot be read or written, the results share no case or label, or a name is unknown or used
            twice.
    """
    if not outputs:
        raise InputError("expected one or more folders that evaluate wrote: compare FOLDER FOLDER --output_dir DIR.")
    methods = read_methods([str(output) for output in outputs])
    scores = common_scores(methods)
    rows = {
        "methods": method_rows(methods, scores, holes),
        "scores": score_rows(scores),
        "tests": paired_rows(scores, reference),
    }
    pictures = {
        "boxplots": box_plots(scores),
        "scatter": itn_against_refine(methods, scores),
        "sweep": sweep_plot(methods, scores, sweep) if sweep else None,
    }
    summary = [method_table(rows["methods"]), *score_tables(rows["scores"], scores.unit)]
    tables = [*summary, paired_table(rows["tests"], scores.unit)] if rows["tests"] else summary
    notes = [*scores.notes, LEGEND]

    folder = Path(output_dir)
    for name, content in rows.items():
        write_csv([_without_nan(row) for row in content], folder / f"{name}.csv")
    _write_text([*map(markdown, tables), *notes], folder / "comparison.md")
    _write_text([*map(latex, tables), *map(latex_text, notes)], folder / "comparison.tex")
    for name, figure in pictures.items():
        if figure:
            write_whole(folder / f"{name}.png", partial(figure.savefig, dpi=110))
    sys.stdout.write("\n".join([*map(markdown, summary), *notes, f"The tests and pictures are in {folder}.\n"]))


def _without_nan(row: Row) -> Row:
    return {key: "" if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}


def _write_text(blocks: Sequence[str], path: Path) -> None:
    write_whole(path, lambda part: part.write_text("\n".join(f"{block}\n" for block in blocks), encoding="utf-8"))
