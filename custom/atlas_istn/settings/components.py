# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""What the parts of a configuration are made of: arguments of the wrong name or type are found before they run."""

from __future__ import annotations

import inspect
import pydoc
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from monai.bundle import ComponentLocator

__all__ = ["Unknown", "typed_words", "unknown_arguments"]

_OF_MONAI = ("_target_", "_mode_", "_desc_", "_disabled_", "_requires_", "_debug_", "+_requires_")
"""Keys of a part that are no arguments."""


_WORDS = {"true": True, "false": False, "null": None}


Unknown = tuple[str, str, Sequence[str]]
"""Where an argument stands, its name, and the names that are known there."""


def unknown_arguments(tree: Any, locator: ComponentLocator, place: str = "") -> Iterator[Unknown]:
    """Yield the arguments of components that these do not take.

    Args:
        tree: a configuration or a piece of one.
        locator: MONAI's, which knows where the components with short names are.
        place: id of the piece.
    """
    if isinstance(tree, Mapping):
        known = _arguments(tree.get("_target_"), locator)
        if known:
            for name in tree:
                if name not in known and name not in _OF_MONAI:
                    yield f"{place}#{name}", name, known
        children = tree.items()
    elif isinstance(tree, list):
        children = enumerate(tree)  # type: ignore[assignment]
    else:
        return
    for name, child in children:
        yield from unknown_arguments(child, locator, f"{place}#{name}" if place else str(name))


def typed_words(tree: Any) -> Any:
    """Give ``true``, ``false`` and ``null`` among the arguments of components the types that they have in YAML.

    The command line hands them over as text, and as text ``--stn#coarse_heads false`` would count as true.

    Args:
        tree: a configuration or a piece of one.

    Returns:
        The piece itself where there is nothing to change.
    """
    if isinstance(tree, Mapping):
        of_component = "_target_" in tree
        found = {
            name: _WORDS[child] if of_component and isinstance(child, str) and child in _WORDS else typed_words(child)
            for name, child in tree.items()
        }
        return found if any(found[name] is not child for name, child in tree.items()) else tree
    if isinstance(tree, list):
        items = [typed_words(child) for child in tree]
        return items if any(new is not old for new, old in zip(items, tree, strict=True)) else tree
    return tree


def _arguments(target: Any, locator: ComponentLocator) -> Sequence[str]:
    """The names that a class or function takes; none where they are not known, or any will do."""
    if not isinstance(target, str) or target.startswith(("$", "@", "%")):
        return ()
    module = locator.get_component_module_name(target)
    path = f"{module if isinstance(module, str) else module[0]}.{target}" if module else target
    try:
        parameters = inspect.signature(pydoc.locate(path)).parameters.values()  # type: ignore[arg-type]
    except (TypeError, ValueError, pydoc.ErrorDuringImport):  # no such thing, or one without a signature
        return ()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return ()
    return [parameter.name for parameter in parameters]
