# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""The evaluator that runs our inferers on batches of cases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from monai.engines.utils import IterationEvents
from monai.handlers import MeanDice, from_engine
from monai.utils import CommonKeys as Keys

from ..inferers.result import Result
from .cases import CaseEvaluator, failing_alone
from .results import CaseResult, to_dictionary

__all__ = ["AtlasEvaluator", "dice_metrics"]


def dice_metrics(results: Mapping[str, str]) -> dict[str, MeanDice]:
    """A Dice metric ``NAME_dice`` for each result; the first, an engine's key metric, is that of ``"pred"``.

    Args:
        results: key in the evaluator's output → name of the result.
    """
    names = {Keys.PRED: results[Keys.PRED], **results}
    return {
        f"{name}_dice": MeanDice(include_background=False, output_transform=from_engine([key, Keys.LABEL]))
        for key, name in names.items()
    }


class AtlasEvaluator(CaseEvaluator):
    """Runs an inferer of ours on every batch, and has its whole result pass the postprocessing.

    ``state.output`` is for MONAI's handlers and transforms: `to_dictionary` of the result, with the label where the
    data has one. Our own handlers read ``state.cases``, a `CaseResult` for each case of the batch. ``state.failures``
    lists the cases of the run that failed, as (case, message): those that the batches bring along under ``"failures"``
    and those that `failing_alone` adds.

    Args:
        uncertainty: have the entropy of the labels pass the postprocessing too.
        settings: those of `SupervisedEvaluator`; `inferer` is a `SegmentationInferer`.
    """

    def __init__(self, *, uncertainty: bool = False, **settings: Any) -> None:
        self.uncertainty = uncertainty  # before the handlers are attached, which may ask for it
        super().__init__(**settings)

    def _iteration(self, engine: AtlasEvaluator, batchdata: dict[str, Any]) -> Any:
        state = engine.state
        state.failures += batchdata.pop("failures", [])
        state.cases = []
        if Keys.IMAGE not in batchdata:  # no case of this batch could be prepared
            state.batch, state.output = [], []
            return state.output
        if "source" not in batchdata:  # the validation of a training: no case of it may be missing
            self._infer(batchdata)
            return state.output
        state.output = []
        with failing_alone(engine, *batchdata["case"]):
            result = self._infer(batchdata)
            state.cases = [
                CaseResult.of(batch, output, result.case(index), engine.network)
                for index, (batch, output) in enumerate(zip(state.batch, state.output, strict=True))
            ]
        return state.output

    def _infer(self, batchdata: dict[str, Any]) -> Result:
        """Segment a batch, and leave in the state what the postprocessing makes of it."""
        state = self.state
        image = batchdata[Keys.IMAGE].to(state.device)
        self.network.eval()
        result = self.inferer.infer(image, self.network)
        state.output = to_dictionary(result, image, self.uncertainty)
        if Keys.LABEL in batchdata:
            state.output[Keys.LABEL] = batchdata[Keys.LABEL].to(state.device)
        self.fire_event(IterationEvents.FORWARD_COMPLETED)
        self.fire_event(IterationEvents.MODEL_COMPLETED)  # decollates and postprocesses
        return result
