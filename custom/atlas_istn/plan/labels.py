# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""The table of classes: which values of the label files are which class, and what it is called."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..errors import InputError
from .survey import Scan

__all__ = ["LabelTable", "label_table"]

_SHOWN = 12
_IGNORE = "ignore"  # as nnU-Net calls voxels that nobody labelled


@dataclass(frozen=True)
class LabelTable:
    """The classes.

    Attributes:
        names: of the classes, background first.
        values: as `atlas_istn.io.label_table` has them.
        reason: how they were found, in a line.
    """

    names: Sequence[str]
    values: Sequence[int | list[int]]
    reason: str

    @property
    def is_plain(self) -> bool:
        """Whether the values are the class indices."""
        return list(self.values) == list(range(len(self.values)))


def label_table(scans: Sequence[Scan], names: Mapping[int, str], selection: str) -> LabelTable:
    """Find the classes.

    Args:
        scans: all cases.
        names: value → name, as the data set has it.
        selection: ``"NAME=VALUE[+VALUE…][,…]"``: the classes wanted, all other values being background; or empty.

    Raises:
        InputError: the selection makes no sense, or there are only zeros.
    """
    found = Counter(value for scan in scans for value in scan.values)
    ignored = sorted(value for value in found if names.get(value) == _IGNORE)
    values = sorted(value for value in found if value and value not in ignored)
    if not values:
        raise InputError("all labels are zero everywhere. Expected labels of the anatomy. Check the export.")
    if selection:
        return _selected(selection, found)
    named = [value for value in sorted(names) if value and names[value] != _IGNORE]
    if set(values) <= set(named):
        classes: dict[str, list[int]] = {}
        for value in values:
            classes.setdefault(names[value], []).append(value)
        absent = sorted({names[value] for value in named} - set(classes))
        reason = f"as dataset.json names them{'; in no case: ' + ', '.join(absent) if absent else ''}"
        reason += "; what it has ignored is background" if ignored else ""
        entries = [_entry([0, *ignored]), *(_entry(merged) for merged in classes.values())]
        return LabelTable([names.get(0, "background"), *classes], entries, reason)
    if len(values) == len(named):
        return LabelTable(
            [names.get(0, "background"), *(names[value] for value in named)],
            [0, *values],
            f"the names of dataset.json in the order of the values, {_listed(values)} in place of {_listed(named)}",
        )
    return LabelTable(["background", *(f"label {value}" for value in values)], [0, *values], "as the files have them")


def _selected(selection: str, found: Mapping[int, int]) -> LabelTable:
    classes: dict[str, list[int]] = {}
    for part in selection.split(","):
        name, separator, texts = part.partition("=")
        try:
            values = [int(text) for text in texts.split("+")]
        except ValueError:
            values = []
        if not separator or not name.strip() or not values or name.strip() in classes:
            raise InputError(
                f"--labels '{selection}': expected NAME=VALUE, or NAME=VALUE+VALUE to merge, with commas between names "
                f"that differ, found '{part}'. The values there: {_listed(sorted(found))}."
            )
        classes[name.strip()] = values
    chosen = [value for values in classes.values() for value in values]
    missing = [value for value in chosen if value not in found]
    if missing or len(set(chosen)) < len(chosen) or 0 in chosen:
        wrong = f"{_listed(missing)} in no label" if missing else "0, or a value twice"
        raise InputError(f"--labels '{selection}': {wrong}. Expected values of {_listed(sorted(found))}, each once.")
    rest = [0, *sorted(value for value in found if value and value not in chosen)]
    entries = [_entry(rest), *(_entry(values) for values in classes.values())]
    reason = "as --labels says" + (f"; background: {_listed(rest[1:])}" if len(rest) > 1 else "")
    return LabelTable(["background", *classes], entries, reason)


def _entry(values: Sequence[int]) -> int | list[int]:
    return list(values) if len(values) > 1 else values[0]


def _listed(values: Sequence[int]) -> str:
    return ", ".join(str(value) for value in values[:_SHOWN]) + (", …" if len(values) > _SHOWN else "")
