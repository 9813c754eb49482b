# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.

"""What users see of exceptions that are no mistakes of the program."""

from __future__ import annotations

import errno

import pytest
import torch
from monai.bundle import ConfigParser

from atlas_istn.errors import InputError, explanation_of, message_of


def raised(expression: str) -> Exception:
    """What MONAI makes of an exception in an expression of a configuration."""
    parser = ConfigParser({"imports": ["$import torch"], "part": expression})
    with pytest.raises(Exception) as caught:  # noqa: PT011
        parser.get_parsed_content("part")
    return caught.value


def test_memory_files_and_mistakes_are_explained_in_one_line() -> None:
    shortages: list[BaseException] = [MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried 3 GiB\nmore")]
    shortages.append(raised("$torch.empty(2**60)"))
    for shortage in shortages:
        assert "out of memory" in explanation_of(shortage)
        assert "batch_size" in explanation_of(shortage)
        assert "\n" not in explanation_of(shortage)
    full = OSError(errno.ENOSPC, "No space left on device", "events.out")
    assert explanation_of(full).startswith("events.out: No space left on device")
    wrapped = RuntimeError('Failed to evaluate ConfigExpression: "$@train#trainer.run()"')
    wrapped.__cause__ = InputError("what is wrong")
    assert explanation_of(wrapped) == "what is wrong"
    assert message_of(wrapped) == "what is wrong"


def test_a_part_of_the_configuration_that_cannot_be_made_is_named() -> None:
    text = explanation_of(raised("$torch.nn.Linear('three', 1)"))
    assert text.startswith("the configuration cannot be used: $torch.nn.Linear('three', 1): TypeError: ")
    component = ConfigParser({"part": {"_target_": "torch.nn.Conv2d", "in_channels": -3, "nonsense": 1}})
    with pytest.raises(RuntimeError) as caught:
        component.get_parsed_content("part")
    assert "torch.nn.Conv2d: TypeError: " in explanation_of(caught.value)
    unknown = ConfigParser({"part": {"_target_": "NoSuchTransform"}})
    with pytest.raises(ModuleNotFoundError) as missing:
        unknown.get_parsed_content("part")
    assert "NoSuchTransform" in explanation_of(missing.value)


def test_faults_of_the_program_keep_their_traceback() -> None:
    assert explanation_of(ZeroDivisionError("division by zero")) == ""
    fault = RuntimeError("Failed to evaluate ConfigExpression: \"$__local_refs['train::trainer'].run()\"")
    fault.__cause__ = IndexError("list index out of range")
    assert explanation_of(fault) == ""
    assert message_of(fault) == "IndexError: list index out of range"
