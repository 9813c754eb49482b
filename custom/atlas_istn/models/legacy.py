# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Old names of modules, for bundles that were packed with version 0.5.0: their configurations name what moved since.

To be removed with version 0.7.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

__all__ = ["MOVED", "LegacyNames", "install"]

_PACKAGE = __name__.partition(".")[0]

MOVED: dict[str, tuple[str, ...]] = {
    "atlas": ("training.atlas_builder",),
    "consistency": ("spatial.consistency",),
    "conventions": ("pictures.palette",),
    "curves": ("pictures.curves",),
    "dicom_output": ("workflow.dicom",),
    "engines": ("workflow.evaluator",),
    "ensemble": ("inferers.ensemble",),
    "evolution": ("training.evolution", "pictures.atlas_evolution"),
    "export": ("models.export",),
    "figures": ("pictures.figure",),
    "files": ("io.files",),
    "inference": ("workflow.cases", "workflow.writer", "workflow.scorer"),
    "io.dicom_capture": ("workflow.dicom_page", "pictures.dicom_page"),
    "losses": ("training.losses", "registration.similarity"),
    "metrics": ("evaluation.metrics",),
    "model_loader": ("models.loading",),
    "one_pass": ("inferers.one_pass",),
    "pack": ("models.pack",),
    "quality": ("workflow.quality", "workflow.measures", "workflow.calibration"),
    "refine": ("inferers.refine", "inferers.target"),
    "topology.atlas": ("training.atlas_topology",),
    "topology.inferer": ("inferers.topology_guard",),
    "topology.transforms": ("workflow.topology_transforms",),
}
"""Old module → the modules, one or several, that hold its names now."""


def _new(module: str) -> ModuleType:
    return importlib.import_module(f"{_PACKAGE}.{module}")


def _topology_inferer(max_raises: int = 3, raise_factor: float = 4.0, **settings: Any) -> Any:
    """The guard was a refinement itself, and took its settings."""
    refinement = _new("inferers.refine").RefinementInferer(**settings)
    return _new("inferers.topology_guard").TopologyGuard(refinement, max_raises, raise_factor)


def _case_scorer(network: Any = None, **settings: Any) -> Any:  # noqa: ARG001 (the atlas comes with each case)
    return _new("workflow.scorer").CaseScorer(**settings)


class _CaseMeasures:
    """Was the handler that measured; now it only hands on whether the uncertainty is wanted."""

    def __init__(self, uncertainty: bool = False) -> None:
        self.uncertainty = uncertainty

    def attach(self, engine: Any) -> None:
        engine.uncertainty = self.uncertainty


RESHAPED: dict[tuple[str, str], Any] = {
    ("topology.inferer", "TopologyInferer"): _topology_inferer,
    ("inference", "CaseScorer"): _case_scorer,
    ("quality", "CaseMeasures"): _CaseMeasures,
}
"""Old module and name → what takes the old arguments, where these have changed."""


class _OldModule(ModuleType):
    """Stands for a module that is no more, and finds its names where they are now."""

    def __getattr__(self, name: str) -> Any:
        old = self.__name__.removeprefix(f"{_PACKAGE}.")
        if (old, name) in RESHAPED:
            return RESHAPED[old, name]
        if not name.startswith("__"):
            for module in MOVED[old]:
                if hasattr(_new(module), name):
                    return getattr(_new(module), name)
        raise AttributeError(f"module {self.__name__} has no attribute {name}")


class LegacyNames(MetaPathFinder, Loader):
    """Finder and loader of the modules in `MOVED`; asked only for what no file holds."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:  # noqa: ARG002
        """The spec of an old module, or None for any other."""
        package, _, module = name.partition(".")
        return ModuleSpec(name, self) if package == _PACKAGE and module in MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """A module without names of its own."""
        return _OldModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """There is nothing to run."""


def install() -> None:
    """Let old names be imported."""
    if not any(isinstance(finder, LegacyNames) for finder in sys.meta_path):
        sys.meta_path.append(LegacyNames())
