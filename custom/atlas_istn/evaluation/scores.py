# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Scores of several results over many cases: one CSV row per case, result and label, a summary and a table."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..io.files import write_whole

__all__ = ["SCORES", "Evaluation", "length_unit_of", "read_metrics", "score_title"]

SCORES = {
    "dice": "Dice",
    "asd": "ASD",
    "hd": "HD",
    "hd95": "HD95",
    "surface_dice": "Surface Dice",
}
"""Column of ``metrics.csv`` → name of a metric against the reference; for people, see `score_title`."""
_DISTANCES = ("asd", "hd", "hd95")
_UNIT = "length_unit"
_MM = "mm"
_COUNTS = ("components", "holes")
_FLAGS = ("empty_prediction", "empty_reference")
_CONSISTENCY = ("ic_dice", "mice")
_METRICS = (*SCORES, *_COUNTS, *_CONSISTENCY)
_REQUIRED = ("case", "result", "label", *SCORES, *_COUNTS, *_FLAGS)
_COLUMNS = (*_REQUIRED, *_CONSISTENCY, _UNIT)

Row = dict[str, Any]


def score_title(metric: str, unit: str) -> str:
    """Title of a metric of `SCORES`, with the unit where it is a distance."""
    return f"{SCORES[metric]} [{unit}]" if metric in _DISTANCES else SCORES[metric]


def length_unit_of(rows: Iterable[Row]) -> str:
    """Return the unit of the distances in some rows: ``"mm"``, ``"pixels"`` (PNG images without a pixel size), or both.

    Args:
        rows: as in ``metrics.csv``; those without ``length_unit`` are in millimetres.
    """
    return " or ".join(sorted({row.get(_UNIT) or _MM for row in rows})) or _MM


class Evaluation:
    """Collects the rows of :func:`atlas_istn.evaluation.metrics.score_labelmap` for every case and result.

    A result is one way to segment a case, such as ``itn``, ``one_pass`` and ``refine``. Cases come out sorted, results
    and labels in the order added, so the order in which cases are evaluated changes nothing. The last word on a case
    counts: new rows replace its old ones, and a case that failed has no rows.
    """

    def __init__(self) -> None:
        self._rows: dict[tuple[str, str], list[Row]] = {}
        self._results: list[str] = []
        self._failures: dict[str, str] = {}

    @property
    def rows(self) -> list[Row]:
        """All rows, keys as the columns of ``metrics.csv``, sorted by case, then in the order added."""
        keys = sorted(self._rows, key=lambda key: (key[0], self._results.index(key[1])))
        return [row for key in keys for row in self._rows[key]]

    @property
    def failures(self) -> list[tuple[str, str]]:
        """Case and message of each case that could not be evaluated, sorted by case."""
        return sorted(self._failures.items())

    def add(self, case: str, result: str, rows: Sequence[Row]) -> None:
        """Add the rows of one result for one case; replaces what was there.

        Args:
            case: name of the case.
            result: name of the result.
            rows: one per label, as `score_labelmap` returns them; for a result that has a
                transform, with ``ic_dice`` of the label and ``mice`` of the case (in every row of the case), as in
                `Consistency`; ``length_unit`` of the distances is ``"mm"`` unless they say otherwise.
        """
        if result not in self._results:
            self._results.append(result)
        self._failures.pop(case, None)
        unknown = {**dict.fromkeys(_CONSISTENCY, math.nan), _UNIT: _MM}
        self._rows[case, result] = [{**unknown, **row, "case": case, "result": result} for row in rows]

    def add_failure(self, case: str, message: str) -> None:
        """Record that a case could not be evaluated.

        Its rows are dropped, so that all results are compared over the same cases.

        Args:
            case: name of the case.
            message: what went wrong, in one line.
        """
        self._rows = {key: rows for key, rows in self._rows.items() if key[0] != case}
        self._failures[case] = message

    def summary(self) -> dict[str, Any]:
        """Statistics over the cases, for each result and label.

        Returns:
            ``cases``: number of cases with rows. ``length_unit``: of distances. ``results``: result name to ``labels``
            (label name to statistics) and ``mean`` (the statistics of each case's mean over its labels). Statistics
            hold, for each metric, ``n``, ``mean``, ``sd`` (of the sample), ``median``, ``min`` and ``max`` over the
            cases where it is a number, NaN where undefined; the number of cases (in ``mean``: of labels) with
            ``empty_prediction`` and ``empty_reference``; and ``one_component``, the share of cases whose label (in
            ``mean``: whose every label) has exactly one component. ``failures``: ``case`` and ``message`` of each;
            ``failed``: their number.
        """
        rows = self.rows
        by_result = {name: [row for row in rows if row["result"] == name] for name in self._results}
        return {
            "cases": len({row["case"] for row in rows}),
            _UNIT: length_unit_of(rows),
            "results": {name: _summarise_result(selected) for name, selected in by_result.items() if selected},
            "failed": len(self._failures),
            "failures": [{"case": case, "message": message} for case, message in self.failures],
        }

    def write(self, output_dir: str | os.PathLike[str]) -> None:
        """Write ``metrics.csv`` (one row per case, result and label) and ``summary.json`` (:meth:`summary`).

        NaN becomes an empty field in the CSV and null in the JSON.

        Args:
            output_dir: folder, made if it is missing; older files of these names are replaced.

        Raises:
            InputError: the folder cannot be written.
        """
        table = io.StringIO()
        writer = csv.DictWriter(table, _COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: "" if _is_nan(value) else value for key, value in row.items()} for row in self.rows)
        summary = json.dumps(_nan_to_none(self.summary()), indent=2, allow_nan=False)

        write_whole(Path(output_dir) / "metrics.csv", lambda part: part.write_text(table.getvalue(), encoding="utf-8"))
        write_whole(Path(output_dir) / "summary.json", lambda part: part.write_text(summary + "\n", encoding="utf-8"))

    def table(self) -> str:
        """Plain-text table: a row per result and label, mean ± standard deviation over the cases.

        Returns:
            The aligned lines, followed by lines on components, empty labels and, where there are any, failures.
        """
        summary = self.summary()
        cells = [["Result", "Label", "n", *(score_title(metric, summary[_UNIT]) for metric in SCORES)]]
        for result, content in summary["results"].items():
            for label, statistics in [*content["labels"].items(), ("mean", content["mean"])]:
                scores = [f"{_format(statistics[m]['mean'])} ± {_format(statistics[m]['sd'])}" for m in SCORES]
                cells.append([result, label, str(statistics["dice"]["n"]), *scores])
        means = {result: content["mean"] for result, content in summary["results"].items()}
        notes = [
            "Mean ± standard deviation over n cases. A label empty on one side is a miss; on both, it does not count.",
            "Share of cases with one component per label: "
            + _per_result(means, lambda mean: _format(mean["one_component"])),
            "Empty predictions: " + _per_result(means, lambda mean: mean["empty_prediction"]),
            "Empty references: " + _per_result(means, lambda mean: mean["empty_reference"]),
        ]
        registered = {result: mean for result, mean in means.items() if mean["mice"]["n"]}
        if registered:
            notes += ["Inverse consistency, Dice and error [voxel]: " + _per_result(registered, _consistency)]
        if self._failures:
            notes += [f"Failed cases, not in the table: {len(self._failures)}"]
            notes += [f"  {case}: {message}" for case, message in self.failures]
        return "\n".join([*_align(cells), "", *notes])


def read_metrics(path: str | os.PathLike[str]) -> list[Row]:
    """Read the rows of a ``metrics.csv`` with their types: texts, floats, whole counts, flags; NaN for an empty field.

    The columns ``ic_dice`` and ``mice`` may be missing: what is no registration has none; and so may ``length_unit``,
    where all is in millimetres.

    Args:
        path: a file that :meth:`Evaluation.write` wrote.

    Returns:
        One dictionary per row, keyed by column, in file order.

    Raises:
        InputError: the file cannot be read, lacks a column or holds a value of the wrong type.
    """
    try:
        with Path(path).open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, restval="(missing)")  # a cut line is an error, not NaN
            missing = [name for name in _REQUIRED if name not in (reader.fieldnames or ())]
            if missing:
                columns = ", ".join(missing)
                raise InputError(f"{path}: expected a metrics.csv, found no column {columns}: evaluate again.")
            return [_parse_row(row, f"{path}, line {reader.line_num}") for row in reader]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: expected a readable metrics.csv, found: {error}. Evaluate first.") from error


def _parse_row(row: Row, place: str) -> Row:
    parsers: dict[str, Callable[[str], Any]] = {
        **dict.fromkeys(("case", "result", "label"), str),
        **dict.fromkeys(SCORES, _parse_float),
        **dict.fromkeys(_COUNTS, lambda text: int(text) if text else math.nan),
        **dict.fromkeys(_FLAGS, _parse_flag),
        **dict.fromkeys(_CONSISTENCY, _parse_float),
        _UNIT: lambda text: text or _MM,
    }
    parsed = {}
    for name, parse in parsers.items():
        try:
            parsed[name] = parse(row.get(name, ""))
        except (KeyError, ValueError) as error:
            raise InputError(f"{place}: column {name} cannot hold {row[name]!r}: evaluate again.") from error
    return parsed


def _parse_float(text: str) -> float:
    return float(text) if text else math.nan


def _parse_flag(text: str) -> bool:
    return {"True": True, "False": False}[text]


def _summarise_result(rows: Iterable[Row]) -> dict[str, Any]:
    """Statistics of one result: each label, and the mean over labels. The rows of a case must be neighbours."""
    rows = list(rows)
    labels = dict.fromkeys(row["label"] for row in rows)
    return {
        "labels": {label: _summarise_cases([[row] for row in rows if row["label"] == label]) for label in labels},
        "mean": _summarise_cases([list(group) for _, group in itertools.groupby(rows, key=lambda row: row["case"])]),
    }


def _summarise_cases(cases: Sequence[Sequence[Row]]) -> dict[str, Any]:
    """Statistics over cases, each given by its rows, of which the mean is taken first."""
    return {
        **{metric: _describe([_mean(row[metric] for row in rows) for rows in cases]) for metric in _METRICS},
        **{flag: sum(row[flag] for rows in cases for row in rows) for flag in _FLAGS},
        "one_component": _mean(_has_one_component(rows) for rows in cases),
    }


def _has_one_component(rows: Sequence[Row]) -> float:
    """1 if each label of a case has one component, else 0; NaN if the case has none of the labels."""
    counts = [row["components"] for row in rows if not _is_nan(row["components"])]
    return float(all(count == 1 for count in counts)) if counts else math.nan


def _describe(values: Iterable[float]) -> dict[str, float]:
    known = np.array([value for value in values if not _is_nan(value)], dtype=float)
    if not known.size:
        return {"n": 0, **dict.fromkeys(("mean", "sd", "median", "min", "max"), math.nan)}
    return {
        "n": known.size,
        "mean": float(known.mean()),
        "sd": float(known.std(ddof=1)) if known.size > 1 else math.nan,
        "median": float(np.median(known)),
        "min": float(known.min()),
        "max": float(known.max()),
    }


def _mean(values: Iterable[float]) -> float:
    return _describe(values)["mean"]


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _nan_to_none(tree: Any) -> Any:
    """Replace each NaN of a JSON tree, for which JSON has no number, by None."""
    if isinstance(tree, dict):
        return {key: _nan_to_none(value) for key, value in tree.items()}
    return None if _is_nan(tree) else tree


def _format(value: float, digits: int = 3) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _align(cells: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells)
    header, *body = lines
    return [header, "  ".join("-" * width for width in widths), *body]


def _consistency(mean: Row) -> str:
    return f"{_format(mean['ic_dice']['mean'])}, {_format(mean['mice']['mean'])}"


def _per_result(means: Mapping[str, Row], figure: Callable[[Row], object]) -> str:
    return ", ".join(f"{result} {figure(mean)}" for result, mean in means.items()) or "-"
