# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""The tables, in Markdown, of what the stages have left; what is missing yet is left out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from atlas_istn.evaluation.comparison.statistics import CONFIDENCE
from atlas_istn.io.files import write_whole
from atlas_istn.io.outputs import write_csv

from .figures import STRUCTURES, draw_fig_4, draw_fig_5, spearman_by_target
from .lists import DIRECTIONS, LABELS, Direction
from .scores import (
    MEAN,
    RIVAL_RUNS,
    TITLES,
    Method,
    difference,
    fused_methods,
    mean_text,
    read_rows,
    single_methods,
    times,
)
from .stages import NETWORKS, PEERS

__all__ = ["write_all"]

MYOCARDIUM = LABELS[1]
SINGLE_TESTS = [("consistent", other) for other in (*PEERS, "one_way", "two_way", "velocity", "no_itn")]
FUSIONS = ("vote", "non_local", "joint", "similarity_5")
SINGLES = ("mean_single", "best_single")
RIVALS = ("unet", "itn", "refine", "unet_lge", "unet_lge_all", "learned_atlas")
FUSED_TESTS = [("similarity", other) for other in (*FUSIONS, *SINGLES, *RIVALS)]
FUSED_TESTS += [("vote", other) for other in (*SINGLES, "velocity_vote")]
REGULARITY = ("inverse_voxels", "inverse_mm", "displacement_voxels", "displacement_mm", "folded_heart", "folded")
ESTIMATES = {"estimated": "similarity network", "ncc": "NCC", "mutual_information": "mutual information"}

Line = Sequence[str]


def write_all(output_dir: Path) -> str:
    """Write ``results/tables.md``, the scores of every case beside it, and the figures. Returns the tables."""
    target = output_dir / "results"
    singles = {direction: single_methods(output_dir, direction) for direction in DIRECTIONS}
    fused = {direction: fused_methods(output_dir, direction) for direction in DIRECTIONS}
    write_csv(_cases(singles.values()), target / "singles.csv")
    write_csv(_cases(fused.values()), target / "fused.csv")
    interval = f"In brackets {CONFIDENCE:.0%} intervals of the mean by bootstrap over the test patients."
    parts = [
        f"{interval} ± is the standard deviation over pairs or cases.",
        _section("Table 1: single registrations, Dice over pairs", _single_table(singles)),
        _section("Single registrations on the same pairs: differences of the Dice", _tests(singles, SINGLE_TESTS)),
        _section("There and back, at the heart of the target", _regularity_table(output_dir)),
        _section("Table 2: fused, test patients", _fused_table(fused)),
        _section("Fused: differences of the Dice", _tests(fused, FUSED_TESTS)),
        _section("What not to know the heart's place costs: true crop less the usual one", _crop_table(singles, fused)),
        _section("Fig. 5: Spearman's correlation with the Dice of patches", _patch_table(output_dir)),
        _section("Cost, processor seconds", _cost_table(output_dir)),
    ]
    text = "\n\n".join(part for part in parts if part) + "\n"
    write_whole(target / "tables.md", lambda part: part.write_text(text, encoding="utf-8"))
    draw_fig_4(output_dir, target / "fig_4.png")
    draw_fig_5(output_dir, target / "fig_5.png")
    return text


def _section(title: str, lines: Sequence[Line]) -> str:
    """A titled table; nothing without a row. The first line is the header."""
    if len(lines) < 2:
        return ""
    rows = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    return f"### {title}\n\n" + "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _cases(methods: Iterable[Mapping[str, Method]]) -> list[dict[str, object]]:
    return [
        {"direction": method.direction.name, "method": name, "case": row["case"], "label": row["label"]}
        | {metric: f"{row[metric]:.4f}" for metric in ("dice", "hd")}
        for of_direction in methods
        for name, method in of_direction.items()
        for row in method.rows
    ]


def _single_table(singles: Mapping[Direction, Mapping[str, Method]]) -> list[Line]:
    lines: list[Line] = [["", "", "pairs", *LABELS.values(), MEAN]]
    for direction, methods in singles.items():
        for method in methods.values():
            cells = []
            for label in (*LABELS.values(), MEAN):
                values = method.values(label)
                cells.append(f"{mean_text(values)} ± {np.std(list(values.values())):.3f}")
            lines.append([direction.title, method.title, str(len(method.values(MEAN))), *cells])
    return lines


def _tests(methods: Mapping[Direction, Mapping[str, Method]], tests: Sequence[tuple[str, str]]) -> list[Line]:
    lines: list[Line] = [["", "", MYOCARDIUM, MEAN]]
    for direction, found in methods.items():
        for first, second in tests:
            if first in found and second in found:
                common = found[first].values(MEAN).keys() & found[second].values(MEAN).keys()
                pair = [found[name].only(common) for name in (first, second)]
                cells = [difference(*(method.values(label) for method in pair)) for label in (MYOCARDIUM, MEAN)]
                lines.append([direction.title, f"{pair[0].title} less {pair[1].title}", *cells])
    return lines


def _regularity_table(output_dir: Path) -> list[Line]:
    figures = [f"{what} [{unit}]" for what in ("error", "displacement") for unit in ("voxel", "mm")]
    lines: list[Line] = [["", "", *figures, "folds, heart [%]", "folds, grid [%]"]]
    for direction in DIRECTIONS:
        for name in NETWORKS:
            rows = read_rows(sorted(output_dir.glob(f"rotation_*/singles/{direction.name}_{name}/figures.csv")))
            if rows and not name.startswith("one_way"):  # of which the way back has not been learned
                values = [{row["case"]: float(row[figure]) for row in rows} for figure in REGULARITY]
                percent = [{case: 100 * value for case, value in found.items()} for found in values[-2:]]
                cells = [mean_text(found, 2) for found in (*values[:-2], *percent)]
                lines.append([direction.title, TITLES[name], *cells])
    return lines


def _fused_table(fused: Mapping[Direction, Mapping[str, Method]]) -> list[Line]:
    lines: list[Line] = [["", "", "n", *LABELS.values(), MEAN, "±", "worst", "HD [mm]", "worst HD [mm]"]]
    for direction, methods in fused.items():
        for method in methods.values():
            mean, hd = (list(method.values(MEAN, metric).values()) for metric in ("dice", "hd"))
            spread = [f"{np.std(mean):.3f}", f"{min(mean):.3f}", f"{np.mean(hd):.1f}", f"{max(hd):.1f}"]
            cells = [mean_text(method.values(label)) for label in (*LABELS.values(), MEAN)]
            lines.append([direction.title, method.title, str(len(mean)), *cells, *spread])
    return lines


def _crop_table(*methods: Mapping[Direction, Mapping[str, Method]]) -> list[Line]:
    lines: list[Line] = [["", "", MYOCARDIUM, MEAN]]
    pairs = (("true_crop", "consistent"), ("vote_true_crop", "vote"))
    for found, pair in zip(methods, pairs, strict=True):
        lines += _tests(found, [pair])[1:]
    return lines


def _patch_table(output_dir: Path) -> list[Line]:
    lines: list[Line] = [["", "", *ESTIMATES.values()]]
    for direction in DIRECTIONS:
        rows = read_rows(sorted(output_dir.glob(f"rotation_*/patches/{direction.name}.csv")))
        for structure in STRUCTURES if rows else ():
            cells = [mean_text(spearman_by_target(rows, structure, estimate), 2) for estimate in ESTIMATES]
            lines.append([direction.title, structure, *cells])
    return lines


def _cost_table(output_dir: Path) -> list[Line]:
    lines: list[Line] = [["", "mean", "most"]]
    commands = [
        *NETWORKS,
        *(f"similarity_{d.name}" for d in DIRECTIONS),
        *dict.fromkeys(run for run, _ in RIVAL_RUNS.values()),
    ]
    spent = {f"training, {name}": times(output_dir, f"train_{name}") for name in commands}
    costs = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(output_dir.glob("rotation_*/cost.json"))]
    for atlases in sorted({cost["atlases"] for cost in costs}):
        mine = [cost["seconds"] / cost["targets"] for cost in costs if cost["atlases"] == atlases]
        spent[f"a target by {atlases} atlases and similarity, reading and writing included"] = mine
    rows = read_rows(sorted(output_dir.glob("rotation_*/singles/*_consistent/figures.csv")))
    spent["a pair by the consistent network (of the clock)"] = [float(row["seconds"]) for row in rows]
    for method in PEERS:
        paths = output_dir.glob(f"rotation_*/peers/*/{method}/*.json")
        spent[f"a pair by {method}"] = [json.loads(path.read_text(encoding="utf-8"))["seconds"] for path in paths]
    return lines + [[name, f"{np.mean(found):.1f}", f"{max(found):.1f}"] for name, found in spent.items() if found]
