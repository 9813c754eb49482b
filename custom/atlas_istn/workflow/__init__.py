# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Inference and evaluation, case by case: the evaluator, its handlers and transforms."""

from __future__ import annotations
