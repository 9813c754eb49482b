# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""The figures of a comparison as plain rows: scores, tests and properties of each method."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ...errors import InputError
from ..scores import SCORES
from .results import Method, Scores
from .statistics import PairedTest, paired_test

__all__ = ["HIGHER_IS_BETTER", "Row", "method_rows", "paired_rows", "score_rows"]

HIGHER_IS_BETTER = {metric: metric in ("dice", "surface_dice") for metric in SCORES}

Row = dict[str, Any]


def score_rows(scores: Scores) -> list[Row]:
    """Statistics of every label, metric and method over the common cases.

    Args:
        scores: of all methods.

    Returns:
        Rows with ``label``, ``metric``, ``method``, ``n``, ``mean``, ``sd`` (of the sample), ``median``; ``mark``:
        ``best`` or ``second`` by the mean (equal means share it; empty where all are equal); ``below_best`` and
        ``below_second``: whether the best and the second best are significantly better than this method.
    """
    return [
        row for label in scores.labels for metric in SCORES for row in _score_metric(scores, label=label, metric=metric)
    ]


def _score_metric(scores: Scores, label: str, metric: str) -> list[Row]:
    values = scores.of(metric, label)
    means = [_mean(of_method) for of_method in values]
    marks = _marks(means, HIGHER_IS_BETTER[metric])
    leaders = {mark: marks.index(mark) for mark in ("best", "second") if mark in marks}

    def below(leader: str, index: int) -> bool:
        if leader not in leaders or marks[index] == leader:
            return False
        return paired_test(values[leaders[leader]], values[index], HIGHER_IS_BETTER[metric]).significant

    return [
        {
            "label": label,
            "metric": metric,
            "method": method,
            "n": values.shape[1],
            "mean": means[index],
            "sd": _sd(values[index]),
            "median": float(np.median(values[index])) if values.size else math.nan,
            "mark": marks[index],
            "below_best": below("best", index),
            "below_second": below("second", index),
        }
        for index, method in enumerate(scores.methods)
    ]


def _marks(means: Sequence[float], higher_is_better: bool) -> list[str]:
    levels = sorted({mean for mean in means if not math.isnan(mean)}, reverse=higher_is_better)
    if len(levels) < 2:
        return [""] * len(means)
    return [{levels[0]: "best", levels[1]: "second"}.get(mean, "") for mean in means]


def paired_rows(scores: Scores, reference: str = "") -> list[Row]:
    """The paired test of every method against a reference, for every label and metric.

    Args:
        scores: of all methods.
        reference: name of a method; by default each is compared with the best of the others by the mean.

    Returns:
        Rows with ``label``, ``metric``, ``method``, ``reference`` and the fields of
        `PairedTest`. None for the reference itself, nor where there is one
        method only.

    Raises:
        InputError: there is no such method.
    """
    if reference and reference not in scores.methods:
        raise InputError(f"reference '{reference}': expected one of {', '.join(scores.methods)}.")
    return [
        {"label": label, "metric": metric, "method": method, "reference": other, **vars(test)}
        for label in scores.labels
        for metric in SCORES
        for method, other, test in _tests(scores, label, metric, reference)
    ]


def _tests(scores: Scores, label: str, metric: str, reference: str) -> Iterable[tuple[str, str, PairedTest]]:
    values = dict(zip(scores.methods, scores.of(metric, label), strict=True))
    sign = 1 if HIGHER_IS_BETTER[metric] else -1
    for method in scores.methods:
        others = [reference] if reference else scores.methods
        others = [name for name in others if name != method]
        if others:
            best = max(others, key=lambda name: sign * _mean(values[name]))
            yield method, best, paired_test(values[method], values[best], HIGHER_IS_BETTER[metric])


def method_rows(methods: Sequence[Method], scores: Scores, holes: Mapping[str, int] | None = None) -> list[Row]:
    """What scores do not tell of each method, over the common cases and labels.

    Args:
        methods: those of ``scores``.
        scores: which cases and labels are common.
        holes: number of holes that a label has, where it is known.

    Returns:
        Rows with ``method``, ``evaluated`` (all its cases), ``failed`` (cases that could not be evaluated), ``cases``
        (the common ones), ``missed`` (labels of the reference that the prediction lacks, over all cases),
        ``false_alarms`` (labels of the prediction that the reference lacks), ``correct_topology`` (share of the cases
        whose every label has one component and, where given, this number of holes), and the means of ``ic_dice`` and
        ``mice`` (NaN without a transform).

    Raises:
        InputError: the holes are of no label.
    """
    if not isinstance(holes, Mapping | None) or not set(holes or {}) <= set(scores.labels):
        raise InputError(f"holes {holes}: expected numbers for labels of {scores.labels}, as in '{{B: 2}}'.")
    return [_describe(method, scores, holes or {}) for method in methods]


def _describe(method: Method, scores: Scores, holes: Mapping[str, int]) -> Row:
    cases, labels = set(scores.cases), set(scores.labels)
    rows = [row for row in method.rows if row["case"] in cases and row["label"] in labels]
    wrong = {row["case"] for row in rows if not _topology_is_correct(row, holes)}
    return {
        "method": method.name,
        "evaluated": len(method.cases),
        "failed": method.failed,
        "cases": len(cases),
        "missed": sum(row["empty_prediction"] and not row["empty_reference"] for row in rows),
        "false_alarms": sum(row["empty_reference"] and not row["empty_prediction"] for row in rows),
        "correct_topology": 1 - len(wrong) / len(cases),
        **{name: _mean([row[name] for row in rows if not math.isnan(row[name])]) for name in ("ic_dice", "mice")},
    }


def _topology_is_correct(row: Row, holes: Mapping[str, int]) -> bool:
    if row["empty_prediction"]:
        return bool(row["empty_reference"])
    return row["components"] == 1 and row["holes"] == holes.get(row["label"], row["holes"])


def _mean(values: Any) -> float:
    return float(np.mean(values)) if len(values) else math.nan


def _sd(values: Any) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 and np.isfinite(values).all() else math.nan
