# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Comparison of evaluated results as in the paper: tables, paired bootstrap tests and pictures."""

from __future__ import annotations

from .command import compare
from .results import Method, Scores, common_scores, read_methods
from .statistics import PairedTest, paired_test

__all__ = ["Method", "PairedTest", "Scores", "common_scores", "compare", "paired_test", "read_methods"]
