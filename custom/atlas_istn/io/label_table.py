# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Which values of label files are which class: ``label_values`` of a configuration.

An entry for each class, background first: a value, or a list of values that are merged into the class. So
``[[0, 3, 4], [1, 21], 2]`` makes 1 and 21 one class, and 3 and 4 background.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["LabelValues", "class_of_value", "written_values"]

LabelValues = Sequence[int | Sequence[int]]


def class_of_value(label_values: LabelValues) -> dict[int, int]:
    """Return value → class index."""
    return {value: index for index, entry in enumerate(label_values) for value in _values(entry)}


def written_values(label_values: LabelValues) -> list[int]:
    """Return the value that each class has in labelmaps that are written: the first of its own."""
    return [_values(entry)[0] for entry in label_values]


def _values(entry: int | Sequence[int]) -> list[int]:
    return [entry] if isinstance(entry, int) else list(entry)
