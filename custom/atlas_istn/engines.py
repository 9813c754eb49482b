# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""The evaluator that keeps ITN, 1-pass and refined results apart."""

from __future__ import annotations

from typing import Any

import torch
from monai.engines import SupervisedEvaluator
from monai.engines.utils import IterationEvents
from monai.utils import CommonKeys as Keys

__all__ = ["AtlasEvaluator"]


class AtlasEvaluator(SupervisedEvaluator):
    """Runs a `RefinementInferer` and puts everything that it yields into the engine's output.

    Output keys, each a tensor over the batch: ``image``, ``label`` (where the data has one), ``pred`` (refined),
    ``itn``, ``one_pass``, ``velocity``, ``affine``, ``loss_before``, ``loss_after``, ``iterations``, ``seconds``,
    ``loss_curve``.

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
        result = self.inferer.refine(image, engine.network)
        engine.state.output = {
            Keys.IMAGE: image,
            Keys.PRED: result.segmentation,
            "itn": result.prediction,
            "one_pass": result.one_pass,
            "velocity": result.transform.velocity,
            "affine": result.transform.affine,
            "loss_before": result.loss_curve[0],
            "loss_after": result.loss_curve.min(dim=0).values,
            "loss_curve": result.loss_curve.T,
            "iterations": result.iterations,
            "seconds": torch.full((len(image),), result.seconds),
        }
        if Keys.LABEL in batchdata:
            engine.state.output[Keys.LABEL] = batchdata[Keys.LABEL].to(engine.state.device)
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output
