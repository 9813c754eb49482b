# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""What is typed behind `python -m atlas_istn`, and what the commands get of it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest

from atlas_istn.__main__ import COMMANDS, main, understand
from atlas_istn.errors import InputError


def sample(
    folder: str | Path,
    cases: str | tuple[str, ...] = "all",
    labels: bool = True,
    modes: int = 3,
    target: Mapping[Any, Any] | None = None,
    to: str | Path = "",
) -> dict[str, Any]:
    """A command.

    Args:
        folder: where.
        cases: which.
        labels: whether.
        modes: how many.
        target: a table.
        to: where to.
    """
    return {"folder": folder, "cases": cases, "labels": labels, "modes": modes, "target": target, "to": to}


def several(*outputs: str, output_dir: str) -> tuple[Any, ...]:
    """A command that takes any number of names."""
    return (*outputs, output_dir)


def given(*arguments: str) -> dict[str, Any]:
    return understand("sample", sample, arguments)()


@pytest.mark.parametrize(
    "text", ["123", "101_02", "1e3", "None", "True", "5", "[a,b]", "a,b", "123,101_02", "'a'", "a#b"]
)
def test_names_and_paths_stay_as_they_are_typed(text: str) -> None:
    found = given(text, "--cases", text, f"--to={text}")
    assert (found["folder"], found["cases"], found["to"]) == (text, text, text)
    assert understand("several", several, [text, "b", "--output_dir", text])() == (text, "b", text)


def test_truth_values_numbers_and_tables_are_read() -> None:
    for text in ("false", "False", "FALSE"):
        assert given("a", "--labels", text)["labels"] is False
    assert given("a", "--labels", "true")["labels"] is True
    assert given("a", "--labels")["labels"] is True
    assert given("a", "--nolabels")["labels"] is False
    assert given("a", "--modes", "7")["modes"] == 7
    table = given("a", "--target", "{1: [1, 0, 0], 1+2: [1, 0, 0], adjacent: [[1, 2]]}")["target"]
    assert table == {1: [1, 0, 0], "1+2": [1, 0, 0], "adjacent": [[1, 2]]}
    assert given("a", "--target", "{B:2}")["target"] == {"B": 2}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--labels", "flase"], "--labels: expected true or false, found 'flase'"),
        (["--modes", "1e3"], "--modes: expected a whole number, found '1e3'"),
        (["--modes"], "--modes: expected a value behind it"),
        (["--to"], "--to: expected a value behind it"),
        (["--to", "--labels", "true"], "--to: expected a value behind it"),
        (["--noto"], "--noto: expected a value behind it"),
        (["--target", "{1: "], "--target: expected a table"),
        (["--target", "1"], "--target: expected a table"),
    ],
)
def test_values_of_the_wrong_kind_are_named(arguments: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        given("a", *arguments)


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["a", "--bogus", "3"], 2),
        (["a", "--bogus=3"], 2),
        (["a", "b", "true", "3", "{1: 2}", "c", "surplus"], 2),
        ([], 2),
        (["--help"], 0),
        (["a", "--help"], 0),
        (["a", "--to", "-h"], 0),
        (["a", "--bogus", "--help"], 0),
    ],
)
def test_nothing_is_called_unless_all_is_understood(
    arguments: list[str], status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        understand("sample", sample, arguments)
    assert caught.value.code == status
    said = capsys.readouterr().err
    assert "atlas_istn sample" in said
    assert "_fire" not in said.lower()
    if status == 0:
        assert "whether." in said


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_what_kind_its_parameters_are(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, function, _ = COMMANDS[name]
    hints = get_type_hints(getattr(importlib.import_module(f"atlas_istn.{module}"), function))
    for option, hint in hints.items():
        kinds = [get_origin(kind) or kind for kind in (get_args(hint) or (hint,))]
        assert option == "return" or {str, bool, int, Mapping} & set(kinds), option
    monkeypatch.setattr(sys, "argv", ["atlas_istn", name, "one", "--bogus"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
