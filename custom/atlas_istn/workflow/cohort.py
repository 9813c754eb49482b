# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""The cases of a run: those that are finished already, and those that fall to this process."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist

from ..io.cases import Cases
from ..io.channels import files_of
from ..io.locks import hold_folder, release_folder

__all__ = ["Cohort", "gathered"]

logger = logging.getLogger(__name__)

KEY = "key"
"""In the report of a case: what it was made of, so that a later run knows whether it would make the same."""
_OF_THE_RUN = (
    *("device", "dataset_dir", "data_list_file", "test_list", "output_dir", "bundle_root", "resume", "batch_size"),
    *("num_workers", "imports", "initialize", "finalize", "ckpt_path", "quality_path", "random_pairs", "moving_list"),
    "atlas_cache",
)
"""Settings that change no result."""


class Cohort:
    """What a run has to do.

    A case is finished if its report says that it was made of the same files, model and settings. The processes of one
    ``torchrun`` are one run: each takes its share of the cases.

    Args:
        cases: all of them.
        output_dir: folder of the results.
        settings: the configuration in use, see `running_config`.
        files: what else decides the results, such as the model; those that are missing count for nothing.
        resume: leave finished cases as they are.
        sources: keys of a case under which it has the files that its result is made of.
        ending: of the name of a file that every finished case has, without suffix.
    """

    def __init__(
        self,
        cases: Cases,
        output_dir: str,
        settings: Mapping[str, Any],
        files: Sequence[str] = (),
        resume: bool = False,
        sources: Sequence[str] = ("image",),
        ending: str = "_seg",
    ) -> None:
        self.all = cases
        self.output_dir = Path(output_dir)
        self.resume = resume
        self.sources = tuple(sources)
        self.ending = ending
        self.output_format = settings.get("output_format")
        kept = {name: value for name, value in settings.items() if name not in _OF_THE_RUN and not name.startswith("_")}
        text = json.dumps(_with_text_keys(kept), sort_keys=True, default=str)
        self.common = text.encode() + b"".join(_digest(Path(file)) for file in files)

    def open(self) -> None:
        """Hold the folder of the results, so that no other run writes into it.

        Raises:
            InputError: another run does.
        """
        if _rank() == 0:
            hold_folder(self.output_dir)

    def close(self) -> None:
        """Let other runs write into the folder."""
        if _rank() == 0:
            release_folder(self.output_dir)

    def pending(self) -> Cases:
        """Return the cases that this process has to do."""
        left = [case for case in self.all if not (self.resume and self._is_finished(case))]
        if self.resume:
            logger.info("%d of %d cases are finished already", len(self.all) - len(left), len(self.all))
        mine = left[_rank() :: _world()]
        pending = Cases(mine, self.all.unused, self.all.anonymous)
        pending.of = len(self.all)
        return pending

    def key(self, case: Mapping[str, str]) -> str:
        """Return what the result of a case is made of; of its sources, files or folders, those that it has count."""
        made_of = hashlib.sha256(self.common)
        for name in [name for name in self.sources if case.get(name)]:
            for file in files_of(case[name]):
                made_of.update(name.encode() + _digest(Path(file)))
        return made_of.hexdigest()

    def reports(self) -> list[dict[str, Any]]:
        """Return the reports of all finished cases, of all processes and of earlier runs, in the order of the cases."""
        found = [(case, self._report(case)) for case in self.all]
        return [report for case, report in found if report and report.get(KEY) == self.key(case)]

    def _is_finished(self, case: Mapping[str, str]) -> bool:
        report, folder, name = self._report(case), self.output_dir / case["case"], case["case"]
        dicom = self.output_format == "dicom_seg" and Path(case["image"]).is_dir()
        file = f"{name}{self.ending}"
        there = (folder / f"{file}.dcm").exists() if dicom else any(folder.glob(f"{file}.*"))
        return there and report.get(KEY) == self.key(case)

    def _report(self, case: Mapping[str, str]) -> dict[str, Any]:
        try:
            path = self.output_dir / case["case"] / f"{case['case']}.json"
            return dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):  # none, or none of ours: the case is done anew
            return {}


def gathered(items: Sequence[Any]) -> list[Any]:
    """Return the items of all processes on the first one, and nothing on the others."""
    if _world() == 1:
        return list(items)
    everyone: list[Any] = [None] * _world()
    dist.all_gather_object(everyone, list(items))
    return [item for part in everyone for item in part] if _rank() == 0 else []


def _with_text_keys(value: Any) -> Any:
    """A tree whose keys are text, so that they can be sorted: a topology has labels and names beside each other."""
    if isinstance(value, Mapping):
        return {str(key): _with_text_keys(part) for key, part in value.items()}
    return [_with_text_keys(part) for part in value] if isinstance(value, (list, tuple)) else value


def _digest(path: Path) -> bytes:
    """Of a file, or of the names and contents of the files in a folder."""
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.is_file())
        return hashlib.sha256(b"".join(file.name.encode() + _digest(file) for file in files)).digest()
    try:
        return hashlib.sha256(path.read_bytes()).digest()
    except OSError:
        return b""


def _rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def _world() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
