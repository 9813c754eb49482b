# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""The evaluator that registers batches of pairs, in the validation of a training and in runs of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from ignite.metrics import Average, Metric
from monai.engines.utils import IterationEvents
from monai.handlers import MeanDice, from_engine
from monai.utils import CommonKeys as Keys

from ..inferers.pair import PairResult
from ..io.pairs import SIDES
from ..networks.pair import split_pair
from .cases import CaseEvaluator, failing_alone
from .pair_cases import PairCase

__all__ = ["PAIR_RESULTS", "PairEvaluator", "pair_metrics"]

PAIR_RESULTS = {"pred": "refine", "identity": "identity", "one_pass": "one_pass"}
"""Key in the evaluator's output → name of the result, that of the full method first."""


def pair_metrics(with_structures: bool, results: Mapping[str, str] | None = None) -> dict[str, Metric]:
    """The metrics of a validation: Dice of the structures ``NAME_dice`` for each result; the first is the key metric.

    Without structures it is ``agreement``, minus the objective of the refinement.

    Args:
        with_structures: the pairs have structures of interest.
        results: key in the evaluator's output → name of the result.
    """
    if not with_structures:
        return {"agreement": Average(output_transform=lambda output: -output[0]["objective"])}
    return {
        f"{name}_dice": MeanDice(include_background=True, output_transform=from_engine([key, Keys.LABEL]))
        for key, name in (results or PAIR_RESULTS).items()
    }


class PairEvaluator(CaseEvaluator):
    """Registers every batch of pairs by a `PairInferer`.

    ``state.output`` is for MONAI's handlers: under the keys of `PAIR_RESULTS` the moving structures as each result
    brings them onto the fixed image, under ``label`` the fixed ones, where there are any, and ``objective``. Our own
    handlers read ``state.cases``, a `PairCase` for each pair. ``state.failures`` lists the pairs that failed, as (case,
    message).

    Args:
        settings: those of `SupervisedEvaluator`.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)

    def _iteration(self, engine: PairEvaluator, batchdata: dict[str, Any]) -> Any:
        state = engine.state
        state.failures += batchdata.pop("failures", [])
        state.cases = []
        if Keys.IMAGE not in batchdata:  # no pair of this batch could be prepared
            state.batch, state.output = [], []
            return state.output
        state.output = []
        if "fixed_affine" not in batchdata:  # the validation of a training: no pair of it may be missing
            self._register(batchdata)
            return state.output
        with failing_alone(engine, *batchdata["case"]):
            result = self._register(batchdata)
            state.cases = [_taken_up(batchdata, result, index) for index in range(len(result))]
        return state.output

    def _register(self, batchdata: dict[str, Any]) -> PairResult:
        """Register a batch, and leave in the state what the postprocessing makes of it."""
        engine, state = self, self.state
        engine.network.eval()
        label = batchdata.get(Keys.LABEL)
        structures = None if label is None else label.to(state.device)
        result: PairResult = self.inferer.infer(batchdata[Keys.IMAGE].to(state.device), engine.network, structures)
        state.output = {Keys.IMAGE: batchdata[Keys.IMAGE], "objective": result.fit.loss}
        if structures is not None:
            moving, fixed = split_pair(structures)
            one_pass = result.one_pass or result.transform
            warped = {"pred": result.transform.to_fixed(moving), "one_pass": one_pass.to_fixed(moving)}
            state.output |= {Keys.LABEL: fixed, "identity": moving, **warped}
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        engine.fire_event(IterationEvents.MODEL_COMPLETED)  # decollates and postprocesses
        return result


def _taken_up(batch: Mapping[str, Any], result: PairResult, index: int) -> PairCase:
    label = batch.get(Keys.LABEL)
    return PairCase(
        case=batch["case"][index],
        pair=batch["pairs"][index],
        affines={side: np.asarray(batch[f"{side}_affine"][index]) for side in SIDES},
        result=result.case(index),
        image=torch.as_tensor(batch[Keys.IMAGE][index : index + 1]).to(result.moving.device),
        structures=None if label is None else torch.as_tensor(label[index : index + 1]).to(result.moving.device),
    )
