# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""The command `compare`: what it reads, its tables and pictures, on results whose order is known."""

from __future__ import annotations

import csv
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from atlas_istn.errors import InputError
from atlas_istn.evaluation.comparison import common_scores, compare, read_methods
from atlas_istn.evaluation.comparison.plots import BETTER, EQUAL, WORSE, box_plots, itn_against_refine, sweep_plot
from atlas_istn.evaluation.comparison.rendering import Cell, Table, latex, markdown
from atlas_istn.evaluation.comparison.tables import method_rows, paired_rows, score_rows
from atlas_istn.evaluation.scores import SCORES, Evaluation
from atlas_istn.io.outputs import write_csv

Row = dict[str, Any]


def row(label: str, quality: float, **changes: Any) -> Row:
    """Scores of a label; the higher the quality, the better every one of them."""
    scores = {"dice": quality, "asd": 2 - quality, "hd": 5 - quality, "hd95": 4 - quality, "surface_dice": quality}
    return {"label": label, **scores, "components": 1, "holes": 0, **flags(), **changes}


def flags(prediction: bool = False, reference: bool = False) -> Row:
    return {"empty_prediction": prediction, "empty_reference": reference}


def nowhere(label: str) -> Row:
    return row(label, 0.0) | dict.fromkeys([*SCORES, "components", "holes"], math.nan) | flags(True, True)


def evaluated(folder: Path, qualities: dict[str, float], cases: int = 10, labels: tuple[str, ...] = ("a",)) -> Path:
    """Writes an evaluation in which a result has this mean quality, and every case an offset that all results share."""
    evaluation = Evaluation()
    offsets = np.random.default_rng(0).uniform(-0.05, 0.05, cases)
    for result, quality in qualities.items():
        for index, offset in enumerate(offsets):
            evaluation.add(f"case_{index}", result, [row(label, quality + offset) for label in labels])
    evaluation.write(folder)
    return folder


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def scores_of(*folders: Path | str):
    return common_scores(read_methods([str(folder) for folder in folders]))


# Reading


def test_distances_have_the_unit_that_they_were_measured_in(tmp_path: Path) -> None:
    for name, unit in (("a", "pixels"), ("b", "pixels"), ("c", "mm")):
        evaluation = Evaluation()
        evaluation.add("case", "itn", [{**row("left", 0.8), "length_unit": unit}])
        evaluation.write(tmp_path / name)
    compare(str(tmp_path / "a"), str(tmp_path / "b"), output_dir=str(tmp_path / "out"))
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert "HD [pixels] ↓" in text
    assert "[mm]" not in text
    with pytest.raises(InputError, match="different units \\(b itn in pixels, c itn in mm\\)"):
        scores_of(tmp_path / "b", tmp_path / "c")


def test_every_result_of_a_folder_is_a_method(tmp_path: Path) -> None:
    evaluated(tmp_path / "full", {"itn": 0.8, "refine": 0.9})
    evaluated(tmp_path / "unet", {"itn": 0.7})
    (tmp_path / "copied.csv").write_bytes((tmp_path / "unet" / "metrics.csv").read_bytes())
    outputs = [tmp_path / "full", f"U=net={tmp_path / 'x'}", f"U-net:itn={tmp_path / 'unet'}", tmp_path / "copied.csv"]
    (tmp_path / "x").mkdir()
    names = [method.name for method in read_methods([str(outputs[0]), outputs[2], str(outputs[3])])]
    assert names == ["full itn", "full refine", "U-net", "copied itn"]
    (file,) = read_methods([f"b={tmp_path / 'unet' / 'metrics.csv'}"])
    assert (file.name, file.source, file.result, len(file.rows)) == ("b itn", "b", "itn", 10)


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ((), "expected one or more folders"),
        (("nothing",), "expected a readable metrics.csv"),
        (("x:refine=one",), "expected refine, found itn"),
        (("one", "one"), "two results are called 'one itn'"),
        (("one", "other"), "no case in common"),
        (("one", "labels"), "no label in common"),
        (("one", "empty"), "expected scores, found no rows"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outputs: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    evaluated(Path("one"), {"itn": 0.7}, cases=2)
    evaluated(Path("labels"), {"itn": 0.7}, cases=2, labels=("b",))
    other = Evaluation()
    other.add("else", "itn", [row("a", 0.5)])
    other.write("other")
    Evaluation().write("empty")
    with pytest.raises(InputError, match=message):
        compare(*outputs, output_dir="out")
    assert not Path("out").exists()


def test_only_common_cases_are_compared_and_the_rest_is_counted(tmp_path: Path) -> None:
    evaluated(tmp_path / "all", {"itn": 0.8}, cases=10)
    evaluated(tmp_path / "some", {"itn": 0.9}, cases=7, labels=("a", "b"))
    summary = json.loads((tmp_path / "some" / "summary.json").read_text()) | {"failed": 3}
    (tmp_path / "some" / "summary.json").write_text(json.dumps(summary))
    methods = read_methods([str(tmp_path / "all"), str(tmp_path / "some")])
    scores = common_scores(methods)
    assert scores.cases == [f"case_{index}" for index in range(7)]
    assert scores.labels == ["a"]
    assert scores.notes == [
        "3 of 10 cases are left out, since not every method has them (all itn 10, some itn 7).",
        "1 of 2 labels are left out, since not every method has them (all itn 1, some itn 2).",
    ]
    first, second = method_rows(methods, scores)
    assert (first["evaluated"], first["failed"], first["cases"]) == (10, 0, 7)
    assert (second["evaluated"], second["failed"], second["cases"]) == (7, 3, 7)
    assert {line["n"] for line in score_rows(scores)} == {7}


def test_a_label_that_is_nowhere_counts_for_no_method(tmp_path: Path) -> None:
    """Method y invents label b in a case that lacks it, and misses it in another."""
    x, y = Evaluation(), Evaluation()
    for index in range(6):
        x.add(f"c{index}", "itn", [row("a", 0.8), row("b", 0.6) if index else nowhere("b")])
        invented = row("b", 0.0, **flags(reference=True))
        missed = row("b", 0.0, components=0, **flags(prediction=True))
        y.add(f"c{index}", "itn", [row("a", 0.8), {0: invented, 1: missed}.get(index, row("b", 0.6))])
    x.write(tmp_path / "x")
    y.write(tmp_path / "y")
    methods = read_methods([str(tmp_path / name) for name in "xy"])
    scores = common_scores(methods)
    assert scores.labels == ["a", "b", "mean"]
    assert scores.of("dice", "a").shape == (2, 6)
    assert scores.of("dice", "b").tolist() == [[0.6] * 5, [0.0, *[0.6] * 4]]
    # The mean of the first case is over label a alone, for both.
    np.testing.assert_allclose(scores.of("dice", "mean"), [[0.8, *[0.7] * 5], [0.8, 0.4, *[0.7] * 4]])
    assert any("1 pairs of case and label are left out" in note for note in scores.notes)
    figures = [(line["missed"], line["false_alarms"]) for line in method_rows(methods, scores)]
    assert figures == [(0, 0), (1, 1)]


# Tables


def test_best_and_second_best_by_the_direction_of_the_metric(tmp_path: Path) -> None:
    evaluated(tmp_path / "full", {"itn": 0.7, "one_pass": 0.6, "refine": 0.8}, labels=("a", "b"))
    scores = scores_of(tmp_path / "full")
    rows = score_rows(scores)
    assert len(rows) == 3 * 3 * len(SCORES)  # the labels and their mean, the methods, the metrics
    for label in ("a", "b", "mean"):
        for metric in SCORES:
            lines = {line["method"]: line for line in rows if (line["label"], line["metric"]) == (label, metric)}
            assert [lines[f"full {name}"]["mark"] for name in ("itn", "one_pass", "refine")] == ["second", "", "best"]
            # The methods differ by the same amount in every case.
            assert [lines[f"full {name}"]["below_best"] for name in ("itn", "one_pass", "refine")] == [
                True,
                True,
                False,
            ]
            assert [lines[f"full {name}"]["below_second"] for name in ("itn", "one_pass", "refine")] == [
                False,
                True,
                False,
            ]
    dice = next(line for line in rows if line["metric"] == "dice")
    values = scores.of("dice", "a")[0]
    assert (dice["mean"], dice["sd"]) == (pytest.approx(values.mean()), pytest.approx(values.std(ddof=1)))


def test_equal_methods_share_the_mark_or_have_none(tmp_path: Path) -> None:
    evaluated(tmp_path / "same", {"itn": 0.7, "one_pass": 0.7})
    assert {line["mark"] for line in score_rows(scores_of(tmp_path / "same"))} == {""}
    evaluated(tmp_path / "two", {"itn": 0.7, "one_pass": 0.7, "refine": 0.6})
    marks = [line["mark"] for line in score_rows(scores_of(tmp_path / "two")) if line["metric"] == "dice"]
    assert marks == ["best", "best", "second"]


def test_reference_is_the_best_of_the_others_or_the_chosen(tmp_path: Path) -> None:
    evaluated(tmp_path / "full", {"itn": 0.7, "one_pass": 0.6, "refine": 0.8})
    scores = scores_of(tmp_path / "full")
    for metric in ("dice", "hd"):
        pairs = {line["method"]: line for line in paired_rows(scores) if line["metric"] == metric}
        assert [pairs[f"full {name}"]["reference"] for name in ("itn", "one_pass", "refine")] == [
            "full refine",
            "full refine",
            "full itn",
        ]
        assert (pairs["full refine"]["wins"], pairs["full refine"]["losses"]) == (10, 0)
        assert pairs["full refine"]["p_value"] < 0.01 < 0.99 < pairs["full itn"]["p_value"]
    chosen = paired_rows(scores, reference="full one_pass")
    assert {line["method"] for line in chosen} == {"full itn", "full refine"}
    assert {line["reference"] for line in chosen} == {"full one_pass"}
    with pytest.raises(InputError, match="reference 'best': expected one of full itn, full one_pass"):
        paired_rows(scores, reference="best")


def test_topology_is_correct_if_every_label_of_the_case_is(tmp_path: Path) -> None:
    evaluation = Evaluation()
    evaluation.add("c1", "itn", [row("a", 0.9, holes=2), row("b", 0.9)])
    evaluation.add("c2", "itn", [row("a", 0.9, holes=1), row("b", 0.9)])
    evaluation.add("c3", "itn", [row("a", 0.9, holes=2), row("b", 0.9, components=2)])
    evaluation.add("c4", "itn", [row("a", 0.9, holes=2), nowhere("b")])
    evaluation.write(tmp_path)
    methods = read_methods([str(tmp_path)])
    scores = common_scores(methods)
    assert method_rows(methods, scores)[0]["correct_topology"] == 3 / 4
    assert method_rows(methods, scores, {"a": 2})[0]["correct_topology"] == 2 / 4
    for holes in (2, {"B": 2}):
        with pytest.raises(InputError, match="expected numbers for labels of"):
            method_rows(methods, scores, holes)


def test_inverse_consistency_is_shown_where_there_is_a_transform(tmp_path: Path) -> None:
    evaluation = Evaluation()
    for case, error in (("c1", 0.02), ("c2", 0.06)):
        evaluation.add(case, "itn", [row("a", 0.7)])
        evaluation.add(case, "refine", [row("a", 0.8, ic_dice=1 - error, mice=error)])
    evaluation.write(tmp_path)
    methods = read_methods([str(tmp_path)])
    itn, refine = method_rows(methods, common_scores(methods))
    assert math.isnan(itn["mice"])
    assert (refine["ic_dice"], refine["mice"]) == (pytest.approx(0.96), pytest.approx(0.04))


def test_markdown_and_latex_mark_and_escape() -> None:
    table = Table(
        "a_1 & b",
        ["Method", "Dice ↑"],
        [[Cell("50 %|x"), Cell("0.9 ± 0.1", "best")], [Cell("{y}"), Cell("−0.1", "second", "∗†")]],
    )
    lines = markdown(table).splitlines()
    assert lines[2:] == ["| Method | Dice ↑ |", "| --- | --- |", "| 50 %\\|x | **0.9 ± 0.1** |", "| {y} | *−0.1* ∗† |"]
    text = latex(table)
    assert r"\caption{a\_1 \& b}" in text
    assert r"50 \%|x & \textbf{0.9 $\pm$ 0.1} \\" in text
    assert r"\{y\} & \textit{$-$0.1}$^{\ast}$$^{\dagger}$ \\" in text


def check_latex(text: str) -> None:
    """What a compiler would stumble over: braces, environments, math, numbers of columns, characters."""
    assert text.isascii()
    plain = re.sub(r"\\[&%$#_{}\\]", "", text)
    depth = 0
    for character in plain:
        depth += {"{": 1, "}": -1}.get(character, 0)
        assert depth >= 0
    assert depth == 0
    assert plain.count("$") % 2 == 0
    assert not set("#_%~") & set(plain)
    stack: list[str] = []
    for kind, name in re.findall(r"\\(begin|end)\{([^}]*)\}", text):
        if kind == "begin":
            stack.append(name)
        else:
            assert stack.pop() == name
    assert not stack
    for columns, body in re.findall(r"\\begin\{tabular\}\{(l+)\}(.*?)\\end\{tabular\}", text, re.DOTALL):
        rows = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert rows
        assert {len(re.split(r"(?<!\\)&", line)) for line in rows} == {len(columns)}


# The command


def test_the_command_writes_the_same_tables_again_from_the_csv_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    evaluated(tmp_path / "full_1", {"itn": 0.7, "refine": 0.8}, labels=("a_1", "b&c"))
    evaluated(tmp_path / "quick", {"itn": 0.6, "refine": 0.7}, labels=("a_1", "b&c"))
    compare(str(tmp_path / "full_1"), str(tmp_path / "quick"), output_dir=str(tmp_path / "out"))
    files = ["boxplots.png", "comparison.md", "comparison.tex", "methods.csv", "scatter.png", "scores.csv", "tests.csv"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == files
    assert "### b&c (n = 10)" in capsys.readouterr().out
    check_latex((tmp_path / "out" / "comparison.tex").read_text())

    tables = [f"{name}={tmp_path / name / 'metrics.csv'}" for name in ("full_1", "quick")]
    compare(*tables, output_dir=str(tmp_path / "again"))
    for name in files[1:4] + files[5:]:
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    tests = read_csv(tmp_path / "out" / "tests.csv")
    assert len(tests) == 3 * len(SCORES) * 4
    assert {line["reference"] for line in tests if line["method"] == "quick refine"} == {"full_1 refine"}


@pytest.mark.parametrize("cases", [1, 4])
def test_few_cases_are_not_tested(tmp_path: Path, cases: int, capsys: pytest.CaptureFixture) -> None:
    evaluated(tmp_path / "full", {"itn": 0.7, "refine": 0.8}, cases=cases)
    compare(str(tmp_path / "full"), output_dir=str(tmp_path / "out"))
    tests = read_csv(tmp_path / "out" / "tests.csv")
    assert {line["remark"] for line in tests} == {"not tested: n < 5"}
    assert {line["p_value"] for line in tests} == {""}
    assert {(line["wins"], line["losses"]) for line in tests} == {(str(cases), "0"), ("0", str(cases))}
    assert not any(line["below_best"] == "True" for line in read_csv(tmp_path / "out" / "scores.csv"))
    check_latex((tmp_path / "out" / "comparison.tex").read_text())


@pytest.mark.parametrize("quality", [math.inf, math.nan])
def test_numbers_that_are_none_do_not_stop_it(tmp_path: Path, quality: float) -> None:
    """Distances of another tool may be infinite where a structure is missed, or undefined everywhere."""
    evaluated(tmp_path / "ours", {"refine": 0.8})
    rows = read_csv(evaluated(tmp_path / "theirs", {"nnunet": 0.7}) / "metrics.csv")
    for line in rows if math.isnan(quality) else rows[3:4]:
        line.update(dict.fromkeys(SCORES if math.isnan(quality) else ("asd", "hd"), str(quality)))
    write_csv(rows, tmp_path / "theirs" / "metrics.csv")
    compare(str(tmp_path / "ours"), f"nnU-Net:nnunet={tmp_path / 'theirs'}", output_dir=str(tmp_path / "out"))
    tests = {(line["metric"], line["method"]): line for line in read_csv(tmp_path / "out" / "tests.csv")}
    expected = "not tested: infinite values" if quality == math.inf else "not tested: n < 5"
    assert tests["hd", "nnU-Net"]["remark"] == expected
    if quality == math.inf:
        assert (tests["hd", "ours refine"]["wins"], tests["dice", "ours refine"]["remark"]) == ("10", "")
        assert "∞ ± -" in (tmp_path / "out" / "comparison.md").read_text()
    check_latex((tmp_path / "out" / "comparison.tex").read_text())


def test_one_result_alone_has_a_table_and_no_tests(tmp_path: Path) -> None:
    evaluated(tmp_path / "full", {"refine": 0.8})
    compare(str(tmp_path / "full"), output_dir=str(tmp_path / "out"))
    assert read_csv(tmp_path / "out" / "tests.csv") == []
    assert not (tmp_path / "out" / "scatter.png").exists()
    assert "Paired tests" not in (tmp_path / "out" / "comparison.md").read_text()


def test_as_a_user_runs_it(tmp_path: Path) -> None:
    for value, quality in (("0.1", 0.7), ("1", 0.8), ("10", 0.75)):
        evaluated(tmp_path / f"lambda_{value}", {"itn": 0.65, "refine": quality})
    command = [
        sys.executable,
        "-m",
        "atlas_istn",
        "compare",
        *(f"{v}={tmp_path}/lambda_{v}" for v in ("10", "0.1", "1")),
    ]
    settings = ["--output_dir", tmp_path / "out", "--sweep", "lambda", "--holes", "{a: 0}", "--reference", "1 refine"]
    done = subprocess.run([*command, *settings], capture_output=True, text=True, check=True)
    assert "| 1 refine | **0.8" in done.stdout
    with Image.open(tmp_path / "out" / "sweep.png") as picture:
        assert min(picture.size) > 100
    wrong = subprocess.run([*command, *settings[:-1], "none"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 1
    assert "error: reference 'none': expected one of 10 itn" in wrong.stderr


# Pictures


def test_box_plots_show_every_label_metric_and_method(tmp_path: Path) -> None:
    evaluated(tmp_path / "full", {"itn": 0.7, "refine": 0.8}, labels=("a", "b"))
    scores = scores_of(tmp_path / "full")
    figure = box_plots(scores)
    assert len(figure.axes) == 3 * len(SCORES)
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == scores.methods
    means = [line.get_xdata()[0] for line in figure.axes[0].lines if line.get_marker() == "^"]
    np.testing.assert_allclose(means, scores.of("dice", "a").mean(axis=1))


def test_scatter_is_green_where_refinement_is_better(tmp_path: Path) -> None:
    evaluation = Evaluation()
    for case, quality in (("worse", 0.6), ("equal", 0.7), ("better", 0.8)):
        evaluation.add(case, "itn", [row("a", 0.7), row("b", 0.7)])
        evaluation.add(case, "refine", [row("a", quality), row("b", 0.8)])
    evaluation.write(tmp_path)
    methods = read_methods([str(tmp_path)])
    scores = common_scores(methods)
    figure = itn_against_refine(methods, scores)
    assert figure is not None
    assert len(figure.axes) == 3
    colours = {"worse": WORSE, "equal": EQUAL, "better": BETTER}
    for axes in figure.axes:  # Dice, which is to be high, and distances, which are to be low
        of_a, of_b = axes.collections
        found = ["#" + "".join(f"{round(255 * part):02x}" for part in colour[:3]) for colour in of_a.get_facecolor()]
        assert found == [colours[case] for case in scores.cases]
        assert len(of_b.get_offsets()) == 3
    points = figure.axes[0].collections[0].get_offsets()
    np.testing.assert_allclose(points, scores.of("dice", "a").T)
    assert itn_against_refine(methods[:1], common_scores(methods[:1])) is None


def test_sweep_draws_a_line_per_result_in_order_of_the_setting(tmp_path: Path) -> None:
    for value, quality in (("1e-2", 0.6), ("10", 0.7), ("0.5", 0.8)):
        evaluated(tmp_path / f"lambda_{value}", {"itn": 0.65, "refine": quality})
    methods = read_methods([str(tmp_path / f"lambda_{value}") for value in ("10", "1e-2", "0.5")])
    scores = common_scores(methods)
    axes = sweep_plot(methods, scores, "lambda").axes[0]
    itn, refine = axes.lines
    assert list(refine.get_xdata()) == [0.01, 0.5, 10.0]
    offset = scores.of("dice", "a")[0].mean() - 0.65
    np.testing.assert_allclose(refine.get_ydata(), np.array([0.6, 0.8, 0.7]) + offset)
    np.testing.assert_allclose(itn.get_ydata(), 0.65 + offset)
    assert axes.get_xlabel() == "λ"


def test_a_sweep_needs_a_value_of_every_folder(tmp_path: Path) -> None:
    evaluated(tmp_path / "full", {"refine": 0.8})
    with pytest.raises(InputError, match="'full': a sweep needs the value"):
        compare(str(tmp_path / "full"), output_dir=str(tmp_path / "out"), sweep="lambda")
    with pytest.raises(InputError, match="same value"):
        compare(f"a1={tmp_path / 'full'}", f"b1={tmp_path / 'full'}", output_dir=str(tmp_path / "out"), sweep="lambda")
    assert not (tmp_path / "out").exists()
