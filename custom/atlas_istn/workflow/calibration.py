# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Handler that learns what is usual from a run on cases that are known to be good."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path

from ignite.engine import Engine, Events

from ..io.outputs import write_json
from .measures import Measures
from .quality import Population, fingerprint

__all__ = ["QualityCalibration"]

logger = logging.getLogger(__name__)


class QualityCalibration:
    """Handler that writes the `Population` of a run as JSON; of the results that a refinement gave.

    Args:
        path: file to write, ``quality.json`` beside the model.
        ckpt_path: the model.
    """

    def __init__(self, path: str | Path, ckpt_path: str | Path = "") -> None:
        self.path = path
        self.ckpt_path = ckpt_path
        self.measures: list[Measures] = []

    def attach(self, engine: Engine) -> None:
        """Register with an `AtlasEvaluator`."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _start(self) -> None:
        self.measures = []

    def _collect(self, engine: Engine) -> None:
        self.measures += [case.measures for case in engine.state.cases if case.measures]

    def _write(self) -> None:
        population = Population.of(self.measures, fingerprint(self.ckpt_path) if self.ckpt_path else "")
        write_json(asdict(population), self.path)
        logger.info("calibrated on %d cases: %s", population.cases, self.path)
