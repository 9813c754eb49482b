# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""The tables of a comparison as Markdown and LaTeX."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from ..scores import SCORES, score_title
from .statistics import CONFIDENCE, RESAMPLES, SIGNIFICANCE
from .tables import HIGHER_IS_BETTER

__all__ = ["LEGEND", "Cell", "Table", "latex", "latex_text", "markdown", "method_table", "paired_table", "score_tables"]

LEGEND = (
    "Mean ± standard deviation over the n cases that all methods have. Bold: best, italic: second best. "
    f"∗, †: the best, the second best is better than this method (one-sided paired bootstrap, {RESAMPLES} resamples, "
    f"p < {SIGNIFICANCE:g}). Fewer than 20 pairs make the bootstrap optimistic."
)

_LATEX_CHARACTERS = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "±": r"$\pm$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "∗": r"$^{\ast}$",
    "†": r"$^{\dagger}$",
    "∞": r"$\infty$",
    "−": "$-$",
}


@dataclass(frozen=True)
class Cell:
    """A text with what it is to stand out by: ``best``, ``second`` or nothing, and the signs ∗ and †."""

    text: str
    mark: str = ""
    signs: str = ""


@dataclass(frozen=True)
class Table:
    """A titled table; its rows are as long as its header."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]


def score_tables(rows: Iterable[dict[str, Any]], unit: str) -> list[Table]:
    """One table per label from `score_rows`, with distances in ``unit``: a row per method, a column per metric."""
    return [_score_table(label, list(group), unit) for label, group in groupby(rows, key=lambda row: row["label"])]


def _score_table(label: str, rows: Sequence[dict[str, Any]], unit: str) -> Table:
    numbers = sorted({row["n"] for row in rows})
    cells = {(row["method"], row["metric"]): row for row in rows}
    return Table(
        title=f"{label} (n = {' to '.join(str(n) for n in dict.fromkeys((numbers[0], numbers[-1])))})",
        header=[
            "Method",
            *(f"{score_title(metric, unit)} {'↑' if up else '↓'}" for metric, up in HIGHER_IS_BETTER.items()),
        ],
        rows=[
            [Cell(method), *(_score_cell(cells[method, metric]) for metric in SCORES)]
            for method in dict.fromkeys(row["method"] for row in rows)
        ],
    )


def _score_cell(row: dict[str, Any]) -> Cell:
    signs = "∗" * row["below_best"] + "†" * row["below_second"]
    return Cell(f"{_number(row['mean'])} ± {_number(row['sd'])}", row["mark"], signs)


def paired_table(rows: Iterable[dict[str, Any]], unit: str) -> Table:
    """One table from `paired_rows`, with distances in ``unit``."""
    header = ["Label", "Metric", "Method", "Reference", "n", "Difference", f"{CONFIDENCE:.0%} interval", "p"]
    return Table(
        title="Paired tests",
        header=[*header, "Wins/ties/losses", "Remark"],
        rows=[
            [
                Cell(row["label"]),
                Cell(score_title(row["metric"], unit)),
                Cell(row["method"]),
                Cell(row["reference"]),
                Cell(str(row["n"])),
                Cell(_number(row["difference"], sign=True)),
                Cell(f"{_number(row['low'], sign=True)} to {_number(row['high'], sign=True)}"),
                Cell("< 0.001" if row["p_value"] < 0.001 else _number(row["p_value"])),
                Cell(f"{row['wins']}/{row['ties']}/{row['losses']}"),
                Cell(row["remark"]),
            ]
            for row in rows
        ],
    )


def method_table(rows: Iterable[dict[str, Any]]) -> Table:
    """One table from `method_rows`."""
    header = ["Method", "Evaluated", "Failed", "Compared", "Missed labels", "False alarms", "Correct topology"]
    return Table(
        title="Methods",
        header=[*header, "IC-DSC ↑", "MICE [voxel] ↓"],
        rows=[
            [
                Cell(row["method"]),
                *(Cell(str(row[name])) for name in ("evaluated", "failed", "cases", "missed", "false_alarms")),
                Cell(f"{100 * row['correct_topology']:.1f} %"),
                *(Cell(_number(row[name])) for name in ("ic_dice", "mice")),
            ]
            for row in rows
        ],
    )


def markdown(table: Table) -> str:
    """A heading and a table in GitHub's Markdown."""
    lines = [
        [text.replace("|", "\\|") for text in table.header],
        ["---"] * len(table.header),
        *([_markdown_cell(cell) for cell in row] for row in table.rows),
    ]
    return "\n".join([f"### {table.title}", "", *(f"| {' | '.join(line)} |" for line in lines), ""])


def _markdown_cell(cell: Cell) -> str:
    around = {"best": "**", "second": "*"}.get(cell.mark, "")
    text = cell.text.replace("|", "\\|")
    return f"{around}{text}{around}{f' {cell.signs}' if cell.signs else ''}"


def latex(table: Table) -> str:
    """A floating table that needs the package booktabs."""
    lines = [[latex_text(text) for text in table.header], *([_latex_cell(cell) for cell in row] for row in table.rows)]
    head, *body = (f"{' & '.join(line)} \\\\" for line in lines)
    return "\n".join(
        [
            r"\begin{table*}",
            rf"\caption{{{latex_text(table.title)}}}",
            rf"\begin{{tabular}}{{{'l' * len(table.header)}}}",
            r"\toprule",
            head,
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table*}",
            "",
        ]
    )


def _latex_cell(cell: Cell) -> str:
    text = latex_text(cell.text)
    command = {"best": "textbf", "second": "textit"}.get(cell.mark)
    return (f"\\{command}{{{text}}}" if command else text) + "".join(latex_text(sign) for sign in cell.signs)


def latex_text(text: str) -> str:
    """A plain text with all that LaTeX would take for commands, and all signs that it lacks, written out."""
    return "".join(_LATEX_CHARACTERS.get(character, character) for character in text)


def _number(value: float, sign: bool = False) -> str:
    if math.isnan(value):
        return "-"
    text = f"{value:{'+' if sign else ''}.3f}".replace("inf", "∞")
    return text.replace("-", "−")
