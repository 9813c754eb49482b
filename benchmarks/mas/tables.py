# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Tables of what has been segmented, and the claims of the paper."""

from __future__ import annotations

import csv
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

from atlas_istn.evaluation.comparison.statistics import paired_test
from atlas_istn.evaluation.scores import read_metrics
from atlas_istn.io.outputs import write_csv

from .rows import LABELS, Row, Weights

__all__ = ["by_case", "claims", "mean_dice", "write_claims", "write_rows"]

METRICS = ("dice", "asd", "hd95", "surface_dice")
Claim = tuple[str, str, str]
"""What is claimed, and the rows of which the first should be above the second."""


def mean_dice(path: Path) -> float:
    """Of a table of scores."""
    return float(np.mean(list(by_case(path, "dice").values())))


def by_case(path: Path, metric: str, label: str = "") -> dict[str, float]:
    """A score of each case, the mean of both labels unless one is named; of the last result where there are several."""
    rows = read_metrics(path)
    result = list(dict.fromkeys(row["result"] for row in rows))[-1]
    found: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        if row["result"] == result and row["label"] in ((label,) if label else LABELS.values()):
            found[row["case"]].append(float(row[metric]))
    return {case: float(np.mean(values)) for case, values in found.items()}


def claims(chosen: dict[str, Weights], best: Row) -> list[Claim]:
    """Claims a to e, row by row."""

    def name(registration: str, refinement: str = "", fusion: str = "vote_net") -> str:
        return Row(registration, refinement, fusion, chosen.get(refinement, ())).name

    order = ("affine", "di", "dis")
    steps = list(zip(order[1:], order, strict=False))
    found = [("a: votes rise with the registration", name(b, "", "vote"), name(a, "", "vote")) for b, a in steps]
    found += [("b: VoteNet+ above the vote", name(one), name(one, "", "vote")) for one in order]
    found += [("c: (I) above none", name(one, "i"), name(one)) for one in order]
    found += [("c: (IS) above (I)", name(one, "is"), name(one, "i")) for one in order]
    found += [("d: a good start above a poor one refined", name(good), name("affine", "is")) for good in order[1:]]
    return [*found, ("e: the best row above the U-Net", best.name, "unet")]


def write_rows(folder: Path) -> None:
    """Print each row of the test list, and how far it is above the U-Net; missing ones are left out.

    Also written to ``rows.csv``, and the scores of each case to ``cases.csv``.
    """
    lines, cases = [], []
    for path in sorted((folder / "test").glob("*/metrics.csv")):
        for label in LABELS.values():
            scores = {metric: by_case(path, metric, label) for metric in METRICS}
            cases += [
                {"row": path.parent.name, "case": case, "label": label}
                | {metric: f"{found[case]:.4f}" for metric, found in scores.items()}
                for case in scores[METRICS[0]]
            ]
        line = {"row": path.parent.name}
        for metric in METRICS:
            for label in LABELS.values():
                line[f"{metric} {label}"] = f"{np.mean(list(by_case(path, metric, label).values())):.3f}"
        whole = [count == 1 for label in LABELS.values() for count in by_case(path, "components", label).values()]
        line["one component"] = f"{np.mean(whole):.2f}"
        checked = folder / "tuning" / path.parent.name / "metrics.csv"
        line["tuning"] = f"{mean_dice(checked):.4f}" if checked.exists() else ""
        line["above the U-Net"] = _difference(folder, path.parent.name, "unet")
        lines.append(line)
    write_csv(cases, folder / "cases.csv")
    _write(lines, folder / "rows.csv")


def write_claims(folder: Path, found: list[Claim]) -> None:
    """Print by how much a row is above another one, with the interval of the paired bootstrap; and ``claims.csv``."""
    lines = [{"claim": text, "row": a, "other": b, "difference": _difference(folder, a, b)} for text, a, b in found]
    _write(lines, folder / "claims.csv")


def _difference(folder: Path, row: str, other: str) -> str:
    paths = [folder / "test" / name / "metrics.csv" for name in (row, other)]
    if row == other or not all(path.exists() for path in paths):
        return ""
    first, second = (by_case(path, "dice") for path in paths)
    if first.keys() != second.keys():
        return "other cases"
    test = paired_test(np.array([first[case] for case in second]), np.array(list(second.values())), True)
    interval = f" ({test.low:+.4f} to {test.high:+.4f})" if test.low == test.low else ""  # few cases have none
    return f"{test.difference:+.4f}{interval}"


def _write(lines: list[dict[str, str]], path: Path) -> None:
    if lines:
        write_csv(lines, path)
        writer = csv.DictWriter(sys.stdout, list(lines[0]), delimiter="\t")
        writer.writeheader()
        writer.writerows(lines)
