# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""The paired bootstrap against scipy's, against the normal approximation, and where there is nothing to test."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from atlas_istn.errors import InputError
from atlas_istn.evaluation.comparison.statistics import CONFIDENCE, RESAMPLES, bootstrap_means, paired_test


def sample(n: int, shift: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    reference = rng.normal(0.8, 0.1, n)
    return reference + rng.normal(shift, 0.05, n), reference


@pytest.mark.parametrize("n", [8, 60])
def test_interval_agrees_with_scipy(n: int) -> None:
    method, reference = sample(n, 0.01)
    test = paired_test(method, reference, higher_is_better=True)
    theirs = stats.bootstrap(
        (method - reference,), np.mean, n_resamples=100_000, confidence_level=CONFIDENCE, method="percentile"
    ).confidence_interval
    # The 1st percentile of 10,000 resamples has a standard error of 0.04 standard errors of the mean.
    tolerance = 0.15 * np.std(method - reference, ddof=1) / np.sqrt(n)
    assert test.low == pytest.approx(theirs.low, abs=tolerance)
    assert test.high == pytest.approx(theirs.high, abs=tolerance)
    assert test.difference == pytest.approx(np.mean(method - reference))


@pytest.mark.parametrize("shift", [-0.01, 0.0, 0.006, 0.012])
def test_p_value_agrees_with_the_normal_approximation(shift: float) -> None:
    """Of many pairs the mean is normal, with the population standard deviation that resampling has."""
    method, reference = sample(300, shift)
    differences = method - reference
    expected = stats.norm.cdf(-differences.mean() / (differences.std() / np.sqrt(300)))
    # The standard error of a share of 10,000 is 0.005 at most.
    assert paired_test(method, reference, True).p_value == pytest.approx(expected, abs=0.02)
    assert paired_test(method, reference, False).p_value == pytest.approx(1 - expected, abs=0.02)


def test_a_symmetric_null_gives_one_half() -> None:
    half = np.random.default_rng(1).normal(0, 1, 25)
    differences = np.concatenate([half, -half])
    test = paired_test(differences, np.zeros(50), higher_is_better=True)
    assert test.p_value == pytest.approx(0.5, abs=0.02)
    assert (test.wins, test.losses) == (25, 25)
    assert not test.significant


def test_the_level_is_kept_where_there_is_no_difference() -> None:
    """Of 400 experiments without an effect 4 ought to be significant, or 6, since the bootstrap is optimistic."""
    found = sum(paired_test(*sample(40, 0.0, seed), True).significant for seed in range(400))
    assert found <= 12  # two standard errors of such a count above 6


def test_significance_is_that_of_the_interval() -> None:
    for seed in range(30):
        method, reference = sample(20, 0.025, seed)
        test = paired_test(method, reference, higher_is_better=True)
        if abs(test.p_value - 0.01) > 0.001:  # at the border one resample more or less decides
            assert test.significant == (test.low > 0)


def test_lower_is_better_for_distances() -> None:
    method, reference = sample(30, -0.1)
    test = paired_test(method, reference, higher_is_better=False)
    assert test.significant
    assert test.high < 0
    assert test.wins > test.losses


def test_all_equal_is_no_improvement() -> None:
    values = np.linspace(0.5, 0.9, 10)
    test = paired_test(values, values.copy(), higher_is_better=True)
    assert (test.p_value, test.low, test.high, test.difference) == (1.0, 0.0, 0.0, 0.0)
    assert (test.wins, test.ties, test.losses) == (0, 10, 0)
    assert test.remark == "all pairs equal"


def test_a_constant_difference_has_no_spread() -> None:
    values = np.linspace(0.5, 0.9, 10)
    test = paired_test(np.full(10, 0.75), np.full(10, 0.5), higher_is_better=True)
    assert (test.low, test.high) == (0.25, 0.25)
    assert test.p_value == 1 / (RESAMPLES + 1)
    assert np.isfinite(values).all()


@pytest.mark.parametrize("n", [0, 1, 4])
def test_few_pairs_are_counted_and_not_tested(n: int) -> None:
    test = paired_test(np.full(n, 0.9), np.full(n, 0.8), higher_is_better=True)
    assert (test.n, test.wins, test.ties, test.losses) == (n, n, 0, 0)
    assert np.isnan([test.low, test.high, test.p_value]).all()
    assert test.remark == "not tested: n < 5"
    assert not test.significant


def test_pairs_without_a_number_are_left_out() -> None:
    method, reference = sample(12, 0.02)
    longer = [np.append(values, extra) for values, extra in ((method, [np.nan, 0.1]), (reference, [0.5, np.nan]))]
    assert paired_test(*longer, higher_is_better=True) == paired_test(method, reference, higher_is_better=True)


def test_infinite_values_are_counted_and_not_tested() -> None:
    method, reference = sample(8, 0.0)
    reference[2] = np.inf
    test = paired_test(method, reference, higher_is_better=False)
    assert test.n == 8
    assert test.wins >= 1
    assert test.remark == "not tested: infinite values"


def test_resamples_repeat_and_depend_on_the_seed() -> None:
    values = np.random.default_rng(0).normal(size=20)
    np.testing.assert_array_equal(bootstrap_means(values), bootstrap_means(values))
    assert not np.array_equal(bootstrap_means(values), bootstrap_means(values, seed=1))
    assert bootstrap_means(values).shape == (RESAMPLES,)


def test_pairs_must_be_pairs() -> None:
    with pytest.raises(InputError, match="same cases"):
        paired_test(np.zeros(5), np.zeros(6), higher_is_better=True)
