# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""The report of a run that registered pairs."""

from __future__ import annotations

import base64
import csv
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from .. import __version__
from ..errors import InputError
from ..io.files import write_whole

__all__ = ["find_pair_folders", "write_pair_report"]

TITLES = {"identity": "before", "one_pass": "1-pass", "refine": "refined", "bound": "structures registered directly"}
_NEEDED = {"moving", "fixed", "objective_before", "objective_after", "objective_identity", "warnings"}


@dataclass(frozen=True)
class PairPage:
    """What is shown of a pair.

    Attributes:
        name: of the pair.
        report: its JSON.
        picture: as data URI; empty where there is none.
        curve: points of an SVG line of the objective, 300 wide and 80 high.
        dice: result → mean over structures.
        tre: result → mean over landmarks.
    """

    name: str
    report: dict[str, Any]
    picture: str
    curve: str
    dice: dict[str, float]
    tre: dict[str, float]

    @classmethod
    def of(cls, folder: Path) -> PairPage:
        """Read the folder of a pair."""
        name, report = folder.name, _read_report(folder / f"{folder.name}.json")
        path = folder / f"{name}_figure.png"
        picture = f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}" if path.is_file() else ""
        dice = {result: _mean(rows, "dice") for result, rows in report.get("scores", {}).items()}
        tre = {result: float(errors["mean"]) for result, errors in report.get("tre", {}).items()}
        return cls(name, report, picture, _line(report.get("objective_curve", [])), dice, tre)


def find_pair_folders(output_dir: Path) -> list[Path]:
    """Return the folders of the pairs that a run registered, sorted; none where it was a run of another kind."""
    if not output_dir.is_dir():
        return []
    folders = sorted(path for path in output_dir.iterdir() if path.is_dir())
    return [folder for folder in folders if (folder / f"{folder.name}_moving_to_fixed.h5").is_file()]


def write_pair_report(output_dir: Path, path: Path) -> None:
    """Write one HTML file about a run of pairs: a table, those that fold or score lowest first, and a page for each.

    Args:
        output_dir: what a registration wrote.
        path: file to write.

    Raises:
        InputError: there are no results, or a file cannot be read or written.
    """
    folders = find_pair_folders(output_dir)
    if not folders:
        raise InputError(f"{output_dir}: found no registered pairs. Run registration first, with this output_dir.")
    pages = sorted((PairPage.of(folder) for folder in folders), key=_rank)
    loader = jinja2.PackageLoader("atlas_istn", "report")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    html = environment.get_template("pairs.html.j2").render(
        pages=pages,
        results={name: title for name, title in TITLES.items() if any(name in {**p.dice, **p.tre} for p in pages)},
        failed=_failed(output_dir / "summary.csv"),
        version=__version__,
    )
    write_whole(path, lambda part: part.write_text(html, encoding="utf-8"))
    sys.stdout.write(f"{path}: {len(pages)} pairs, {path.stat().st_size / 2**20:.1f} MB\n")


def _read_report(path: Path) -> dict[str, Any]:
    try:
        report = dict(json.loads(path.read_text(encoding="utf-8")))
        if missing := _NEEDED - report.keys():
            raise KeyError(sorted(missing)[0])
        return report
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: expected the JSON that a registration writes for a pair, found {type(error).__name__} ({error}). "
            "Run registration again."
        ) from error


def _rank(page: PairPage) -> tuple[float, float, str]:
    return -page.report.get("folded_fraction", 0.0), page.dice.get("refine", 0.0), page.name


def _mean(rows: dict[str, dict[str, float | None]], metric: str) -> float:
    values = [value for row in rows.values() if (value := row[metric]) is not None]
    return sum(values) / len(values) if values else float("nan")


def _line(curve: list[float]) -> str:
    if len(curve) < 2:
        return ""
    low, high = min(curve), max(curve)
    heights = [78 - 76 * (value - low) / ((high - low) or 1) for value in curve]
    return " ".join(f"{300 * step / (len(curve) - 1):.1f},{height:.1f}" for step, height in enumerate(heights))


def _failed(path: Path) -> list[str]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as stream:
        return [row["case"] for row in csv.DictReader(stream) if row.get("error")]
