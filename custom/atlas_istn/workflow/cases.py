# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Preparing cases one by one: one that cannot be prepared becomes a failure, and the others go on."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.data import Dataset, list_data_collate
from monai.engines import SupervisedEvaluator

from ..errors import InputError, message_of
from ..io.channels import files_of

__all__ = [
    "CaseDataset",
    "CaseEvaluator",
    "FailureReport",
    "collate_cases",
    "failing_alone",
    "failure_error",
    "reason_of",
]

_ALIKE = 3  # failures with one reason, from which more make one line

logger = logging.getLogger(__name__)


class CaseDataset(Dataset):
    """Prepares the images of cases; a case that cannot be prepared becomes a failure instead of ending the run.

    Items are ``{"case", "source", "reference", "grid_affine", "image"}`` or, for a failure, ``{"case", "error"}``;
    batch them with `collate_cases`.

    Args:
        data: ``{"case", "image"}`` and, for scoring, ``"label"``, as `find_cases` lists them.
        transform: the preprocessing of ``{"image": path}``.
    """

    def __getitem__(self, index: Any) -> dict[str, Any]:
        """The prepared case, or what is wrong with it."""
        case = self.data[index]
        try:
            image = self.transform({"image": case["image"]})["image"]
        except Exception as error:  # whatever a reader or transform raises, the other cases go on
            return {"case": case["case"], "error": reason_of(error, self.data, case)}
        return {
            "case": case["case"],
            "source": case["image"],
            "reference": case.get("label", ""),
            "grid_affine": torch.as_tensor(image.affine).double(),
            "image": image,
        }


def collate_cases(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A batch of the cases that could be prepared, with the others under ``"failures"`` as (case, message)."""
    failures = [(item["case"], item["error"]) for item in items if "error" in item]
    prepared = [item for item in items if "error" not in item]
    batch: dict[str, Any] = list_data_collate(prepared) if prepared else {}
    return {**batch, "failures": failures}


class CaseEvaluator(SupervisedEvaluator):
    """Goes over cases one by one. ``state.failures`` lists those of the run that failed, as (case, message)."""

    def run(self, global_epoch: int = 1) -> None:
        """Go over the data once."""
        self.state.failures = []
        if len(self.data_loader):
            super().run(global_epoch)
        else:  # all cases are finished, or fall to other processes: there is still a summary to write
            self.fire_event(Events.STARTED)
            self.fire_event(Events.COMPLETED)


@contextmanager
def failing_alone(engine: Engine, *cases: str) -> Iterator[None]:
    """Make whatever goes wrong in the block a failure of these cases, so that the others go on.

    Args:
        engine: a `CaseEvaluator`; a case that has failed already is not noted again.
        cases: their names.
    """
    try:
        yield
    except Exception as error:  # a full disk, a shortage of memory, what a library makes of an odd case
        logger.debug("traceback of what follows", exc_info=True)
        failed = {case for case, _ in engine.state.failures}
        data = engine.data_loader.dataset.data
        engine.state.failures += [
            (case["case"], reason_of(error, data, case)) for case in data if case["case"] in {*cases} - failed
        ]


def reason_of(error: BaseException, data: Sequence[Mapping[str, str]], case: Mapping[str, str]) -> str:
    """Why a case failed; where cases are numbered, its files are not named."""
    reason = message_of(error)
    if getattr(data, "anonymous", False):
        for path in (*files_of(case["image"]), case.get("label", "")):
            reason = reason.replace(str(path), case["case"]) if path else reason
    return reason


class FailureReport:
    """Last handler: when cases failed, the run ends with a message that names them, after all others are done."""

    def attach(self, engine: Engine) -> None:
        """Register with a `CaseEvaluator`."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Raise if there were failures.

        Raises:
            InputError: naming every failed case and its reason.
        """
        failures = engine.state.failures
        if failures:
            dataset = engine.data_loader.dataset
            number = getattr(dataset.data, "of", len(dataset))
            raise failure_error(failures, number)


def failure_error(failures: Sequence[tuple[str, str]], number: int) -> InputError:
    """Return the error that a run ends with in which cases failed.

    Args:
        failures: case and message of each.
        number: of all cases.
    """
    return InputError(f"{len(failures)} of {number} cases failed:\n" + "\n".join(_by_reason(failures)))


def _by_reason(failures: Sequence[tuple[str, str]]) -> list[str]:
    """A line for each failure; one for many with the same reason, as where the model is one for other images."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for case, message in failures:
        reason = message.partition(": ")[2] or message  # messages begin with the file
        groups.setdefault(reason, []).append((case, message))
    lines = []
    for reason, group in groups.items():
        if len(group) > _ALIKE:
            shown = ", ".join(case for case, _ in group[:_ALIKE])
            lines.append(f"  {shown} and {len(group) - _ALIKE} more: {reason}")
        else:
            lines += [f"  {case}: {message}" for case, message in group]
    return lines
