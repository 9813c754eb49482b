# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Paired comparison of two methods by bootstrap, as in the Atlas-ISTN paper (section 3.2, "Statistical Analyses")."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from ...errors import InputError

__all__ = ["CONFIDENCE", "MIN_CASES", "RESAMPLES", "SIGNIFICANCE", "PairedTest", "bootstrap_means", "paired_test"]

RESAMPLES = 10_000
CONFIDENCE = 0.98
"""Of the two-sided interval: one bound of it is a one-sided test at `SIGNIFICANCE`."""
SIGNIFICANCE = (1 - CONFIDENCE) / 2
MIN_CASES = 5

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class PairedTest:
    """What a paired comparison of a method with a reference says.

    Attributes:
        n: number of pairs.
        difference: mean of method − reference.
        wins: pairs in which the method is better.
        ties: pairs with equal values.
        losses: pairs in which the method is worse.
        low: lower end of the interval of the mean difference; NaN where nothing was tested.
        high: upper end.
        p_value: one-sided, small if the method is better; NaN where nothing was tested.
        remark: why nothing was tested, or that all pairs are equal; else empty.
    """

    n: int
    difference: float
    wins: int
    ties: int
    losses: int
    low: float = math.nan
    high: float = math.nan
    p_value: float = math.nan
    remark: str = ""

    @property
    def significant(self) -> bool:
        """Whether the method is better at the level of `SIGNIFICANCE`."""
        return self.p_value < SIGNIFICANCE


def bootstrap_means(values: Values, seed: int = 0) -> Values:
    """Means of resamples with replacement, whose quantiles bound the percentile bootstrap's interval of the mean.

    Args:
        values: ``[n]``, finite.
        seed: of the resamples, which depend on it and on n alone.

    Returns:
        ``[RESAMPLES]``.
    """
    # Resampling relative to one value keeps the means of equal values equal to the last bit.
    offset = values[0]
    return np.asarray(offset + _weights(len(values), seed) @ (values - offset))


def paired_test(method: Values, reference: Values, higher_is_better: bool, seed: int = 0) -> PairedTest:
    """One-sided test that the method is better than the reference in the mean, by percentile bootstrap over the pairs.

    The p-value is the share of resamples in which the method is not better, ``(1 + count) / (1 + RESAMPLES)``; it is
    1 where all pairs are equal. Fewer than `MIN_CASES` pairs, or infinite values, are counted and not tested.

    Args:
        method: ``[n]``, one value per case.
        reference: ``[n]``, of the same cases; a pair with NaN on either side is left out.
        higher_is_better: the direction of the metric.
        seed: of the bootstrap.

    Returns:
        The comparison.

    Raises:
        InputError: the lengths differ.
    """
    if method.shape != reference.shape:
        raise InputError(f"Paired values must be of the same cases, found {method.shape} and {reference.shape}.")
    paired = ~(np.isnan(method) | np.isnan(reference))
    method, reference = method[paired], reference[paired]
    sign = 1 if higher_is_better else -1
    wins, losses = (int(np.sum(sign * a > sign * b)) for a, b in ((method, reference), (reference, method)))
    counts = {"n": len(method), "wins": wins, "ties": len(method) - wins - losses, "losses": losses}

    if not (np.isfinite(method).all() and np.isfinite(reference).all()):
        return PairedTest(**counts, difference=math.nan, remark="not tested: infinite values")
    differences = method - reference
    mean = float(differences.mean()) if len(differences) else math.nan
    if len(differences) < MIN_CASES:
        return PairedTest(**counts, difference=mean, remark=f"not tested: n < {MIN_CASES}")
    means = bootstrap_means(differences, seed)
    low, high = np.quantile(means, [SIGNIFICANCE, 1 - SIGNIFICANCE])
    p_value = (1 + int(np.sum(sign * means <= 0))) / (1 + RESAMPLES)
    remark = "all pairs equal" if counts["ties"] == len(differences) else ""
    return PairedTest(**counts, difference=mean, low=float(low), high=float(high), p_value=p_value, remark=remark)


@lru_cache(maxsize=2)
def _weights(n: int, seed: int) -> Values:
    """How often each of n values is drawn in each resample, as a share: ``[RESAMPLES, n]``."""
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
    return counts / n
