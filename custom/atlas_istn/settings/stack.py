# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""Configurations made of parts: one file for hosts that read one, every value stated once.

MONAI stacks files when it runs; MONAI Label reads a single one. `stack` joins files as text, so that comments stay.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from ..io.files import write_whole

__all__ = ["ATLAS", "FAMILIES", "PAIR", "Family", "blocks", "generate", "stack", "write_generated"]


@dataclass(frozen=True)
class Family:
    """The generated configurations of one method, in a folder with its ``parts``.

    Attributes:
        files: name → the parts that it is made of, and the data config whose values replace those that are shared.
        shared: the parts that all files have: what a data config may change for all of them.
    """

    files: Mapping[str, tuple[Sequence[str], str]]
    shared: Sequence[str]


ATLAS = Family(
    {
        "train.yaml": (("model", "refinement", "training"), ""),
        "inference.yaml": (("model", "refinement", "inference"), "data/hippocampus.yaml"),
        "evaluate.yaml": (("model", "refinement", "inference", "evaluate"), "data/hippocampus.yaml"),
        "calibrate.yaml": (("model", "refinement", "inference", "evaluate", "calibrate"), "data/hippocampus.yaml"),
    },
    ("model", "refinement"),
)
PAIR = Family(
    {"train.yaml": (("model", "training"), ""), "registration.yaml": (("model", "registration"), "")},
    ("model",),
)
FAMILIES = {"": ATLAS, "pair": PAIR}
"""Folder in ``configs`` → what is generated there."""

_KEY = re.compile(r"([^\s#'\"-][^:]*):")


def generate(configs: str | Path) -> dict[str, str]:
    """Make the text of the generated files of a bundle.

    Args:
        configs: its folder ``configs``.

    Returns:
        Name of each file → what it has to hold.
    """
    return {
        str(Path(place) / name): text
        for place, family in FAMILIES.items()
        for name, text in _generate(Path(configs) / place, family).items()
    }


def _generate(folder: Path, family: Family) -> dict[str, str]:
    return {
        name: f"# Made of {', '.join(f'parts/{part}.yaml' for part in parts)}"
        + (f" and {data}" if data else "")
        + ": change those, and make it anew by `python -m atlas_istn configs`.\n"
        + stack([folder / "parts" / f"{part}.yaml" for part in parts], _shared(folder, data, family) if data else {})
        for name, (parts, data) in family.files.items()
    }


def write_generated(bundle_dir: str = "bundle") -> str:
    """Make the files of a bundle's ``configs`` that are made of its parts.

    Args:
        bundle_dir: folder of the bundle.

    Returns:
        The names of the files.

    Raises:
        InputError: a part is missing or is no configuration.
    """
    configs = Path(bundle_dir) / "configs"
    texts = generate(configs)
    for name, text in texts.items():
        write_whole(configs / name, lambda part, text=text: part.write_text(text, encoding="utf-8"))  # type: ignore[misc]
    return "\n".join(str(configs / name) for name in texts)


def stack(parts: Sequence[Path], values: Mapping[str, str]) -> str:
    """Join configurations as MONAI stacks them: a later one replaces what an earlier one says under the same id.

    Args:
        parts: YAML files of ids at the top level.
        values: id → the lines that take the place of those of the parts; what is new comes last.

    Returns:
        The ids in order of first appearance, with the comments above each and those that stand for themselves.

    Raises:
        InputError: a file is missing, or its ids are not at the top level.
    """
    joined: dict[str, str] = {}
    for part in parts:
        joined |= blocks(part)
    return "".join((joined | dict(values)).values()).rstrip() + "\n"


def _shared(configs: Path, data: str, family: Family) -> dict[str, str]:
    """The blocks of a data config that the shared parts have too."""
    shared = {key for part in family.shared for key in blocks(configs / "parts" / f"{part}.yaml")}
    return {key: text for key, text in blocks(configs / data).items() if key in shared}


def blocks(path: Path) -> dict[str, str]:
    """Read a configuration as text: id → its lines, with the comments right above it.

    Comments before an empty line are blocks of their own.

    Raises:
        InputError: the file is missing, or its ids are not at the top level.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except OSError as error:
        raise InputError(f"{path}: expected a configuration, found none ({error.strerror}). Check the path.") from error
    found: dict[str, str] = {}
    comment, current = "", ""
    for line in lines:
        key = _KEY.match(line)
        if key:
            current = key[1]
            found[current] = comment + line
            comment = ""
        elif line.startswith("#"):
            comment += line
        elif not line.strip():
            name = f"#{path.name}#{len(found)}"
            found[name] = comment + line
            comment = ""
        elif current:
            found[current] += comment + line
            comment = ""
        else:
            raise InputError(
                f"{path}: expected 'id: value' at the top level, found '{line.strip()}'. Correct the file."
            )
    return found
