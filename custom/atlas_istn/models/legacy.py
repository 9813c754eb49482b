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
    "comparison.command": ("evaluation.comparison.command",),
    "consistency": ("spatial.consistency",),
    "conventions": ("pictures.conventions",),
    "curves": ("pictures.curves",),
    "dicom_output": ("workflow.dicom",),
    "engines": ("workflow.evaluator",),
    "ensemble": ("inferers.ensemble",),
    "evaluation": ("evaluation.scores",),
    "evolution": ("training.evolution",),
    "export": ("models.export",),
    "figures": ("pictures.figure",),
    "files": ("io.files",),
    "inference": ("workflow.cases",),
    "io.dicom_capture": ("workflow.dicom_page",),
    "losses": ("training.losses",),
    "merge": ("models.merge",),
    "metrics": ("evaluation.metrics",),
    "model_loader": ("models.loading",),
    "one_pass": ("inferers.one_pass",),
    "pack": ("models.pack",),
    "quality": ("workflow.quality",),
    "refine": ("inferers.refine",),
    "topology.atlas": ("training.atlas_topology",),
    "topology.inferer": ("inferers.topology_guard",),
    "topology.transforms": ("workflow.topology_transforms",),
}
"""Old module → the modules, one or several, that hold its names now."""


class _OldModule(ModuleType):
    """Stands for a module that is no more, and finds its names where they are now."""

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("__"):
            for module in MOVED[self.__name__.removeprefix(f"{_PACKAGE}.")]:
                found = importlib.import_module(f"{_PACKAGE}.{module}")
                if hasattr(found, name):
                    return getattr(found, name)
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
