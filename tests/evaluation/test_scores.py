# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
from __future__ import annotations

import csv
import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atlas_istn.errors import InputError
from atlas_istn.evaluation.metrics import score_labelmap
from atlas_istn.evaluation.scores import Evaluation, read_metrics

NUMBERS = ["dice", "asd", "hd", "hd95", "surface_dice", "components", "holes"]
REQUIRED = ["case", "result", "label", *NUMBERS, "empty_prediction", "empty_reference"]
COLUMNS = [*REQUIRED, "ic_dice", "mice", "length_unit"]
RESULTS = ("itn", "one_pass", "refine")


def _row(label: str, dice: float = 0.5, **changes: Any) -> dict[str, Any]:
    row = {"label": label, "dice": dice, "asd": 1.0, "hd": 4.0, "hd95": 2.0, "surface_dice": 0.75}
    return row | {"components": 1, "holes": 0, "empty_prediction": False, "empty_reference": False} | changes


def _absent(label: str) -> dict[str, Any]:
    numbers = dict.fromkeys(NUMBERS, math.nan)
    return _row(label) | numbers | {"empty_prediction": True, "empty_reference": True}


def _scored_cases() -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Rows of four cases: ordinary ones, a missed label in case 2, a label that case 3 does not have."""
    rng = np.random.default_rng(0)
    scored = {}
    for case in range(4):
        reference = np.zeros((24, 24), int)
        reference[4:12, 4:18], reference[14:20, 4:18] = 1, 2
        if case == 3:
            reference[reference == 2] = 0
        for result in RESULTS:
            prediction = np.roll(reference, rng.integers(0, 4, size=2), axis=(0, 1))
            if case == 2 and result == "itn":
                prediction[prediction == 2] = 0
            scored[f"case, {case}", result] = score_labelmap(prediction, reference, {1: "a", 2: "b"}, (1.1, 0.7))
    return scored


def _evaluation() -> Evaluation:
    evaluation = Evaluation()
    for (case, result), rows in _scored_cases().items():
        evaluation.add(case, result, rows)
    return evaluation


def test_csv_has_the_documented_columns_and_empty_fields_for_nan(tmp_path: Path) -> None:
    evaluation = Evaluation()
    evaluation.add("c1", "refine", [_row("a"), _absent("b")])
    evaluation.write(tmp_path / "new" / "folder")
    header, first, second = csv.reader((tmp_path / "new" / "folder" / "metrics.csv").open(newline=""))
    assert header == COLUMNS
    assert first == ["c1", "refine", "a", "0.5", "1.0", "4.0", "2.0", "0.75", "1", "0", "False", "False", "", "", "mm"]
    assert second == ["c1", "refine", "b", *[""] * 7, "True", "True", "", "", "mm"]


def test_csv_round_trip_is_exact_and_typed(tmp_path: Path) -> None:
    evaluation = _evaluation()
    evaluation.write(tmp_path)
    for read, written in zip(read_metrics(tmp_path / "metrics.csv"), evaluation.rows, strict=True):
        for name in COLUMNS:
            assert repr(read[name]) == repr(written[name])  # repr, since NaN differs from itself


def test_order_of_cases_changes_nothing(tmp_path: Path) -> None:
    scored = _scored_cases()
    texts = []
    for seed in range(3):
        cases = sorted({case for case, _ in scored})
        random.Random(seed).shuffle(cases)
        evaluation = Evaluation()
        for case in cases:
            for result in RESULTS:
                evaluation.add(case, result, scored[case, result])
        evaluation.write(tmp_path)
        files = [(tmp_path / name).read_text() for name in ("metrics.csv", "summary.json")]
        texts.append((*files, evaluation.table()))
    assert texts[0] == texts[1] == texts[2]


def test_cases_are_sorted_and_results_keep_their_order() -> None:
    evaluation = Evaluation()
    for case in ("c2", "c10", "c1"):
        for result in ("zeta", "alpha"):
            evaluation.add(case, result, [_row("b"), _row("a")])
    keys = [(row["case"], row["result"], row["label"]) for row in evaluation.rows]
    assert keys[:4] == [("c1", "zeta", "b"), ("c1", "zeta", "a"), ("c1", "alpha", "b"), ("c1", "alpha", "a")]
    assert [key[0] for key in keys[::4]] == ["c1", "c10", "c2"]


def test_statistics_of_labels_and_of_their_mean() -> None:
    evaluation = Evaluation()
    evaluation.add("c1", "refine", [_row("a", 0.8), _row("b", 0.6)])
    evaluation.add("c2", "refine", [_row("a", 0.9), _absent("b")])
    evaluation.add("c3", "refine", [_row("a", 0.4), _row("b", 0.0, components=0, empty_prediction=True)])
    result = evaluation.summary()["results"]["refine"]

    a, b, mean = result["labels"]["a"], result["labels"]["b"], result["mean"]
    expected = {"n": 3, "mean": 0.7, "sd": np.std([0.8, 0.9, 0.4], ddof=1), "median": 0.8, "min": 0.4, "max": 0.9}
    assert a["dice"] == pytest.approx(expected)
    assert (b["dice"]["n"], b["dice"]["mean"]) == (2, pytest.approx(0.3))
    # A case's mean is taken over the labels that it has: 0.7, 0.9, 0.2.
    assert (mean["dice"]["n"], mean["dice"]["mean"]) == (3, pytest.approx(0.6))
    assert (b["empty_prediction"], b["empty_reference"]) == (2, 1)
    assert (mean["empty_prediction"], mean["empty_reference"]) == (2, 1)


def test_share_of_cases_with_one_component_per_label() -> None:
    evaluation = Evaluation()
    evaluation.add("c1", "itn", [_row("a"), _row("b")])
    evaluation.add("c2", "itn", [_row("a"), _absent("b")])  # the label that is nowhere does not count
    evaluation.add("c3", "itn", [_row("a", components=2), _row("b", components=0)])  # one on average is not one each
    evaluation.add("c4", "itn", [_row("a"), _row("b", components=3)])
    result = evaluation.summary()["results"]["itn"]
    assert result["labels"]["a"]["one_component"] == 3 / 4
    assert result["labels"]["b"]["one_component"] == 1 / 3
    assert result["mean"]["one_component"] == 2 / 4


def test_summary_is_valid_json_with_null_for_undefined(tmp_path: Path) -> None:
    evaluation = Evaluation()
    evaluation.add("c1", "refine", [_row("a"), _absent("b")])
    evaluation.add_failure("c9", "image and label grids differ")
    evaluation.write(tmp_path)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    summary = json.loads((tmp_path / "summary.json").read_text(), parse_constant=refuse)
    labels = summary["results"]["refine"]["labels"]
    assert labels["a"]["dice"] == {"n": 1, "mean": 0.5, "sd": None, "median": 0.5, "min": 0.5, "max": 0.5}
    assert labels["b"]["dice"]["n"] == 0
    assert labels["b"]["dice"]["mean"] is None
    assert (summary["cases"], summary["failed"]) == (1, 1)
    assert summary["failures"] == [{"case": "c9", "message": "image and label grids differ"}]


def test_evaluating_a_case_again_replaces_its_rows() -> None:
    evaluation = Evaluation()
    evaluation.add("c1", "itn", [_row("a", 0.1), _row("b", 0.1)])
    evaluation.add("c1", "itn", [_row("a", 0.9)])
    assert [(row["label"], row["dice"]) for row in evaluation.rows] == [("a", 0.9)]


def test_inverse_consistency_of_the_results_that_have_it(tmp_path: Path) -> None:
    evaluation = Evaluation()
    for case, error in (("c1", 0.02), ("c2", 0.04)):
        evaluation.add(case, "itn", [_row("a"), _row("b")])
        evaluation.add(case, "refine", [_row("a", ic_dice=0.99, mice=error), _row("b", ic_dice=1 - error, mice=error)])
    results = evaluation.summary()["results"]
    assert results["refine"]["mean"]["mice"]["mean"] == pytest.approx(0.03)
    assert results["refine"]["labels"]["b"]["ic_dice"]["mean"] == pytest.approx(0.97)
    assert results["refine"]["mean"]["ic_dice"]["mean"] == pytest.approx(0.98)
    assert results["itn"]["mean"]["mice"]["n"] == 0
    assert "Inverse consistency, Dice and error [voxel]: refine 0.980, 0.030" in evaluation.table()
    evaluation.write(tmp_path)
    read = [row for row in read_metrics(tmp_path / "metrics.csv") if row["result"] == "refine"]
    assert [row["mice"] for row in read] == [row["mice"] for row in evaluation.rows if row["result"] == "refine"]


def test_tables_without_inverse_consistency_are_read(tmp_path: Path) -> None:
    """What another tool scored is compared too."""
    path = tmp_path / "metrics.csv"
    path.write_text(",".join(REQUIRED) + "\nc1,nnunet,a,0.9,1,1,1,1,1,0,False,False\n")
    (row,) = read_metrics(path)
    assert row["dice"] == 0.9
    assert math.isnan(row["mice"])


def test_a_case_either_counts_or_failed() -> None:
    evaluation = Evaluation()
    evaluation.add("c1", "itn", [_row("a")])
    evaluation.add("c2", "itn", [_row("a")])
    evaluation.add_failure("c1", "no refined labelmap")
    assert [row["case"] for row in evaluation.rows] == ["c2"]
    assert evaluation.failures == [("c1", "no refined labelmap")]
    evaluation.add("c1", "itn", [_row("a")])
    assert [row["case"] for row in evaluation.rows] == ["c1", "c2"]
    assert evaluation.failures == []


def test_table_shows_each_result_and_label_aligned() -> None:
    evaluation = Evaluation()
    for case, dice in (("c1", 0.8), ("c2", 0.9)):
        evaluation.add(case, "itn", [_row("left ventricle", dice), _row("b", dice - 0.2, hd=1234.5)])
        evaluation.add(case, "refine", [_row("left ventricle", dice), _absent("b")])
    evaluation.add_failure("c3", "the file is truncated")
    lines = evaluation.table().splitlines()
    header, _, *body = lines
    assert header.split("  ")[0] == "Result"
    rows = {tuple(line[: header.index("n ")].split(maxsplit=1)): line for line in body[:6]}
    assert [(result, label.strip()) for result, label in rows] == [
        (result, label) for result in ("itn", "refine") for label in ("left ventricle", "b", "mean")
    ]
    dice = header.index("Dice")
    assert [line[dice:].split("  ")[0] for line in body[:6]] == [
        "0.850 ± 0.071",
        "0.650 ± 0.071",
        "0.750 ± 0.071",
        "0.850 ± 0.071",
        "- ± -",
        "0.850 ± 0.071",
    ]
    assert body[1][header.index("HD [mm]") :].startswith("1234.500 ± 0.000")
    text = "\n".join(lines)
    assert "one component per label: itn 1.000, refine 1.000" in text
    assert "Empty predictions: itn 0, refine 2" in text
    assert "Empty references: itn 0, refine 2" in text
    assert lines[-2:] == ["Failed cases, not in the table: 1", "  c3: the file is truncated"]


def test_an_evaluation_without_cases_still_writes_and_prints(tmp_path: Path) -> None:
    evaluation = Evaluation()
    evaluation.add_failure("c1", "no label")
    evaluation.write(tmp_path)
    assert read_metrics(tmp_path / "metrics.csv") == []
    assert "c1: no label" in evaluation.table()


def test_no_temporary_file_stays_behind(tmp_path: Path) -> None:
    _evaluation().write(tmp_path)
    _evaluation().write(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.csv", "summary.json"]


def test_unwritable_output_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(InputError, match=r"cannot be written .* Expected a place that may be written to"):
        _evaluation().write(tmp_path / "file")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "expected a readable metrics.csv"),
        ("", "found no column case, result"),
        (",".join(REQUIRED[:-1]) + "\n", "found no column empty_reference"),
        (",".join(COLUMNS) + "\nc1,itn,a,high,1,1,1,1,1,0,False,False\n", "line 2: column dice cannot hold 'high'"),
        (",".join(COLUMNS) + "\nc1,itn,a,1,1,1,1,1,1,0,False,perhaps\n", "column empty_reference cannot hold"),
        (",".join(COLUMNS) + "\nc1,itn,a,0.5\n", "column asd cannot hold"),
    ],
)
def test_bad_csv_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "metrics.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=message):
        read_metrics(path)
