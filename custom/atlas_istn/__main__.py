# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Commands beside the bundle's own: `python -m atlas_istn COMMAND`."""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import logging
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, get_args, get_type_hints

import fire
import yaml
from fire.decorators import SetParseFn
from fire.parser import DefaultParseValue

from .errors import InputError, show_input_errors

COMMANDS = {
    "plan": ("plan", "plan", "look at a labelled data set, and write the configuration of a training for it"),
    "letter_b": ("data.letter_b", "generate_letter_b", "generate the letter B data set"),
    "curves": ("pictures.curves", "draw_curves", "draw the losses and the validation of a training"),
    "atlas_evolution": ("pictures.atlas_evolution", "draw_evolution", "animate the atlas of a training run"),
    "compare": ("evaluation.comparison.command", "compare", "compare evaluated results: tables, tests and pictures"),
    "degrade": ("data.degradations", "degrade_dataset", "degrade images as scanners and artefacts do"),
    "topology": ("training.atlas_topology", "check_model", "print the topology of a model's atlas, and repair it"),
    "register": ("workflow.register", "register", "register two images, with a model or without one"),
    "apply": ("shape.apply", "apply", "move images, labels, points or meshes by a transform file"),
    "propagate": ("shape.propagate", "propagate", "take points, meshes or images between atlas and subjects"),
    "mesh": ("shape.mesh", "mesh", "make corresponding surfaces of the atlas and of every subject"),
    "population": ("shape.population", "population", "mean shape, modes of variation, volumes and groups of a cohort"),
    "motion": ("shape.motion", "motion", "strain and volumes of one subject over time"),
    "figure": ("pictures.figure", "draw_results", "draw cases of an inference run and the atlas"),
    "report": ("report", "write_report", "write an HTML report of an inference run"),
    "onnx": ("models.export", "export_itn", "export the voxel-wise segmentation network to ONNX"),
    "ensemble": ("workflow.ensemble", "make_ensemble", "join trained bundles, as those of folds, to one"),
    "settings": ("settings.listing", "list_settings", "list what a configuration or a command line may set"),
    "configs": (
        "settings.stack",
        "write_generated",
        "make the bundle's configurations from their parts",
    ),
    "pack": ("models.pack", "pack_bundle", "pack the bundle and the package into one zip file"),
}
"""Name → module, function and summary. Only the module of the command that is run is imported: some take seconds."""

_EXTRAS = {"vtkmodules": "mesh"}
"""Module that few need → the extra of this package that installs it."""

_HELP = {"--help", "-h"}

fire.decorators.FIRE_METADATA = "_fire"  # Fire keeps this attribute on a command, and lists it in the help if it may


def main() -> None:
    """Run a command, or list them."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    show_input_errors()
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in COMMANDS:
        lines = [f"  {command:12} {summary}" for command, (_, _, summary) in COMMANDS.items()]
        usage = "\n".join(["usage: python -m atlas_istn COMMAND [--help]", *lines])
        if name in ("", *_HELP):
            sys.stdout.write(usage + "\n")
            return
        sys.exit(f"There is no command '{name}'.\n{usage}")
    module, function, _ = COMMANDS[name]
    gc.disable()  # a second would go into looking for garbage among the modules of torch and MONAI, which stay
    command = getattr(importlib.import_module(f"atlas_istn.{module}"), function)
    gc.freeze()
    gc.enable()
    call = understand(name, command, sys.argv[2:])
    try:
        result = call()
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _EXTRAS:
            raise
        raise InputError(
            f"{name} needs the package {package}, which is not installed. Install it by: "
            f"pip install 'atlas-istn[{_EXTRAS[package]}]'."
        ) from error
    if result is not None:
        sys.stdout.write(f"{result}\n")


def understand(name: str, command: Callable[..., Any], arguments: Sequence[str]) -> Callable[[], Any]:
    """The call that is typed; exits where help is asked for, or where an argument is one too many or too few.

    Fire by itself runs a command first, and then looks at what it could not make use of. It also takes a name such as
    101_02 for a number; here the annotations say what is a number, and what is text.

    Args:
        name: of the command.
        command: what to call; its parameters are annotated.
        arguments: as typed.

    Raises:
        InputError: an option has no value, or one of the wrong kind.
    """
    calls: list[Callable[[], Any]] = []

    @functools.wraps(command)
    def note(*values: Any, **options: Any) -> None:
        calls.append(functools.partial(command, *values, **options))

    hints = {option: hint for option, hint in get_type_hints(command).items() if option != "return"}
    SetParseFn(str)(note)
    for option, hint in hints.items():
        if str not in (hint, *get_args(hint)):
            SetParseFn(functools.partial(_READERS.get(hint, _read_table), option), option)(note)
    if _HELP.intersection(arguments):
        arguments = ["--help"]
    _check_values(arguments, hints)
    fire.Fire({name: note}, command=[name, *arguments], name="atlas_istn")
    if not calls:  # but a flag of Fire's own, behind an isolated --
        sys.exit()
    return calls[0]


def _check_values(arguments: Sequence[str], hints: Mapping[str, Any]) -> None:
    """Refuse options without the value that they need; Fire would take it to be True."""
    for argument, following in pairwise([*arguments, "--"]):
        option = argument.lstrip("-").replace("-", "_")
        meant = [hint for known, hint in hints.items() if option in (known, known[0], f"no{known}")]
        if _is_option(argument) and _is_option(following) and meant and bool not in meant:
            raise InputError(f"{argument}: expected a value behind it, found none. Write {argument} VALUE.")


def _is_option(argument: str) -> bool:
    return re.match("--|-[a-zA-Z]", argument) is not None


def _read_truth(option: str, text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise InputError(f"--{option}: expected true or false, found '{text}'.")
    return text.lower() == "true"


def _read_whole(option: str, text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise InputError(f"--{option}: expected a whole number, found '{text}'.") from error


def _read_table(option: str, text: str) -> Mapping[Any, Any]:
    """A table as Fire reads it, which needs no blanks, or as YAML has it, whose keys may be such as 1+2."""
    found = DefaultParseValue(text)
    with contextlib.suppress(yaml.YAMLError):
        found = yaml.safe_load(found) if isinstance(found, str) else found
    if not isinstance(found, Mapping):
        raise InputError(f"--{option}: expected a table such as '{{NAME: VALUE}}', found '{text}'.")
    return found


_READERS = {bool: _read_truth, int: _read_whole}


if __name__ == "__main__":
    main()
