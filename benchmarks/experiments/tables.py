# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Tables and pictures of the experiments, from the scores per case that are kept beside them.

    python benchmarks/experiments/tables.py bundle/docs/experiments/shift --output_dir output/tables

A folder with a comparison.json holds one comparison: this file and the scores of each evaluation as csv.gz. For each of
them this command writes all that `python -m atlas_istn compare` yields, and over all of them overview.md, which has a
line per comparison and method, and the tests of one method against all others.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import json
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from atlas_istn.evaluation.comparison import Scores, common_scores, compare, paired_test, read_methods
from atlas_istn.evaluation.comparison.tables import HIGHER_IS_BETTER, method_rows
from atlas_istn.evaluation.scores import score_title
from atlas_istn.io.files import write_whole
from atlas_istn.io.outputs import write_json

__all__ = ["keep_comparison", "write_tables"]

SHOWN = ("dice", "asd", "hd")


def keep_comparison(
    folder: str | Path,
    methods: Mapping[str, tuple[Path, str]],
    proposed: str = "refine",
    holes: Mapping[str, int] | None = None,
    sweep: str = "",
) -> None:
    """Keep what a comparison needs.

    Args:
        folder: of this comparison.
        methods: name in tables → the folder that ``evaluate`` wrote and its result; an empty result takes them all.
        proposed: the method that the overview tests against the others.
        holes: as for `compare`.
        sweep: as for `compare`; the names are then the values of the setting.
    """
    folder = Path(folder)
    for evaluated in dict.fromkeys(path for path, _ in methods.values()):
        write_whole(folder / f"{_stem(evaluated)}.csv.gz", partial(Path.write_bytes, data=_pack(evaluated)))
    sources = {name: [_stem(evaluated), result] for name, (evaluated, result) in methods.items()}
    write_json(
        {"methods": sources, "proposed": proposed, "holes": dict(holes or {}), "sweep": sweep},
        folder / "comparison.json",
    )


def _stem(evaluated: Path) -> str:
    return evaluated.name.rsplit("-", 1)[0]


def _pack(evaluated: Path) -> bytes:
    """The scores of an evaluation with six digits, and the same bytes whenever they are packed."""
    with (evaluated / "metrics.csv").open(newline="", encoding="utf-8") as file:
        rows = [[_short(field) for field in row] for row in csv.reader(file)]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return gzip.compress(text.getvalue().encode(), mtime=0)


def _short(field: str) -> str:
    """A number with decimals gets six digits; names and counts stay."""
    try:
        return f"{float(field):.6g}" if "." in field else field
    except ValueError:
        return field


def write_tables(folder: str | Path, output_dir: str | Path = "") -> None:
    """Write the tables of every comparison in a folder, and the overview of those that are no sweep.

    Args:
        folder: with comparisons at any depth.
        output_dir: folder for the tables, each in a folder called as in the first; default: beside the scores.
    """
    source, target = Path(folder), Path(output_dir or folder)
    overview = [
        row
        for path in sorted(source.rglob("comparison.json"))
        for row in _write_comparison(path, target / path.parent.relative_to(source))
    ]
    if overview:
        text = "\n".join(["| " + " | ".join(line) + " |" for line in _overview_lines(overview)])
        write_whole(target / "overview.md", lambda part: part.write_text(text + "\n", encoding="utf-8"))


def _write_comparison(path: Path, target: Path) -> list[dict[str, Any]]:
    """Run `compare` as a comparison.json says. Returns its lines of the overview."""
    about = json.loads(path.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as scratch:
        for packed in path.parent.glob("*.csv.gz"):
            (Path(scratch) / packed.stem).write_bytes(gzip.decompress(packed.read_bytes()))
        outputs = [
            f"{name}{':' if result else ''}{result}={scratch}/{source}.csv"
            for name, (source, result) in about["methods"].items()
        ]
        compare(*outputs, output_dir=str(target), sweep=about["sweep"], holes=about["holes"])
        methods = read_methods(outputs)
    if about["sweep"]:
        return []
    scores = common_scores(methods)
    correct = {row["method"]: row["correct_topology"] for row in method_rows(methods, scores, about["holes"])}
    return [
        {
            "comparison": f"{path.parent.name} (n = {len(scores.cases)})",
            "method": method,
            "topology": correct[method],
            "unit": scores.unit,
            **{metric: _against(scores, metric, method, about["proposed"]) for metric in SHOWN},
        }
        for method in scores.methods
    ]


def _against(scores: Scores, metric: str, method: str, proposed: str) -> tuple[float, float]:
    """Mean of a method over cases and labels, and p of the proposed one being better; NaN for that one itself."""
    values = dict(zip(scores.methods, scores.of(metric, scores.labels[-1]), strict=True))
    if method == proposed or proposed not in values:
        return float(values[method].mean()), float("nan")
    test = paired_test(values[proposed], values[method], HIGHER_IS_BETTER[metric])
    return float(values[method].mean()), test.p_value


def _overview_lines(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    titles = [f"{score_title(m, rows[0]['unit'])} {'↑' if HIGHER_IS_BETTER[m] else '↓'}" for m in SHOWN]
    header = ["", "Method", *(text for title in titles for text in (title, "p")), "Correct topology"]
    lines = [header, ["---"] * len(header)]
    for row in rows:
        figures = [text for metric in SHOWN for text in _figures(*row[metric])]
        lines.append([row["comparison"], row["method"], *figures, f"{100 * row['topology']:.0f} %"])
    return lines


def _figures(mean: float, p_value: float) -> tuple[str, str]:
    # p can be 1e-4 at the least, with 10,000 resamples.
    return f"{mean:.3f}", "" if p_value != p_value else "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"


def main() -> None:
    """Write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="with the comparisons of an experiment")
    parser.add_argument("--output_dir", default="", help="folder for the tables; default: beside the scores")
    arguments = parser.parse_args()
    write_tables(arguments.folder, arguments.output_dir)


if __name__ == "__main__":
    main()
