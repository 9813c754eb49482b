# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""The check of a run's settings, before anything else of the run."""

from __future__ import annotations

import difflib
import inspect
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ComponentLocator, ConfigParser, ConfigWorkflow

from ..errors import InputError, show_input_errors
from .components import typed_words, unknown_arguments
from .groups import FREE_ON_RESUME, LEARNING, OF_MODEL, OF_REFINEMENT, OF_WARPS, PARTS, PREPARATION
from .kinds import NotAllowedError, Setting
from .table import NESTED, SETTINGS

__all__ = [
    "begin",
    "binding_settings",
    "check_settings",
    "differences",
    "different",
    "model_settings",
    "named",
    "parts_dir",
    "read",
    "references",
    "refinement_settings",
    "running_config",
    "warp_settings",
]

_REFERENCE = re.compile(r"[@%]([A-Za-z_]\w*)")
_LONGEST = 60  # characters of a value that a message shows


def begin() -> None:
    """Begin a run of the bundle: mistakes of the user end in one message, and the settings are checked and converted.

    Goes first in the list that a workflow runs (``training``, ``inference``, …). MONAI's command line puts its values
    into the parser as text or as Python reads them; here they get their types, before anything is made of them. The
    parser is the one that evaluates this very call: MONAI hands it to nobody, so it is looked for among the callers.

    Raises:
        InputError: ids that are unknown, or values that make no sense: all of them in one message.
    """
    show_input_errors()
    parser = _calling_parser()
    config = parser.config
    converted = check_settings(config)
    changed = {name: value for name, value in converted.items() if value is not config[name] and value != config[name]}
    changed |= {name: value for name, value in converted.items() if type(value) is not type(config[name])}
    if changed:
        config.update(changed)
        parser.parse(reset=True)


def running_config() -> dict[str, Any]:
    """The configuration of the workflow that calls this, as `begin` left it."""
    config: dict[str, Any] = _calling_parser().config
    return config


def binding_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Choose from a configuration what a resumed training must have in common with the one before.

    Returns:
        Id → value, as JSON has it. Expressions stay the texts that they are.
    """
    names = [name for name in SETTINGS if name in config and name not in (*PARTS, *FREE_ON_RESUME)]
    chosen = {name: config[name] for name in (*names, *(part for part in (*LEARNING, *PREPARATION) if part in config))}
    augmentation = config.get("train", {}).get("augmentation")
    return _plain({**chosen, "train#augmentation": augmentation})


def model_settings(config: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Choose from a configuration what a model cannot be used without.

    Args:
        config: ids and values, in their types; by default the configuration that is running.

    Returns:
        Id → value, as JSON has it.
    """
    return _with_references(OF_MODEL, running_config() if config is None else config)


def warp_settings() -> dict[str, Any]:
    """Choose from the configuration that is running what decides how atlases are registered.

    Returns:
        Id → value, as JSON has it.
    """
    return _with_references(OF_WARPS, running_config())


def _with_references(ids: Sequence[str], config: Mapping[str, Any]) -> dict[str, Any]:
    """Some ids of a configuration and all that they refer to, as JSON has them."""
    chosen: dict[str, Any] = {}
    names = [name for name in ids if name in config]
    while names:
        name = names.pop()
        chosen[name] = config[name]
        names += (references(config[name]) & config.keys()) - chosen.keys()
    return _plain(chosen)


def parts_dir() -> Path:
    """Return the folder ``parts`` beside the configuration that is running."""
    for frame in inspect.stack(context=0):
        if isinstance(workflow := frame.frame.f_locals.get("self"), ConfigWorkflow):
            return Path(workflow.config_root_path) / "parts"
    raise RuntimeError("was not called by a workflow of a bundle")


def refinement_settings() -> dict[str, Any]:
    """Choose from the configuration that is running what the refinement does, as a client of MONAI Label changed it.

    Returns:
        Id → value, as JSON has it.
    """
    config = running_config()
    chosen = {name: config[name] for name in OF_REFINEMENT if name in config}
    if not chosen.get("refine_adaptation", {}).get("steps"):  # none, as before it could be asked for
        chosen.pop("refine_adaptation", None)
    for name, value in config.get("displayable_configs", {}).items():
        if isinstance(value, str) and value.startswith(("@", "$")):
            continue
        if name == "refine_lambda":
            chosen["refine_weights"] = {**chosen["refine_weights"], "lambda": read(name, value)}
        elif name in OF_REFINEMENT:
            chosen[name] = read(name, value)
    return _plain(chosen)


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return a line for each id that two sets of settings have other values of; nothing where they agree."""
    names = different(before, now)
    return "\n".join(f"  {name}: {_shown(before.get(name))}, now {_shown(now.get(name))}" for name in names)


def different(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the ids that two sets of settings have other values of, sorted."""
    return sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _LONGEST else "other parts"


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(settings, default=str))
    return found


def _calling_parser() -> ConfigParser:
    for frame in inspect.stack(context=0):
        if isinstance(parser := frame.frame.f_locals.get("self"), ConfigParser):
            return parser
    raise RuntimeError("was not called by the configuration of a bundle")


def named(handler: Any) -> Any:
    """Return a handler that has an id of its own, for a list of handlers in which MONAI wants no references."""
    return handler


def read(name: str, value: Any) -> Any:
    """Return the value of a setting in its type, as a host may send it with a request.

    Args:
        name: the id.
        value: as it came.

    Raises:
        InputError: the setting cannot have it.
    """
    problems: list[str] = []
    found = _read(name, SETTINGS[name], value, problems)
    if problems:
        raise InputError(problems[0])
    return found


def check_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Convert all settings of a configuration by the table of ids.

    An id that the table does not have is in order if something in the configuration refers to it, as to what a data
    configuration adds for its own use.

    Args:
        config: top-level ids and their values, as MONAI's parser holds them.

    Returns:
        The settings in their types.

    Raises:
        InputError: naming everything that is wrong.
    """
    problems: list[str] = []
    referred = references(config)
    converted: dict[str, Any] = {}
    for name, given in config.items():
        value = typed_words(given)
        if name in SETTINGS:
            converted[name] = _read(name, SETTINGS[name], value, problems)
        elif not name.startswith("_") and name not in referred:
            problems.append(_unknown(name, name, SETTINGS))
        elif value is not given:
            converted[name] = value
    for place, setting in NESTED.items():
        top, *keys = place.split("#")
        if top in converted:
            converted[top] = _read_within(converted[top], keys, place, setting, problems)
    _check_together(converted, problems)
    problems += [_not_taken(*found) for found in unknown_arguments(dict(config), ComponentLocator())]
    if problems:
        number = f"{len(problems)} settings are" if len(problems) > 1 else "a setting is"
        raise InputError(f"{number} wrong:\n" + "\n".join(f"  {problem}" for problem in problems))
    return converted


def _read(name: str, setting: Setting, value: Any, problems: list[str]) -> Any:
    try:
        found = setting.read(value)
    except NotAllowedError as error:
        problems.append(f"{name}: expected {error}, found {value!r}")
        return value
    if setting.kind != "table" or not isinstance(found, dict) or "_target_" in found:
        return found
    problems += [_unknown(f"{name}#{key}", key, setting.fields) for key in found if key not in setting.fields]
    problems += [f"{name}#{key}: missing. {part.help}" for key, part in setting.fields.items() if key not in found]
    known = {key: part for key, part in setting.fields.items() if key in found}
    return {**found, **{key: _read(f"{name}#{key}", part, found[key], problems) for key, part in known.items()}}


def _read_within(part: Any, keys: Sequence[str], place: str, setting: Setting, problems: list[str]) -> Any:
    """A part of the configuration in which the value at some place has its type."""
    if not keys:
        return _read(place, setting, part, problems)
    key, *deeper = keys
    if not isinstance(part, Mapping) or key not in part:
        return part
    found = _read_within(part[key], deeper, place, setting, problems)
    return part if found is part[key] else {**part, key: found}


def _unknown(place: str, name: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"{place}: unknown, and nothing refers to it." + (f" Did you mean {near[0]}?" if near else "")


def _not_taken(place: str, name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"{place}: not taken there. " + (f"Did you mean {near[0]}?" if near else f"Expected {', '.join(known)}.")


def _check_together(settings: Mapping[str, Any], problems: list[str]) -> None:
    """What settings ask of each other."""

    def both(first: str, second: str) -> bool:
        return all(isinstance(settings.get(name), list | dict) for name in (first, second))

    for first, second in (("spacing", "spatial_size"), ("label_values", "label_names"), ("itn_kernels", "itn_strides")):
        if both(first, second) and len(settings[first]) != len(settings[second]):
            problems.append(
                f"{first}: expected as many as {second}, {len(settings[second])}, found {len(settings[first])}"
            )
    if both("spatial_size", "spatial_size") and len(settings["spatial_size"]) not in (2, 3):
        problems.append(f"spatial_size: expected 2 or 3 sizes, found {settings['spatial_size']}")


def references(tree: Any) -> set[str]:
    """Return the ids at the top level that a configuration, or a piece of one, refers to."""
    return {name for text in _texts(tree) for name in _REFERENCE.findall(text)}


def _texts(tree: Any) -> Iterator[str]:
    if isinstance(tree, str):
        yield tree
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from _texts(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from _texts(value)
