# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Scores of labelmaps, their statistics, and the comparison of results."""

from __future__ import annotations
