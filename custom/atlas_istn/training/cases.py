# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""The labelled cases of a training: all that cannot be used are named at once, before the first epoch."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.data import CacheDataset
from monai.transforms import Compose

from ..errors import InputError, message_of

__all__ = ["TrainingCases", "check_cases", "check_pairs"]

logger = logging.getLogger(__name__)

_SHOWN = 3  # cases that a warning names
_BORDER = 0.5  # value of a map of a structure at its border


class TrainingCases(CacheDataset):
    """A cache of prepared cases, in which those that cannot be prepared wait for `check_cases`.

    An exception in one of the threads that fill the cache would end the run at the first such case, and leave threads
    behind that take the process down.

    Args:
        data: the cases, as `find_cases` lists them.
        transform: prepares a case.
        settings: others of `CacheDataset`.

    Attributes:
        failures: case → why it cannot be used.
    """

    def __init__(self, data: Sequence[Mapping[str, str]], transform: Compose, **settings: Any) -> None:
        self.failures: dict[str, str] = {}
        super().__init__(data=data, transform=_Noting(transform, self.failures), **settings)


class _Noting(Compose):
    """The transforms of another `Compose`; of a case that makes them fail they note the reason, and nothing is left."""

    def __init__(self, transform: Compose, failures: dict[str, str]) -> None:
        super().__init__(transform.transforms)
        self.failures = failures

    def __call__(self, input_: Mapping[str, str], *ends: Any, **options: Any) -> Any:
        try:
            return super().__call__(input_, *ends, **options)
        except Exception as error:  # whatever a reader or transform raises
            self.failures[_name(input_)] = message_of(error)
            return {}


def check_cases(training: TrainingCases, validation: TrainingCases, label_names: Mapping[Any, str]) -> None:
    """Refuse cases that cannot be used, and training labels that lack what is to be learned.

    Args:
        training: cases with soft labels ``{"label": [Nc, *shape]}``.
        validation: the same for the choice of the model.
        label_names: class index → name, background included.

    Raises:
        InputError: naming every case that cannot be read or has nothing but background, and every class that no
            training label has.
    """
    problems = _unusable(training, validation)
    if not problems:
        problems = _missing_labels(training, validation, {int(index): name for index, name in label_names.items()})
    _refuse(problems)
    _warn_of_repeats(training.data, validation.data)


def check_pairs(training: TrainingCases, validation: TrainingCases) -> None:
    """Refuse pairs that cannot be used.

    Args:
        training: pairs with ``{"label": [2 K, *shape]}``, where they have structures of interest.
        validation: the same for the choice of the model.

    Raises:
        InputError: naming every pair that cannot be read, or an image of which shows nothing of any structure.
    """
    problems = _unusable(training, validation)
    for cases in (training, validation) if not problems else ():
        for number, case in enumerate(cases.data):
            label = cases[number].get("label")
            for side, maps in zip(
                ("moving", "fixed"), () if label is None else torch.as_tensor(label).chunk(2), strict=False
            ):
                if not bool((maps > _BORDER).any()):
                    problems.append(
                        f"{case['case']}: the {side} image shows no structure of interest on the model's grid. "
                        "Expected some. Correct the structure, or leave the pair out."
                    )
    _refuse(problems)


def _unusable(training: TrainingCases, validation: TrainingCases) -> list[str]:
    failures = [*sorted(training.failures.items()), *sorted(validation.failures.items())]
    return [f"{case}: {reason}" for case, reason in failures]


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        lines = "\n".join(f"  {problem}" for problem in problems)
        raise InputError(f"the cases to train on cannot be used as they are:\n{lines}")


def _missing_labels(training: TrainingCases, validation: TrainingCases, names: Mapping[int, str]) -> list[str]:
    problems = []
    seen: set[int] = set()
    for cases in (training, validation):
        for number, case in enumerate(cases.data):
            labels = torch.as_tensor(cases[number]["label"])
            present = {index for index in names if index and float(labels[index].max()) > 0}
            if not present:
                problems.append(
                    f"{_name(case)}: {case['label']}: nothing but background on the model's grid. Expected the "
                    "anatomy. Correct the label, or leave the case out."
                )
            if cases is training:
                seen |= present
    for index, name in names.items():
        if index and index not in seen:
            problems.append(
                f"{name} (class {index}): no training label has it on the model's grid. Expected every class of "
                "label_names in some label. Correct label_names and label_values, or the list of the cases."
            )
    return problems


def _warn_of_repeats(training: Sequence[Mapping[str, str]], validation: Sequence[Mapping[str, str]]) -> None:
    images = Counter(case["image"] for case in training)
    repeated = sorted(_name(case) for case in training if images[case["image"]] > 1)
    shared = sorted(_name(case) for case in validation if case["image"] in images)
    if repeated:
        logger.warning("%d cases are in the training list more than once: %s", len(repeated), _some(repeated))
    if shared:
        logger.warning(
            "%d cases are in the training and in the validation list, by which the model is chosen: %s",
            len(shared),
            _some(shared),
        )


def _name(case: Mapping[str, str]) -> str:
    return case.get("case", case["image"])  # MONAI Label lists its cases without names


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
