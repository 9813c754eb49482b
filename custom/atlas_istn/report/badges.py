# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Short remarks on a case, good or bad."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..topology import Topology

__all__ = ["fold_badges", "topology_badges"]


def topology_badges(report: Mapping[str, Any], wanted: Mapping[int, Topology]) -> list[tuple[str, str]]:
    """Say of each label what topology it has, as (good or bad, text).

    Args:
        report: of the case.
        wanted: label value → that of the atlas, where it is known.
    """
    badges = []
    for name, value in report["labels"].items():
        found, expected = report["topology"][name], wanted.get(value)
        text = f"{name}: {_shape(found)}"
        if expected is None or found == expected._asdict():
            badges.append(("good", text))
        else:
            badges.append(("bad", f"{text}; atlas: {_shape(expected._asdict())}"))
    return badges


def fold_badges(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Say whether the map of a case folds, likewise; nothing where there is no map."""
    if "folded_fraction" not in report:
        return []
    folded = report["folded_fraction"]
    return [("bad", f"{folded:.2%} folded") if folded > 0 else ("good", "no folds")]


def _shape(topology: Mapping[str, int]) -> str:
    """In words: 1 component, 2 holes."""
    words = [
        f"{count} {name.removesuffix('s') if count == 1 else name}"
        for name, count in topology.items()
        if count or name == "components"
    ]
    return ", ".join(words).replace("1 cavitie", "1 cavity")
