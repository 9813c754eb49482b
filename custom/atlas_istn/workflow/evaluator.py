# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""The evaluator that keeps the results of a case apart, and their scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from monai.engines import SupervisedEvaluator
from monai.engines.utils import IterationEvents
from monai.handlers import MeanDice, from_engine
from monai.utils import CommonKeys as Keys

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


class AtlasEvaluator(SupervisedEvaluator):
    """Runs an inferer with a method ``refine`` and puts everything that it yields into the engine's output.

    Output keys, each a tensor over the batch: ``image``, ``label`` (where the data has one) and those of
    `Refinement.outputs`, `EnsembleRefinement.outputs` or `OnePass.outputs`. ``pred`` is always there.

    ``state.failures`` lists the cases of the run that failed, as (case, message): those that the batches bring along
    under ``"failures"`` and those that handlers add.
    """

    def run(self, global_epoch: int = 1) -> None:
        """Go over the data once."""
        self.state.failures = []
        super().run(global_epoch)

    def _iteration(self, engine: AtlasEvaluator, batchdata: dict[str, Any]) -> Any:
        engine.state.failures += batchdata.pop("failures", [])
        if Keys.IMAGE not in batchdata:  # no case of this batch could be prepared
            engine.state.batch, engine.state.output = [], []
            return engine.state.output
        image = batchdata[Keys.IMAGE].to(engine.state.device)
        engine.network.eval()
        engine.state.output = {Keys.IMAGE: image, **self.inferer.refine(image, engine.network).outputs()}
        if Keys.LABEL in batchdata:
            engine.state.output[Keys.LABEL] = batchdata[Keys.LABEL].to(engine.state.device)
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output
