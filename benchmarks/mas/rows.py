# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""The ways to segment that are compared: registration, refinement, fusion."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ALONE", "FUSIONS", "LABELS", "REGISTRATIONS", "SEARCH", "UNTRAINED", "Row", "Weights", "rows_of_table"]

LABELS = {1: "anterior", 2: "posterior"}
REGISTRATIONS = ("affine", "di", "dis")
REFINEMENTS = ("", "i", "is")
FUSIONS = {
    "vote": "{'_target_': 'atlas_istn.fusion.vote.PluralityVote'}",
    "joint": "",
    "joint_2": "{'_target_': 'atlas_istn.fusion.joint.JointLabelFusion', 'search_radius': 2}",
    "vote_net": "",
    "local": "{'_target_': 'atlas_istn.fusion.vote.LocallyWeightedVote'}",
    "staple": "{'_target_': 'atlas_istn.fusion.staple.Staple'}",
}
UNTRAINED = ("vote", "joint")
COMMON = (*UNTRAINED, "vote_net")
ALL_FUSIONS = (*COMMON, "local", "staple")
ALL_FUSIONS_ON = ("dis", "")
Weights = tuple[tuple[str, float], ...]
ALONE = 1000.0
SEARCH: dict[str, list[Weights]] = {
    "i": [(("gamma", gamma),) for gamma in (0.1, 0.3, 1.0)],
    "is": [
        (("gamma", gamma), ("alpha", alpha)) for gamma, alpha in ((0.3, 3.0), (1.0, 3.0), (0.3, 10.0), (0.3, ALONE))
    ],
}
"""Weights of bending (gamma) and labels (alpha) that are tried; with the last one the network decides alone."""
STIFFER: Weights = (("gamma", 3.0), ("alpha", 3.0))
"""Tried behind the optimised registration, beside what the search has chosen."""


@dataclass(frozen=True)
class Row:
    """One way to segment.

    Attributes:
        registration: of `REGISTRATIONS`; ``velocity``, the optimisation that is done by default; or ``learned``:
            through the atlas of an Atlas-ISTN.
        refinement: of `REFINEMENTS`.
        fusion: of `FUSIONS`.
        weights: of the refinement.
        atlases: list of the data set that has them.
        topology: the learned atlas is registered to the fused labels.
        folds: an atlas is seen by a network that was not trained with it; else by that of all training cases.
    """

    registration: str
    refinement: str = ""
    fusion: str = "joint"
    weights: Weights = ()
    atlases: str = "atlases"
    topology: bool = False
    folds: bool = False

    @property
    def name(self) -> str:
        """Of its folder."""
        weights = "_".join(f"{name}{value:g}" for name, value in self.weights)
        more = [self.atlases if self.atlases != "atlases" else "", "topology" * self.topology, "folds" * self.folds]
        return "_".join(part for part in (self.registration, self.refinement, self.fusion, weights, *more) if part)


def rows_of_table(chosen: dict[str, Weights]) -> list[Row]:
    """Those of Table 1, with the weights of each refinement that were chosen."""
    rows = [
        Row(registration, refinement, fusion, chosen.get(refinement, ()))
        for refinement in REFINEMENTS
        for registration in REGISTRATIONS
        for fusion in (ALL_FUSIONS if (registration, refinement) == ALL_FUSIONS_ON else COMMON)
    ]
    refined = [
        Row("velocity", "is", fusion, weights)
        for weights in (chosen.get("is", ()), STIFFER)
        for fusion in (*UNTRAINED, "joint_2")
    ]
    return rows + [Row("velocity", fusion=fusion) for fusion in UNTRAINED] + refined
